"""Trains Mimi: spectral losses, and a first codebook that is taught phonemes (in the paper, WavLM's features).

Two trainings, the second goes on from the first:

    all    how sound is coded, both sides of calls
    ears   what callers say: the encoder learns to put phonemes and words into codes. Decoder and codebooks stay as they
           are, so that the agent's sentences, which the first training's encoder goes on to encode, sound as before
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from agent.moshi.config import MimiConfig
from agent.moshi.convolution import CausalConv, CausalUpsampling, ChannelwiseUpsampling
from agent.moshi.layers import LayerScale, Weight
from agent.moshi.mimi import Mimi
from agent.moshi.quantizer import Codebook
from agent.train import codebooks
from agent.train.codec_data import WORD_LABELS, Drawn, Stretches, read_stretches
from agent.train.codec_loss import SpectralLoss
from agent.train.phone_labels import LABELS, LABELS_PER_FRAME, SILENCE
from agent.train.trainer import Task, Team, TrainingError

WEIGHTS, CONFIG = "mimi.safetensors", "mimi_config.json"

Learns = Literal["all", "ears"]

_LAYER_SCALE = 0.1
_LOUDNESS = 0.03  # standard deviation of the sound that the untrained decoder makes
_BRANCH = 0.5  # of what a residual branch adds, the rest of the signal being 1
_KMEANS_BATCHES = 40
_AGENT_SHARE: Mapping[Learns, float] = {"all": 0.5, "ears": 0.0}  # of the stretches
_TEMPO: Mapping[Learns, float] = {"all": 1.0, "ears": 1.13}
_LEARNT_BY_EARS = ("encoder", "downsample")  # and the quantiser's projections of what comes in
_STRAIGHT = 0.5  # of the loss of phonemes and words, from the latents: its gradient doesn't pass through codebooks
_NEW_LAYER = 0.01  # the layer scale of a layer that is added to a trained encoder


@dataclass(frozen=True)
class CodecSpec:
    """`config` is a mimi_config.json. The batch is divided among the processes."""

    config: Mapping[str, Any]
    calls: tuple[Path, ...]  # the lists of what is learnt from
    held_out: Path
    batch: int = 4
    frames: int = 25  # of a stretch
    unquantised_steps: int = 150
    all_codebooks: float = 0.8  # of the stretches; the others use their first few
    caller_weight: float = 0.5  # of the caller's sound, which nobody hears decoded
    commitment: float = 0.25
    phonemes: float = 1.0
    learns: Learns = "all"
    of: Path | None = None  # a trained codec's folder, to go on from; it may have fewer layers


def make_task(team: Team, spec: CodecSpec) -> Task:
    return _CodecTask(team, spec)


class _CodecTask:
    def __init__(self, team: Team, spec: CodecSpec) -> None:
        self.team, self.spec = team, spec
        self.mimi = Mimi(MimiConfig.from_dict(spec.config))
        width, labels = self.mimi.config.dimension, LABELS_PER_FRAME * LABELS
        self.heads = nn.ModuleDict({name: nn.Linear(width, labels) for name in ("first", "all", "latents")}
                                   | {name: nn.Linear(width, WORD_LABELS) for name in ("words", "words_in_latents")})
        agent_share = _AGENT_SHARE[spec.learns]
        self.calls = read_stretches(spec.calls, spec.frames, agent_share, _TEMPO[spec.learns])
        self.held_out = None
        if team.rank == 0:
            self.held_out = read_stretches([spec.held_out], spec.frames, agent_share, vocabulary=self.calls.vocabulary)
        self.loss_of = SpectralLoss().to(team.device)
        self.module = nn.ModuleDict({"mimi": self.mimi, "heads": self.heads}).to(team.device)
        if spec.of is not None:
            begin_with(self.mimi, load_codec(spec.of).to(team.device))
        else:
            generator = torch.Generator().manual_seed(0)
            initialise(self.mimi, self.calls.draw(16, generator).pcm.to(team.device), generator)
        for name, weight in self.mimi.named_parameters():
            weight.requires_grad_(spec.learns == "all" or name.startswith(_LEARNT_BY_EARS) or ".input_proj." in name)

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, float]]:
        count = max(1, self.spec.batch // self.team.size)
        if self.spec.learns == "ears":
            return self._ears_losses(count, generator)
        if step == self.spec.unquantised_steps:
            self._begin_codebooks()
        return self._losses(count, step, generator)

    def evaluate(self) -> Mapping[str, float]:
        assert self.held_out is not None
        generator = torch.Generator().manual_seed(1)
        rows = []
        for _ in range(8):
            pcm, phones, words, agent = self._drawn(self.held_out, 8, generator)
            quantiser = self.mimi.quantizer
            codes = quantiser.encode(self.mimi.latents(pcm), self.mimi.config.codebooks)
            whole, first = quantiser.decode(codes), quantiser.rvq_first.decode(codes[..., :1])
            row = {"first": self._told("first", first[~agent], phones[~agent])[1]}
            if self.spec.learns == "ears":
                row["all"] = self._told("all", whole, phones)[1]
                row["words"] = self._told("words", whole, words)[1]
            else:
                pcm = pcm[agent]
                row["mel"] = self.loss_of(self.mimi.sound(whole[agent]), pcm, torch.ones(len(pcm)).to(pcm.device))[1]
            rows.append(row)
        means = {name: float(torch.tensor([row[name] for row in rows]).nanmean()) for name in rows[0]}
        usage = torch.stack([book.cluster_usage for book in self._codebooks()])
        shares = usage / usage.sum(1, keepdim=True)
        bits = -(shares * shares.clamp(min=1e-9).log2()).sum(1)
        return means | {"bits_first": float(bits[0]), "bits_last": float(bits[-1])}

    def export(self, folder: Path) -> None:
        (folder / CONFIG).write_text(json.dumps(self.spec.config, indent=2) + "\n")
        # Weights in half the bytes; centroids as they are, since codes are decided by small differences.
        halved = {name for name, _ in self.mimi.named_parameters()}
        save_file({name: tensor.to(torch.bfloat16 if name in halved else torch.float32).contiguous().cpu()
                   for name, tensor in self.mimi.state_dict().items()}, folder / WEIGHTS)

    def _sound_losses(self, x: Tensor, pcm: Tensor, weights: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Of what the decoder makes of quantised latents x [B, frames, dimension] against pcm [B, samples]."""
        with torch.autocast(pcm.device.type, torch.bfloat16):
            decoded = self.mimi.sound(x)
        decoded = decoded.float()
        spectral, mel = self.loss_of(decoded, pcm, weights)
        wave = (decoded - pcm).abs().mean()
        return spectral + wave, {"spectral": spectral.item(), "mel": mel, "wave": wave.item()}

    def _ears_losses(self, count: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, float]]:
        pcm, phones, words, _ = self._drawn(self.calls, count, generator)
        with torch.autocast(pcm.device.type, torch.bfloat16):
            latents = self.mimi.latents(pcm)
        latents = latents.float()
        whole, first, distance = codebooks.quantised(self.mimi.quantizer, latents, None, None)
        told = {"first": self._told("first", first, phones), "all": self._told("all", whole, phones),
                "words": self._told("words", whole, words)}
        straight = {"straight": self._told("latents", latents, phones),
                    "straight_words": self._told("words_in_latents", latents, words)}
        total = (sum(loss for loss, _ in told.values()) + _STRAIGHT * sum(loss for loss, _ in straight.values())
                 ) * self.spec.phonemes + self.spec.commitment * distance
        return total, {"distance": distance.item(), **{name: right for name, (_, right) in (told | straight).items()}}

    def _losses(self, count: int, step: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, float]]:
        spec = self.spec
        pcm, labels, _, agent = self._drawn(self.calls, count, generator)
        with torch.autocast(pcm.device.type, torch.bfloat16):
            latents = self.mimi.latents(pcm)
        latents = latents.float()
        distance = torch.zeros((), device=pcm.device)
        if step < spec.unquantised_steps:
            passed, first = codebooks.unquantised(self.mimi.quantizer, latents)
        else:
            rest = self.mimi.config.codebooks - 1
            few = torch.randint(1, rest + 1, (count,), generator=generator)
            used = torch.where(torch.rand(count, generator=generator) < spec.all_codebooks, rest, few).to(pcm.device)
            follow = codebooks.Following(step, self.team, generator)
            passed, first, distance = codebooks.quantised(self.mimi.quantizer, latents, used, follow)
        sound_loss, figures = self._sound_losses(passed, pcm, torch.where(agent, 1.0, spec.caller_weight))
        phonemes, right = self._told("first", first, labels)
        total = sound_loss + spec.commitment * distance + spec.phonemes * phonemes
        return total, {**figures, "distance": distance.item(), "phoneme_loss": phonemes.item(), "phonemes": right}

    def _drawn(self, stretches: Stretches, count: int, generator: torch.Generator) -> Drawn:
        return Drawn(*(part.to(self.team.device) for part in stretches.draw(count, generator)))

    def _told(self, head: str, x: Tensor, labels: Tensor) -> tuple[Tensor, float]:
        """Labels [B, frames * labels of a frame] from x [B, frames, dimension]: the loss, and how many are right of
        those where somebody speaks."""
        logits = self.heads[head](x).unflatten(-1, (labels.shape[1] // x.shape[1], -1)).flatten(1, 2)
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        spoken = labels != SILENCE
        return loss, float((logits.argmax(-1) == labels)[spoken].float().mean())

    def _codebooks(self) -> list[Codebook]:
        quantizer = self.mimi.quantizer
        return [*quantizer.rvq_first.codebooks(), *quantizer.rvq_rest.codebooks()]

    @torch.no_grad()
    def _begin_codebooks(self) -> None:
        generator = torch.Generator().manual_seed(2)
        latents = [self.mimi.latents(self._drawn(self.calls, 8, generator).pcm).flatten(0, 1)
                   for _ in range(_KMEANS_BATCHES)]
        codebooks.begin(self.mimi.quantizer, torch.cat(latents), self.team, generator)


def load_codec(folder: Path) -> Mimi:
    """What `export` wrote. Raises TrainingError."""
    try:
        mimi = Mimi(MimiConfig.from_dict(json.loads((folder / CONFIG).read_text())))
        mimi.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise TrainingError(f"{folder}: has no whole Mimi ({str(error).splitlines()[0]})") from None
    return mimi.eval()


@torch.no_grad()
def begin_with(mimi: Mimi, trained: Mimi) -> None:
    """Go on from a codec that is alike but for the number of layers. A layer that it hasn't begins by changing next to
    nothing in the encoder and nothing in the decoder. Raises TrainingError."""
    generator = torch.Generator().manual_seed(0)
    theirs = trained.state_dict()
    for name, tensor in mimi.state_dict().items():
        if name in theirs and theirs[name].shape == tensor.shape:
            tensor.copy_(theirs[name])
        elif name in theirs or "_transformer." not in name:
            raise TrainingError(f"the codec to go on from has another {name}")
        elif "layer_scale_" in name:
            tensor.fill_(_NEW_LAYER if name.startswith("encoder") else 0.0)
        elif tensor.dim() == 1:
            tensor.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            nn.init.normal_(tensor, std=tensor.shape[1] ** -0.5, generator=generator)


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
                module.bias.zero_()
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
