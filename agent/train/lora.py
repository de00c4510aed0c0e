"""Fine-tuning: adapters for any checkpoint of the family, from stereo calls with word times (see dataset.py).

As Moshi's public fine-tuning code does it: cross-entropy of the agent's text and sound, each normalised; paddings and
the first codebook weighted; the caller is heard and not predicted. What comes out is a folder that `load_model` loads,
and the reference with it: the checkpoint's config and `lora.safetensors` in the public layout.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from agent.moshi.checkpoint import Model, load_model
from agent.moshi.config import EPAD_TOKEN, FIRST_7B, LORA_FILE, NOT_THE_LMS, PAD_TOKEN, ZERO_TOKEN, LMConfig
from agent.train.adapters import adapt
from agent.train.dataset import Entry, read_call, read_list
from agent.train.trainer import Plan, Task, Team, TrainingError, train
from agent.train.tuning_data import Batch, Windows, encode

TRAINING, HELD_OUT = "training.safetensors", "held_out.safetensors"  # the calls as tokens

_HELD_OUT_EACH = 10  # of the calls, where no others are given
_EVALUATED = 32  # held-out calls

Progress = Callable[[str, int, int], None]  # what is encoded, calls done, calls in all


@dataclass(frozen=True)
class LoraSpec:
    """The public code's values. The batch is divided among the processes."""

    model: str  # a folder, `moshiko`, `moshika` or a repository
    folder: Path  # where tokens, progress, state and the result lie
    rank: int = 128
    scaling: float = 2.0
    embeddings: bool = False  # trained as a whole
    batch: int = 16  # windows
    frames: int = 1250  # of a window: 100 s
    at_once: int = 1  # windows whose activations are kept together; with fewer than all, they are computed twice
    first_codebook: float = 100.0  # its weight
    padding: float = 0.5  # weight of PAD and EPAD


def fine_tune(spec: LoraSpec, plan: Plan, calls: Path, held_out: Path | None, *, copies: int = 4,
              tell: Callable[[str], None] = print, progress: Progress | None = None) -> None:
    """Encode the calls, each with its caller over `copies` lines, and train; goes on where the folder has a state.

    Without `held_out`, each tenth call is held out. Raises TrainingError, DatasetError, CheckpointError,
    TokenizerError.
    """
    source = Path(spec.model)
    if source.is_dir() and source.resolve() == spec.folder.resolve():
        raise TrainingError(f"{spec.folder}: is the model itself; give another folder for what comes out")
    entries = read_list(calls)
    others = read_list(held_out) if held_out is not None else entries[::_HELD_OUT_EACH]
    if held_out is None:
        entries = tuple(entry for entry in entries if entry not in others)
    if not entries:
        raise TrainingError(f"{calls}: one call is too few, as each tenth is held out; give held-out calls apart")
    for entry in (*entries, *others):
        read_call(entry.path)  # what is wrong with the last of them is better known now than in an hour

    def encoded(what: str, listed: tuple[Entry, ...], count: int) -> None:
        encode(listed, spec.model, spec.folder / what, copies=count, seed=plan.seed, device=plan.device,
               progress=None if progress is None else lambda done, of: progress(what, done, of))

    encoded(TRAINING, entries, copies)
    encoded(HELD_OUT, others, 1)
    train(make_task, spec, plan, spec.folder, tell)


def make_task(team: Team, spec: LoraSpec) -> Task:
    return _LoraTask(team, spec)


