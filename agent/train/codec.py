"""Trains Mimi: spectral losses, and a first codebook that is taught phonemes (in the paper, WavLM's features).

Three trainings, each goes on from the one before:

    all    how sound is coded, both sides of calls
    ears   what callers say: all codebooks are taught phonemes, and only the agent's sound is decoded any more. The
           spectral losses' gradient, a hundred times that of the phonemes, is made as small as that
    voice  the decoder alone, on the agent's speech; the codes stay what they are, so calls may be encoded before
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from agent.moshi.config import MimiConfig
from agent.moshi.convolution import CausalConv, CausalUpsampling, ChannelwiseUpsampling
from agent.moshi.layers import LayerScale, Weight
from agent.moshi.mimi import Mimi
from agent.moshi.quantizer import Codebook
from agent.train import codebooks
from agent.train.codec_data import Stretches, read_stretches
from agent.train.codec_loss import SpectralLoss
from agent.train.phone_labels import LABELS, LABELS_PER_FRAME, SILENCE
from agent.train.trainer import Task, Team

WEIGHTS, CONFIG = "mimi.safetensors", "mimi_config.json"

Learns = Literal["all", "ears", "voice"]

_LAYER_SCALE = 0.1
_LOUDNESS = 0.03  # standard deviation of the sound that the untrained decoder makes
_BRANCH = 0.5  # of what a residual branch adds, the rest of the signal being 1
_KMEANS_BATCHES = 40
_AGENT_SHARE: Mapping[Learns, float] = {"all": 0.5, "ears": 0.25, "voice": 1.0}  # of the stretches
_SOUND = 0.02  # of the loss, while ears are trained: for the decoder any weight is the same, Adam scales it


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
    of: Path | None = None  # a trained codec's folder, to go on from


def make_task(team: Team, spec: CodecSpec) -> Task:
    return _CodecTask(team, spec)


class _CodecTask:
    def __init__(self, team: Team, spec: CodecSpec) -> None:
        self.team, self.spec = team, spec
        self.mimi = Mimi(MimiConfig.from_dict(spec.config))
        labels = LABELS_PER_FRAME * LABELS
        self.heads = nn.ModuleDict({name: nn.Linear(self.mimi.config.dimension, labels) for name in ("first", "all")})
        agent_share = _AGENT_SHARE[spec.learns]
        self.calls = read_stretches(spec.calls, spec.frames, agent_share)
        self.held_out = read_stretches([spec.held_out], spec.frames, agent_share) if team.rank == 0 else None
        self.loss_of = SpectralLoss().to(team.device)
        self.module = nn.ModuleDict({"mimi": self.mimi, "heads": self.heads}).to(team.device)
        if spec.of is not None:
            self.mimi.load_state_dict(load_file(spec.of / WEIGHTS))
        else:
            generator = torch.Generator().manual_seed(0)
            initialise(self.mimi, self.calls.draw(16, generator)[0].to(team.device), generator)
        self.mimi.requires_grad_(True)
        if spec.learns == "voice":
            self.heads.requires_grad_(False)
            for name, weight in self.mimi.named_parameters():
                weight.requires_grad_(name.startswith(("decoder", "upsample")) or ".output_proj." in name)

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, float]]:
        count = max(1, self.spec.batch // self.team.size)
        if self.spec.learns == "voice":
            return self._voice_losses(count, generator)
        if self.spec.learns == "ears":
            return self._ears_losses(count, step, generator)
        if step == self.spec.unquantised_steps:
            self._begin_codebooks()
        return self._losses(count, step, generator)

    def evaluate(self) -> Mapping[str, float]:
        assert self.held_out is not None
        generator = torch.Generator().manual_seed(1)
        rows = []
        for _ in range(8):
            pcm, labels, agent = self._drawn(self.held_out, 8, generator)
            quantiser = self.mimi.quantizer
            codes = quantiser.encode(self.mimi.latents(pcm), self.mimi.config.codebooks)
            whole, first = quantiser.decode(codes), quantiser.rvq_first.decode(codes[..., :1])
            rows.append({"phonemes": self._phonemes("first", first, labels)[1], "mel": float("nan")})
            decoded = torch.ones_like(agent) if self.spec.learns == "all" else agent
            if bool(decoded.any()):
                weights = torch.ones(int(decoded.sum()), device=pcm.device)
                rows[-1]["mel"] = self.loss_of(self.mimi.sound(whole[decoded]), pcm[decoded], weights)[1]
            if self.spec.learns == "ears":
                rows[-1] |= {f"heard_{name}": self._phonemes(name, x[~agent], labels[~agent])[1]
                             for name, x in (("first", first), ("all", whole))}
        usage = torch.stack([book.cluster_usage for book in self._codebooks()])
        shares = usage / usage.sum(1, keepdim=True)
        bits = -(shares * shares.clamp(min=1e-9).log2()).sum(1)
        # a batch may have no agent in it, or nobody else
        means = {name: float(torch.tensor([row[name] for row in rows]).nanmean()) for name in rows[0]}
        return means | {"bits_first": float(bits[0]), "bits_last": float(bits[-1])}

    def export(self, folder: Path) -> None:
        (folder / CONFIG).write_text(json.dumps(self.spec.config, indent=2) + "\n")
        # Weights in half the bytes; centroids as they are, since codes are decided by small differences.
        halved = {name for name, _ in self.mimi.named_parameters()}
        save_file({name: tensor.to(torch.bfloat16 if name in halved else torch.float32).contiguous().cpu()
                   for name, tensor in self.mimi.state_dict().items()}, folder / WEIGHTS)

    def _voice_losses(self, count: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, float]]:
        pcm, _, _ = self._drawn(self.calls, count, generator)
        with torch.no_grad():
            codes = self.mimi.quantizer.encode(self.mimi.latents(pcm), self.mimi.config.codebooks)
        return self._sound_losses(self.mimi.quantizer.decode(codes), pcm, torch.ones(count, device=pcm.device))

    def _sound_losses(self, x: Tensor, pcm: Tensor, weights: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Of what the decoder makes of quantised latents x [B, frames, dimension] against pcm [B, samples]."""
        with torch.autocast(pcm.device.type, torch.bfloat16):
            decoded = self.mimi.sound(x)
        decoded = decoded.float()
        spectral, mel = self.loss_of(decoded, pcm, weights)
        wave = (decoded - pcm).abs().mean()
        return spectral + wave, {"spectral": spectral.item(), "mel": mel, "wave": wave.item()}

    def _ears_losses(self, count: int, step: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, float]]:
        pcm, labels, agent = self._drawn(self.calls, count, generator)
        with torch.autocast(pcm.device.type, torch.bfloat16):
            latents = self.mimi.latents(pcm)
        used = torch.full((count,), self.mimi.config.codebooks - 1, device=pcm.device)
        passed, first, distance = codebooks.quantised(self.mimi.quantizer, latents.float(), used, step, self.team,
                                                      generator)
        first_loss, first_right = self._phonemes("first", first, labels)
        all_loss, all_right = self._phonemes("all", passed, labels)
        total = self.spec.phonemes * (first_loss + all_loss) + self.spec.commitment * distance
        figures = {"distance": distance.item(), "first_loss": first_loss.item(), "all_loss": all_loss.item(),
                   "first": first_right, "all": all_right}
        if bool(agent.any()):
            spoken = torch.ones(int(agent.sum()), device=pcm.device)
            sound_loss, of_sound = self._sound_losses(passed[agent], pcm[agent], spoken)
            total = total + _SOUND * sound_loss
            figures |= of_sound
        return total, figures

    def _losses(self, count: int, step: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, float]]:
        spec = self.spec
        pcm, labels, agent = self._drawn(self.calls, count, generator)
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
            passed, first, distance = codebooks.quantised(self.mimi.quantizer, latents, used, step, self.team,
                                                          generator)
        sound_loss, figures = self._sound_losses(passed, pcm, torch.where(agent, 1.0, spec.caller_weight))
        phonemes, right = self._phonemes("first", first, labels)
        total = sound_loss + spec.commitment * distance + spec.phonemes * phonemes
        return total, {**figures, "distance": distance.item(), "phoneme_loss": phonemes.item(), "phonemes": right}

    def _drawn(self, stretches: Stretches, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        pcm, labels, agent = stretches.draw(count, generator)
        device = self.team.device
        return pcm.to(device), labels.to(device), agent.to(device)

    def _phonemes(self, head: str, x: Tensor, labels: Tensor) -> tuple[Tensor, float]:
        """From the codebooks' part x [B, frames, dimension]: the loss, and how many are right of those spoken."""
        logits = self.heads[head](x).unflatten(-1, (LABELS_PER_FRAME, LABELS)).flatten(1, 2)
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        spoken = labels != SILENCE
        return loss, float((logits.argmax(-1) == labels)[spoken].float().mean())

    def _codebooks(self) -> list[Codebook]:
        quantizer = self.mimi.quantizer
        return [*quantizer.rvq_first.codebooks(), *quantizer.rvq_rest.codebooks()]

    @torch.no_grad()
    def _begin_codebooks(self) -> None:
        generator = torch.Generator().manual_seed(2)
        latents = [self.mimi.latents(self._drawn(self.calls, 8, generator)[0]).flatten(0, 1)
                   for _ in range(_KMEANS_BATCHES)]
        codebooks.begin(self.mimi.quantizer, torch.cat(latents), self.team, generator)


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


__all__ = ["CONFIG", "WEIGHTS", "CodecSpec", "initialise", "make_task"]
