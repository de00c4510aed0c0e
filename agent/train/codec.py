"""Trains Mimi: spectral losses, and a first codebook that is taught phonemes (in the paper, WavLM's features)."""

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

from agent.moshi.config import MimiConfig
from agent.moshi.convolution import CausalConv, CausalUpsampling, ChannelwiseUpsampling
from agent.moshi.layers import LayerScale, Weight
from agent.moshi.mimi import Mimi
from agent.moshi.quantizer import Codebook
from agent.train import codebooks
from agent.train.codec_data import Drawn, Stretches, read_stretches
from agent.train.codec_loss import SpectralLoss
from agent.train.phone_labels import LABELS, LABELS_PER_FRAME, SILENCE
from agent.train.precision import mixed
from agent.train.trainer import Task, Team, TrainingError

WEIGHTS, CONFIG = "mimi.safetensors", "mimi_config.json"
VOICE, VOICE_CONFIG = "voice.safetensors", "voice_config.json"  # in a checkpoint whose ears are another codec

_LAYER_SCALE = 0.1
_LOUDNESS = 0.03  # standard deviation of the sound that the untrained decoder makes
_BRANCH = 0.5  # of what a residual branch adds, the rest of the signal being 1
_KMEANS_BATCHES = 40


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


def make_task(team: Team, spec: CodecSpec) -> Task:
    return _CodecTask(team, spec)


class _CodecTask:
    def __init__(self, team: Team, spec: CodecSpec) -> None:
        self.team, self.spec = team, spec
        self.mimi = Mimi(MimiConfig.from_dict(spec.config))
        self.head = nn.Linear(self.mimi.config.dimension, LABELS_PER_FRAME * LABELS)  # of the first codebook
        self.calls = read_stretches(spec.calls, spec.frames)
        self.held_out = read_stretches([spec.held_out], spec.frames) if team.rank == 0 else None
        self.loss_of = SpectralLoss().to(team.device)
        self.module = nn.ModuleDict({"mimi": self.mimi, "head": self.head}).to(team.device)
        generator = torch.Generator().manual_seed(0)
        initialise(self.mimi, self.calls.draw(16, generator).pcm.to(team.device), generator)
        self.mimi.requires_grad_(True)

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, float]]:
        spec = self.spec
        if step == spec.unquantised_steps:
            begin_codebooks(self.mimi, lambda drawing: self._drawn(self.calls, 8, drawing).pcm, self.team)
        count = max(1, spec.batch // self.team.size)
        pcm, labels, agent = self._drawn(self.calls, count, generator)
        with mixed(pcm.device):
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
        phonemes, right = told(self.head, first, labels)
        total = sound_loss + spec.commitment * distance + spec.phonemes * phonemes
        return total, {**figures, "distance": distance.item(), "phoneme_loss": phonemes.item(), "phonemes": right}

    def evaluate(self) -> Mapping[str, float]:
        assert self.held_out is not None
        generator = torch.Generator().manual_seed(1)
        rows = []
        for _ in range(8):
            pcm, phones, agent = self._drawn(self.held_out, 8, generator)
            quantiser = self.mimi.quantizer
            codes = quantiser.encode(self.mimi.latents(pcm), self.mimi.config.codebooks)
            whole, first = quantiser.decode(codes), quantiser.rvq_first.decode(codes[..., :1])
            pcm = pcm[agent]
            rows.append({
                "first": told(self.head, first[~agent], phones[~agent])[1],
                "mel": self.loss_of(self.mimi.sound(whole[agent]), pcm, torch.ones(len(pcm)).to(pcm.device))[1]})
        means = {name: float(torch.tensor([row[name] for row in rows]).nanmean()) for name in rows[0]}
        usage = torch.stack([book.cluster_usage for book in self._codebooks()])
        shares = usage / usage.sum(1, keepdim=True)
        bits = -(shares * shares.clamp(min=1e-9).log2()).sum(1)
        return means | {"bits_first": float(bits[0]), "bits_last": float(bits[-1])}

    def export(self, folder: Path) -> None:
        export_codec(self.mimi, self.spec.config, folder)

    def _sound_losses(self, x: Tensor, pcm: Tensor, weights: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Of what the decoder makes of quantised latents x [B, frames, dimension] against pcm [B, samples]."""
        with mixed(pcm.device):
            decoded = self.mimi.sound(x)
        decoded = decoded.float()
        spectral, mel = self.loss_of(decoded, pcm, weights)
        wave = (decoded - pcm).abs().mean()
        return spectral + wave, {"spectral": spectral.item(), "mel": mel, "wave": wave.item()}

    def _drawn(self, stretches: Stretches, count: int, generator: torch.Generator) -> Drawn:
        return Drawn(*(part.to(self.team.device) for part in stretches.draw(count, generator)))

    def _codebooks(self) -> list[Codebook]:
        quantizer = self.mimi.quantizer
        return [*quantizer.rvq_first.codebooks(), *quantizer.rvq_rest.codebooks()]


def told(head: nn.Module, x: Tensor, labels: Tensor) -> tuple[Tensor, float]:
    """Labels [B, places * labels of a place] from x [B, places, dimension]: the loss, and how many are right of those
    where somebody speaks."""
    logits = head(x).unflatten(-1, (labels.shape[1] // x.shape[1], -1)).flatten(1, 2)
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    spoken = labels != SILENCE
    return loss, float((logits.argmax(-1) == labels)[spoken].float().mean())


@torch.no_grad()
def begin_codebooks(mimi: Mimi, draw: Callable[[torch.Generator], Tensor], team: Team) -> None:
    """Centroids at the latents of what is drawn, pcm [B, samples] a time."""
    generator = torch.Generator().manual_seed(2)
    latents = [mimi.latents(draw(generator)).flatten(0, 1) for _ in range(_KMEANS_BATCHES)]
    codebooks.begin(mimi.quantizer, torch.cat(latents), team, generator)


def export_codec(mimi: Mimi, config: Mapping[str, Any], folder: Path) -> None:
    """Write its config and its weights."""
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    # Weights in half the bytes; centroids as they are, since codes are decided by small differences.
    halved = {name for name, _ in mimi.named_parameters()}
    save_file({name: tensor.to(torch.bfloat16 if name in halved else torch.float32).contiguous().cpu()
               for name, tensor in mimi.state_dict().items()}, folder / WEIGHTS)


def load_codec(folder: Path, weights: str = WEIGHTS, config: str = CONFIG) -> Mimi:
    """What `export_codec` wrote. Raises TrainingError."""
    try:
        mimi = Mimi(MimiConfig.from_dict(json.loads((folder / config).read_text())))
        mimi.load_state_dict(load_file(folder / weights))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise TrainingError(f"{folder}: has no whole Mimi ({str(error).splitlines()[0]})") from None
    return mimi.eval()


def load_both(folder: Path) -> tuple[Mimi, Mimi]:
    """A checkpoint's ears and voice, which are one in older ones. Raises TrainingError."""
    ears = load_codec(folder)
    return ears, load_codec(folder, VOICE, VOICE_CONFIG) if (folder / VOICE).exists() else ears


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


__all__ = ["CONFIG", "WEIGHTS", "CodecSpec", "begin_codebooks", "export_codec", "initialise", "load_both", "load_codec",
           "make_task", "told"]