class _LoraTask:
    def __init__(self, team: Team, spec: LoraSpec) -> None:
        self.team, self.spec = team, spec
        self.model = load_model(spec.model, device=team.device,
                                dtype=torch.float32 if team.device.type == "cpu" else None)
        self.lm, config = self.model.lm, self.model.lm.config
        if config.depth is None:
            raise TrainingError(f"{spec.model}: has no depth transformer, so it has no agent that speaks")
        if "lora_name" in self.model.files:
            raise TrainingError(f"{spec.model}: has adapters already; give the model that they are for")
        self.module = adapt(self.lm, spec.rank, spec.scaling, torch.Generator().manual_seed(0),
                            embeddings=spec.embeddings)
        self.calls = Windows(spec.folder / TRAINING, config, spec.frames)
        self.held_out = Windows(spec.folder / HELD_OUT, config, spec.frames) if team.rank == 0 else None

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, float]]:
        del step
        batch = self.calls.draw(max(1, self.spec.batch // self.team.size), generator)
        return self._losses(batch)

    def evaluate(self) -> Mapping[str, float]:
        assert self.held_out is not None
        rows = [self._losses(batch)[1] for batch in self.held_out.beginnings(_EVALUATED)]
        found = {name: [row[name] for row in rows if math.isfinite(row[name])] for name in rows[0]}
        return {name: sum(values) / len(values) for name, values in found.items() if values}

    def export(self, folder: Path) -> None:
        export(self.model, self.module.state_dict(), self.spec, folder)

    def _losses(self, batch: Batch) -> tuple[Tensor, Mapping[str, float]]:
        """Of a batch whose windows may be computed a few at a time: the sums are those of all at once."""
        text_weights, audio_weights = loss_weights(batch, self.lm.config, self.spec)
        tensors = [tensor.to(self.team.device) for tensor in (batch.codes, text_weights, audio_weights)]
        parts = list(zip(*(tensor.split(self.spec.at_once) for tensor in tensors), strict=True))
        sums = torch.zeros(5, device=self.team.device)
        for part in parts:
            if len(parts) > 1 and torch.is_grad_enabled():
                sums = sums + checkpoint(self._sums, *part, use_reentrant=False, preserve_rng_state=False)
            else:
                sums = sums + self._sums(*part)
        totals = torch.stack([text_weights.sum(), audio_weights.sum(), audio_weights[:, 0].sum()]).to(sums.device)
        text, audio, first = sums[:3] / totals.clamp(min=1e-6)
        right, pieces = sums[3:].tolist()
        return text + audio, {"text": text.item(), "audio": audio.item(), "first": first.item(),
                              "pieces": right / pieces if pieces else math.nan}

    def _sums(self, codes: Tensor, text_weights: Tensor, audio_weights: Tensor) -> Tensor:
        """Weighted sums of the losses: of the text, of all codebooks, of the first; pieces that are right, pieces."""
        out = self.lm(codes)
        agent = self.lm.config.agent_codebooks
        text, audio = codes[:, 0].clamp(min=0), codes[:, 1:1 + agent].clamp(min=0)
        text_losses = F.cross_entropy(out.text_logits[:, 0].float().transpose(1, 2), text, reduction="none")
        losses = F.cross_entropy(out.logits[:, :agent].float().permute(0, 3, 1, 2), audio, reduction="none")
        weighted = losses * audio_weights
        pieces = (text_weights > 0) & (text != PAD_TOKEN) & (text != EPAD_TOKEN)
        right = pieces & (out.text_logits[:, 0].argmax(-1) == text)
        return torch.stack([(text_losses * text_weights).sum(), weighted.sum(), weighted[:, 0].sum().detach(),
                            right.sum().float(), pieces.sum().float()])


def loss_weights(batch: Batch, config: LMConfig, spec: LoraSpec) -> tuple[Tensor, Tensor]:
    """Of the text [B, frames] and the agent's codebooks [B, agent codebooks, frames]: 0 where nothing is learnt."""
    text = batch.codes[:, 0]
    padding = (text == PAD_TOKEN) | (text == EPAD_TOKEN)
    text_weights = (batch.text_learnt & (text != ZERO_TOKEN)) * torch.where(padding, spec.padding, 1.0)
    audio = batch.codes[:, 1:1 + config.agent_codebooks]
    weights = ((audio != ZERO_TOKEN) & batch.learnt[:, None]).float()
    weights[:, 0] *= spec.first_codebook
    for k, delay in enumerate(config.delays[1:1 + config.agent_codebooks]):
        weights[:, k, max(0, audio.shape[2] - delay):] = 0  # predicted past the window's end
    return text_weights, weights


def export(model: Model, trained: Mapping[str, Tensor], spec: LoraSpec, folder: Path) -> None:
    """Write a folder that `load_model` loads: the adapters, and the config, which names a repository's files where
    they are; those of a folder are copied, once."""
    content: Mapping[str, Any] = model.config
    if all(key in NOT_THE_LMS for key in content):
        content = {**FIRST_7B, "dep_q": model.lm.config.generated_codebooks, **content}
    names = {}
    for key, file in model.files.items():
        names[key] = file.name if "://" in file.name else Path(file.name).name
        kept = folder / names[key]
        if "://" not in file.name and not kept.exists():
            part = kept.with_name(f"{kept.name}.part")
            shutil.copyfile(file.path, part)
            part.replace(kept)
    save_file({name: tensor.contiguous().cpu() for name, tensor in trained.items()}, folder / LORA_FILE)
    config = {**content, **names, "lora": True, "lora_rank": spec.rank, "lora_scaling": spec.scaling,
              "lora_name": LORA_FILE}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def default_plan(steps: int, learning_rate: float, *, seed: int, processes: int, device: str) -> Plan:
    """The public code's: a twentieth of the steps warms up, weight decay 0.1."""
    return Plan(steps, learning_rate, weight_decay=0.1, warmup=max(1, steps // 20), seed=seed, processes=processes,
                device=device, log_every=max(1, min(50, steps // 20)), evaluate_every=max(1, min(500, steps // 5)),
                save_every=max(1, min(500, steps // 5)))


__all__ = ["LoraSpec", "default_plan", "export", "fine_tune", "loss_weights", "make_task"]
