"""Trains Mimi for conversation: codes that tell what is said, by whomever, and from which one voice is made again.

In the paper the first codebook is taught a speech model's features. Here the encoder is taught the phones and the
words themselves, through the codebooks, by callers over all kinds of lines; and of sound only the agent's is decoded,
the only one that anybody hears decoded. All at once, and balanced where it meets, at the codes: there the gradient of
the sound is made as large as that of what is told (as Defossez et al. 2022 balance their losses), or one would drown
the other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from agent.moshi.config import PAD_TOKEN, MimiConfig
from agent.moshi.convolution import CausalConv, CausalUpsampling, ChannelwiseUpsampling
from agent.moshi.layers import LayerScale, Weight
from agent.moshi.mimi import Mimi
from agent.moshi.quantizer import Codebook
from agent.moshi.text import Tokenizer
from agent.train import codebooks
from agent.train.codec_data import Batch, read_stretches
from agent.train.codec_loss import SpectralLoss
from agent.train.phone_labels import LABELS, LABELS_PER_FRAME, SILENCE
from agent.train.trainer import Task, Team, TrainingError

WEIGHTS, CONFIG = "mimi.safetensors", "mimi_config.json"
# The decoder's names: at the rate at which an encoder learns to hear, its sound gets worse for as long as the rate is
# high, since all samples hang on its last few weights.
DECODER = ("mimi.decoder", "mimi.upsample")

_LAYER_SCALE = 0.1
_NEW_LAYER = 0.01  # the same of a layer that is added to a trained codec
_LOUDNESS = 0.03  # standard deviation of the sound that the untrained decoder makes
_BIAS = 0.1  # without any, digital silence stays zero up to the norms, whose gradient there is without bound
_BRANCH = 0.5  # of what a residual branch adds, the rest of the signal being 1
_KMEANS_BATCHES = 20
_BALANCE_DECAY = 0.98
_HELD_OUT_BATCHES = 8


@dataclass(frozen=True)
class CodecSpec:
    """`config` is a mimi_config.json. The batch is divided among the processes."""

    config: Mapping[str, Any]
    calls: tuple[Path, ...]  # the lists of what is learnt from
    held_out: Path
    tokenizer: Path  # whose pieces the words are taught as
    batch: int = 8
    frames: int = 50  # of a stretch
    agent_share: float = 0.25  # of the stretches: whose sound is decoded
    unquantised_steps: int = 200
    all_codebooks: float = 0.8  # of the stretches; the others use their first few
    phones: float = 1.0  # of the loss: from the first codebook, and from all
    words: float = 0.2  # of the loss: from all codebooks
    unquantised: float = 0.5  # of the loss: both from the latents, whose gradient doesn't pass through codebooks
    commitment: float = 0.5
    sound: float = 1.0  # of what the encoder is told, a frame of the agent's: against what is asked of it otherwise
    begin: Path | None = None  # the folder of a codec to go on from; it may have fewer layers


def make_task(team: Team, spec: CodecSpec) -> Task:
    return _CodecTask(team, spec)


class _CodecTask:
    def __init__(self, team: Team, spec: CodecSpec) -> None:
        self.team, self.spec = team, spec
        self.mimi = Mimi(MimiConfig.from_dict(spec.config))
        tokenizer = Tokenizer(spec.tokenizer)
        dimension = self.mimi.config.dimension
        self.phones = nn.ModuleDict({name: nn.Linear(dimension, LABELS_PER_FRAME * LABELS)
                                     for name in ("latents", "first", "all")})
        self.words = nn.ModuleDict({name: nn.Linear(dimension, len(tokenizer)) for name in ("latents", "all")})
        self.calls = read_stretches(spec.calls, spec.frames, tokenizer, spec.agent_share)
        self.held_out = read_stretches([spec.held_out], spec.frames, tokenizer, spec.agent_share) \
            if team.rank == 0 else None
        self.loss_of = SpectralLoss().to(team.device)
        self.balance = Balance()
        self.module = nn.ModuleDict({"mimi": self.mimi, "phones": self.phones, "words": self.words}).to(team.device)
        generator = torch.Generator().manual_seed(0)
        initialise(self.mimi, self.calls.draw(16, generator).pcm.to(team.device), generator)
        if spec.begin is not None:
            begin_with(self.mimi, load_codec(spec.begin))
        self.mimi.requires_grad_(True)

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, float]]:
        spec = self.spec
        unquantised_steps = 0 if spec.begin is not None else spec.unquantised_steps
        if step == unquantised_steps and spec.begin is None:
            self._begin_codebooks()
        count = max(1, spec.batch // self.team.size)
        share = count * spec.agent_share  # as many in each process, so that none waits for the other
        agents = int((step + 1) * share) - int(step * share)
        batch = self.calls.draw(count, generator, agents).to(self.team.device)
        with torch.autocast(self.team.device.type, torch.bfloat16):
            latents = self.mimi.latents(batch.pcm)
        latents = latents.float()
        if step < unquantised_steps:
            distance = torch.zeros((), device=latents.device)
            passed, first = codebooks.unquantised(self.mimi.quantizer, latents)
        else:
            rest = self.mimi.config.codebooks - 1
            few = torch.randint(1, rest + 1, (count,), generator=generator)
            whole = torch.rand(count, generator=generator) < spec.all_codebooks
            used = torch.where(whole, rest, few).to(latents.device)
            passed, first, distance = codebooks.quantised(self.mimi.quantizer, latents, used, step, self.team,
                                                          generator)
        heard = self.balance.followed("told", passed)
        told = {name: self._phones(name, x, batch) for name, x in (("latents", latents), ("first", first),
                                                                    ("all", heard))}
        said = {name: self._words(name, x, batch) for name, x in (("latents", latents), ("all", heard))}
        total = (spec.phones * (told["first"][0] + told["all"][0]) + spec.words * said["all"][0]
                 + spec.unquantised * (spec.phones * told["latents"][0] + spec.words * said["latents"][0])
                 + spec.commitment * distance)
        figures = {"distance": distance.item(), "phones_loss": told["all"][0].item(), "phones_first": told["first"][1],
                   "phones": told["all"][1], "phones_unquantised": told["latents"][1],
                   "words_loss": said["all"][0].item(), "words": said["all"][1]}
        if bool(batch.agent.any()):
            with torch.autocast(self.team.device.type, torch.bfloat16):
                decoded = self.mimi.sound(self.balance.balanced("sound", passed[batch.agent], "told", spec.sound))
            sound, of_sound = self._sound(decoded.float(), batch.pcm[batch.agent])
            total = total + sound
            figures |= of_sound
        return total, figures

    def evaluate(self) -> Mapping[str, float]:
        """Of held-out callers, what is told; of the agent, how it sounds."""
        assert self.held_out is not None
        generator = torch.Generator().manual_seed(1)
        rows = []
        for _ in range(_HELD_OUT_BATCHES):
            batch = self.held_out.draw(8, generator).to(self.team.device)
            quantiser, latents = self.mimi.quantizer, self.mimi.latents(batch.pcm)
            codes = quantiser.encode(latents, self.mimi.config.codebooks)
            whole, first = quantiser.decode(codes), quantiser.rvq_first.decode(codes[..., :1])
            heard = batch.of(~batch.agent)
            row = {"phones_unquantised": self._phones("latents", latents[~batch.agent], heard)[1],
                   "phones_first": self._phones("first", first[~batch.agent], heard)[1],
                   "phones": self._phones("all", whole[~batch.agent], heard)[1],
                   "words_unquantised": self._words("latents", latents[~batch.agent], heard)[1],
                   "words": self._words("all", whole[~batch.agent], heard)[1], "mel": float("nan")}
            if bool(batch.agent.any()):
                row["mel"] = self._sound(self.mimi.sound(whole[batch.agent]), batch.pcm[batch.agent])[1]["mel"]
            rows.append(row)
        usage = torch.stack([book.cluster_usage for book in self._codebooks()])
        shares = usage / usage.sum(1, keepdim=True)
        bits = -(shares * shares.clamp(min=1e-9).log2()).sum(1)
        # a batch may have no agent in it
        means = {name: float(torch.tensor([row[name] for row in rows]).nanmean()) for name in rows[0]}
        return means | {"bits_first": float(bits[0]), "bits_last": float(bits[-1])}

    def export(self, folder: Path) -> None:
        (folder / CONFIG).write_text(json.dumps(self.spec.config, indent=2) + "\n")
        # Weights in half the bytes; centroids as they are, since codes are decided by small differences.
        halved = {name for name, _ in self.mimi.named_parameters()}
        save_file({name: tensor.to(torch.bfloat16 if name in halved else torch.float32).contiguous().cpu()
                   for name, tensor in self.mimi.state_dict().items()}, folder / WEIGHTS)

    def _sound(self, decoded: Tensor, pcm: Tensor) -> tuple[Tensor, dict[str, float]]:
        """How far decoded sound is from pcm, both [B, samples]."""
        spectral, mel = self.loss_of(decoded, pcm, torch.ones(len(pcm), device=pcm.device))
        wave = (decoded - pcm).abs().mean()
        return spectral + wave, {"spectral": spectral.item(), "mel": mel, "wave": wave.item()}

    def _phones(self, head: str, x: Tensor, batch: Batch) -> tuple[Tensor, float]:
        """What is told of x [B, frames, dimension]: the loss, and how many phones are right of those spoken."""
        logits = self.phones[head](x).unflatten(-1, (LABELS_PER_FRAME, LABELS)).flatten(1, 2)
        loss = F.cross_entropy(logits.flatten(0, 1), batch.phones.flatten())
        spoken = batch.phones != SILENCE
        return loss, float((logits.argmax(-1) == batch.phones)[spoken].float().mean())

    def _words(self, head: str, x: Tensor, batch: Batch) -> tuple[Tensor, float]:
        """Likewise of the pieces of words."""
        logits = self.words[head](x)
        loss = F.cross_entropy(logits.flatten(0, 1), batch.pieces.flatten())
        spoken = batch.pieces != PAD_TOKEN
        return loss, float((logits.argmax(-1) == batch.pieces)[spoken].float().mean())

    def _codebooks(self) -> list[Codebook]:
        quantizer = self.mimi.quantizer
        return [*quantizer.rvq_first.codebooks(), *quantizer.rvq_rest.codebooks()]

    @torch.no_grad()
    def _begin_codebooks(self) -> None:
        generator = torch.Generator().manual_seed(2)
        latents = [self.mimi.latents(self.calls.draw(8, generator).pcm.to(self.team.device)).flatten(0, 1)
                   for _ in range(_KMEANS_BATCHES)]
        codebooks.begin(self.mimi.quantizer, torch.cat(latents), self.team, generator)


def load_codec(folder: Path) -> Mimi:
    """What `export` wrote. Raises TrainingError."""
    try:
        mimi = Mimi(MimiConfig.from_dict(json.loads((folder / CONFIG).read_text())))
        mimi.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise TrainingError(f"{folder}: has no whole Mimi ({str(error).splitlines()[0]})") from None
    return mimi


@torch.no_grad()
def begin_with(mimi: Mimi, trained: Mimi) -> None:
    """Go on from a trained codec with the same convolutions and codebooks. Transformer layers that it doesn't have
    begin by changing next to nothing. Raises TrainingError where another part differs."""
    theirs = trained.state_dict()
    for name, tensor in mimi.state_dict().items():
        if name in theirs and theirs[name].shape == tensor.shape:
            tensor.copy_(theirs[name])
        elif name in theirs or "_transformer." not in name:
            raise TrainingError(f"the codec to go on from has another {name}")
        elif ".layer_scale_" in name:
            tensor.fill_(_NEW_LAYER)


class Balance:
    """Keeps the gradients of several losses at one tensor in proportion, by how large each was lately."""

    def __init__(self) -> None:
        self._sizes: dict[str, float] = {}

    def followed(self, name: str, x: Tensor) -> Tensor:
        """x [B, frames, dimension], whose gradient from what uses this is remembered under `name`."""
        return self._hooked(x, lambda gradient: self._follow(name, gradient))

    def balanced(self, name: str, x: Tensor, against: str, share: float) -> Tensor:
        """x, whose gradient from what uses this is made `share` times as large, a frame, as that of `against`."""
        def scale(gradient: Tensor) -> Tensor:
            size = self._note(name, gradient)
            return gradient * (share * self._sizes.get(against, size) / (size + 1e-12))

        return self._hooked(x, scale)

    def _follow(self, name: str, gradient: Tensor) -> None:
        self._note(name, gradient)

    def _note(self, name: str, gradient: Tensor) -> float:
        """Its root mean square over frames, as a running mean."""
        size = float(gradient.float().square().sum(-1).mean().sqrt())
        before = self._sizes.get(name, size)
        self._sizes[name] = _BALANCE_DECAY * before + (1 - _BALANCE_DECAY) * size
        return self._sizes[name]

    @staticmethod
    def _hooked(x: Tensor, hook: Callable[[Tensor], Tensor | None]) -> Tensor:
        y = x * 1
        if y.requires_grad:
            y.register_hook(hook)
        return y


@torch.no_grad()
def initialise(mimi: Mimi, pcm: Tensor, generator: torch.Generator) -> None:
    """Weights with which sound passes at an even level: orthogonal ones, scaled layer by layer to an output of standard
    deviation 1 (Mishkin and Matas 2015). The library's own let a codec of this depth stand still for long."""
    last = mimi.decoder.ends[1]
    branches = {id(narrow) for half in (mimi.encoder, mimi.decoder) for narrow in half.branches()}
    for module in mimi.modules():
        if isinstance(module, CausalConv | CausalUpsampling):
            matrix = torch.empty(module.weight.shape[0], module.weight[0].numel())
            nn.init.orthogonal_(matrix, generator=generator)
            module.weight.copy_(matrix.view(module.weight.shape))
            if module.bias is not None:
                nn.init.normal_(module.bias, std=_BIAS if module is not last else 0.0, generator=generator)
        elif isinstance(module, ChannelwiseUpsampling):
            nn.init.normal_(module.weight, std=0.5, generator=generator)
        elif isinstance(module, LayerScale):
            module.scale.fill_(_LAYER_SCALE)
        elif isinstance(module, Weight):
            if module.weight.squeeze().dim() == 1:
                module.weight.fill_(1)
            else:
                nn.init.normal_(module.weight, std=module.weight.shape[1] ** -0.5, generator=generator)
            if module.bias is not None:
                module.bias.zero_()
    for buffer in mimi.quantizer.buffers():
        buffer.fill_(1)

    def even(module: nn.Module, _: object, output: Any) -> Any:
        out = output[0] if isinstance(output, tuple) else output
        wanted = _LOUDNESS if module is last else _BRANCH if id(module) in branches else 1.0
        factor = wanted / (float(out.std()) + 1e-8)
        module.weight.mul_(factor)  # type: ignore[operator]
        return tuple(part * factor for part in output) if isinstance(output, tuple) else output * factor

    parts = [m for m in mimi.modules() if isinstance(m, CausalConv | CausalUpsampling | ChannelwiseUpsampling)]
    hooks = [module.register_forward_hook(even) for module in parts]
    mimi.sound(codebooks.unquantised(mimi.quantizer, mimi.latents(pcm))[0])
    for hook in hooks:
        hook.remove()


__all__ = ["CONFIG", "WEIGHTS", "CodecSpec", "begin_with", "initialise", "load_codec", "make_task"]
