"""Golden cases: what the reference implementation computed, replayed through the stages that a worker runs.

Streamed cases go through `Stages`, slot by slot as they were masked and reset; whole-signal cases go through the
parallel forwards. On a CPU in float32 tokens must be equal and floats agree to 1e-3 of their standard deviation.
Other devices and types round differently, and a flipped token changes all that follows: there each step is judged
given the expected past, and the share of equal tokens must reach a stated bound.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from agent.moshi.checkpoint import Model, load_model
from agent.moshi.config import UNGENERATED, LMConfig
from agent.moshi.generate import Controls
from agent.moshi.kv import KVSettings
from agent.moshi.quantised import EightBits
from agent.moshi.safetensors_file import CheckpointError, SafetensorsFile
from agent.moshi.stages import Stages, bucket_of


@dataclass(frozen=True)
class Bounds:
    """What counts as agreement."""

    tokens: float  # share of equal ones, at least
    error: float  # of floats, in standard deviations of what is expected, at most
    worst: bool  # the error is the greatest one, else the root of the mean square


EXACT = Bounds(tokens=1.0, error=1e-3, worst=True)
OTHER_DEVICE = Bounds(tokens=0.99, error=1e-2, worst=False)
BFLOAT16 = Bounds(tokens=0.7, error=0.15, worst=False)
INT8_WEIGHTS, INT8_KV = BFLOAT16, Bounds(tokens=0.85, error=0.03, worst=False)
FP8_KV = Bounds(tokens=0.6, error=0.15, worst=False)


@dataclass(frozen=True)
class CaseResult:
    """How one case came out; its text is one line."""

    name: str
    kind: str
    agrees: bool
    detail: str

    def __str__(self) -> str:
        return f"{'agrees ' if self.agrees else 'DIFFERS'} {self.name} ({self.kind}): {self.detail}"


@dataclass
class _Judge:
    """Collects comparisons of one case."""

    bounds: Bounds
    tokens: int = 0
    equal: int = 0
    squares: float = 0.0
    floats: int = 0
    worst: float = 0.0
    _sum: float = 0.0
    _sum_of_squares: float = 0.0

    def compare(self, ours: Tensor, expected: Tensor) -> None:
        ours = ours.to(expected.device)
        if ours.shape != expected.shape:
            raise CheckpointError(f"a golden case expects {list(expected.shape)}, the model gives {list(ours.shape)}")
        if not expected.is_floating_point():
            self.tokens += expected.numel()
            self.equal += int((ours == expected).sum())
            return
        error = (ours.double() - expected.double()).abs()
        self.floats += expected.numel()
        self.squares += float(error.square().sum())
        self.worst = max(self.worst, float(error.max()) if error.isfinite().all() else float("inf"))
        self._sum += float(expected.double().sum())
        self._sum_of_squares += float(expected.double().square().sum())

    def result(self, name: str, kind: str) -> CaseResult:
        agrees, details = True, []
        if self.tokens:
            agrees = self.equal >= self.bounds.tokens * self.tokens
            details.append(f"{self.equal} of {self.tokens} tokens equal" + self._wanted(f"{self.bounds.tokens:.0%}"))
        if self.floats:
            deviation = (self._sum_of_squares / self.floats - (self._sum / self.floats) ** 2) ** 0.5
            absolute = self.worst if self.bounds.worst else (self.squares / self.floats) ** 0.5
            error = absolute / deviation if deviation > 0 else absolute
            agrees = agrees and error <= self.bounds.error  # False for NaN
            details.append(f"floats {'at most' if self.bounds.worst else 'about'} {error:.1e} deviations off"
                           + self._wanted(f"{self.bounds.error:g}"))
        if not details:
            raise CheckpointError(f"golden case {name} compares nothing")
        return CaseResult(name, kind, agrees, ", ".join(details))

    def _wanted(self, bound: str) -> str:
        return "" if self.bounds is EXACT else f" (bound {bound})"


def verify(directory: Path, device: torch.device, dtype: torch.dtype, weights: EightBits | None = None,
           kv: EightBits | None = None) -> list[CaseResult]:
    """Replay all golden cases of a checkpoint folder. Raises CheckpointError, one line, if that can't be done."""
    cases = _case_list(directory)
    model = load_model(directory, device=device, dtype=dtype, weights=weights)
    with SafetensorsFile(directory / "cases.safetensors") as file:
        return [_replay(_Tried(model, KVSettings(kv), _bounds(model, dtype, weights, kv)),
                        _Case(case["name"], case["kind"], file)) for case in cases]


@dataclass(frozen=True)
class _Tried:
    """What is judged, and by which bounds: its language model's, and its codec's."""

    model: Model
    kv: KVSettings
    bounds: Bounds

    @property
    def codec_bounds(self) -> Bounds:
        """Mimi is float32 always."""
        return EXACT if self.model.device.type == "cpu" else OTHER_DEVICE


def _replay(tried: _Tried, case: _Case) -> CaseResult:
    try:
        return _KINDS[case.kind](tried, case)
    except (IndexError, RuntimeError) as error:  # shapes and tokens that aren't this model's
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"golden case {case.name} doesn't fit the model: {why}") from error


class _Case:
    """A case's tensors."""

    def __init__(self, name: str, kind: str, file: SafetensorsFile) -> None:
        self.name, self.kind, self._file = name, kind, file

    def __getitem__(self, tensor: str) -> Tensor:
        return self._file.read(f"{self.name}.{tensor}")

    def get(self, tensor: str) -> Tensor | None:
        return self[tensor] if f"{self.name}.{tensor}" in self._file.tensors else None


def _case_list(directory: Path) -> list[dict[str, str]]:
    path = directory / "cases.json"
    if not path.is_file():
        raise CheckpointError(f"{directory}: no golden cases here: cases.json is missing")
    try:
        cases = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a JSON file: {error}") from None
    if not isinstance(cases, list) or not cases:
        raise CheckpointError(f"{path}: must be a list of cases")
    for case in cases:
        if not isinstance(case, dict) or not isinstance(case.get("name"), str) or case.get("kind") not in _KINDS:
            raise CheckpointError(f"{path}: {case!r} is no case; kinds are {', '.join(_KINDS)}")
    return cases


def _bounds(model: Model, dtype: torch.dtype, weights: EightBits | None, kv: EightBits | None) -> Bounds:
    if kv == "fp8":
        return FP8_KV
    if kv and not weights and dtype == torch.float32:
        return INT8_KV
    if weights:
        return INT8_WEIGHTS
    if dtype != torch.float32:
        return BFLOAT16
    return EXACT if model.device.type == "cpu" else OTHER_DEVICE


def _lm_forward(tried: _Tried, case: _Case) -> CaseResult:
    model, judge = tried.model, _Judge(tried.bounds)
    with torch.inference_mode():
        out = model.lm(case["codes"].to(model.device))
    for ours, our_mask, name, mask_name in ((out.logits, out.mask, "logits", "mask"),
                                            (out.text_logits, out.text_mask, "text_logits", "text_mask")):
        mask = case[mask_name]
        if not torch.equal(our_mask.cpu(), mask):
            return CaseResult(case.name, case.kind, False, f"{mask_name} is not what is expected")
        judge.compare(ours.float().cpu()[mask], case[name][mask])
    return judge.result(case.name, case.kind)


def _lm_stream(tried: _Tried, case: _Case) -> CaseResult:
    model = tried.model
    config, judge = model.lm.config, _Judge(tried.bounds)
    user, executed, out, heads = case["user"], case["executed"], case["out"], case.get("extra_heads")
    forced_text, forced_audio = case["forced_text"], case["forced_audio"]
    stages = Stages(model, executed.shape[1], tried.kv)
    teacher = None if judge.bounds is EXACT else _expected_tokens(config, case["reset"], executed, out)
    for t, slots, fresh in _steps(executed, case["reset"]):
        controls = Controls.greedy(
            bucket_of(len(slots)), config.generated_codebooks, model.device,
            _bucket(forced_text[t, slots], model, -1), _bucket(forced_audio[t, slots], model, -1))
        generated = stages.generate(slots, fresh, _bucket(user[t, slots], model, 0), controls)
        count = len(slots)
        if heads is not None:
            judge.compare(generated.pauses[:count].cpu(), heads[t, slots])
        if teacher is None:
            judge.compare(generated.aligned[:count].cpu(), out[t, slots])
            continue
        expected = teacher[t, slots]  # [rows, 1 + agent codebooks], of this step; UNGENERATED where never told
        taken = torch.cat([generated.text[:count, None], generated.codes[:count]], dim=1).cpu()
        told = expected != UNGENERATED
        judge.compare(taken[told], expected[told])
        _overwrite(stages, slots, torch.where(told, expected, taken))
    return judge.result(case.name, case.kind)


def _expected_tokens(config: LMConfig, reset: Tensor, executed: Tensor, out: Tensor) -> Tensor:
    """The tokens that each step took [T, B, 1 + agent codebooks], told from outputs that the delays shifted."""
    steps, slots, streams = out.shape
    expected = torch.full_like(out, UNGENERATED)
    for slot in range(slots):
        ran: list[int] = []  # the steps since the slot last started anew
        for t in range(steps):
            if reset[t, slot]:
                ran = []
            if not executed[t, slot]:
                continue
            ran.append(t)
            for stream in range(streams):
                taken = len(ran) - 1 - config.largest_delay + config.delays[stream]
                if out[t, slot, stream] != UNGENERATED:
                    expected[ran[taken], slot, stream] = out[t, slot, stream]
    return expected


def _overwrite(stages: Stages, slots: Sequence[int], tokens: Tensor) -> None:
    """Make the slots believe that they took these tokens [rows, streams] in their last step."""
    ring = stages.generator.tokens
    for slot, row in zip(slots, tokens, strict=True):
        position = int(stages.generate_clock.positions[slot]) % ring.shape[2]
        ring[slot, :len(row), position] = row.to(ring.device)


def _mimi_whole(tried: _Tried, case: _Case) -> CaseResult:
    model, judge = tried.model, _Judge(tried.codec_bounds)
    codes = case["codes"]
    with torch.inference_mode():
        ours = model.mimi.encode(case["pcm"][:, 0].to(model.device), codes.shape[1])
        judge.compare(ours, codes)
        decoded = model.mimi.decode(ours if judge.bounds is EXACT else codes.to(model.device))
    judge.compare(decoded.cpu(), case["decoded"][:, 0])
    return judge.result(case.name, case.kind)


def _mimi_stream(tried: _Tried, case: _Case) -> CaseResult:
    model, judge = tried.model, _Judge(tried.codec_bounds)
    pcm, executed, codes, decoded = case["pcm"], case["executed"], case["codes"], case["decoded"]
    size, stages = model.mimi.config.frame_samples, Stages(model, executed.shape[1])
    for t, slots, fresh in _steps(executed, case["reset"]):
        frame = pcm[slots, 0, t * size:(t + 1) * size]
        ours = stages.encode(slots, fresh, _bucket(frame, model, 0), codes.shape[2])
        judge.compare(ours[:len(slots)].cpu(), codes[t, slots])
        if judge.bounds is not EXACT:
            ours = _bucket(codes[t, slots], model, 0)
        heard = stages.decode(slots, fresh, ours)
        judge.compare(heard[:len(slots)].cpu(), decoded[t, slots])
    return judge.result(case.name, case.kind)


def _steps(executed: Tensor, reset: Tensor) -> list[tuple[int, list[int], list[bool]]]:
    """Each step's slots, and which of them start anew: a reset waits until the slot's next step."""
    steps = []
    pending = [True] * executed.shape[1]
    for t, (runs, resets) in enumerate(zip(executed.tolist(), reset.tolist(), strict=True)):
        pending = [was or now for was, now in zip(pending, resets, strict=True)]
        slots = [slot for slot, run in enumerate(runs) if run]
        if slots:
            steps.append((t, slots, [pending[slot] for slot in slots]))
        for slot in slots:
            pending[slot] = False
    return steps


def _bucket(rows: Tensor, model: Model, padding: int) -> Tensor:
    """Rows on the device, filled up to the size of a bucket."""
    size = bucket_of(len(rows))
    filled = rows.new_full((size, *rows.shape[1:]), padding)
    filled[:len(rows)] = rows
    return filled.to(model.device)


_KINDS: Mapping[str, Callable[[_Tried, _Case], CaseResult]] = {
    "lm_forward": _lm_forward, "lm_stream": _lm_stream, "mimi_whole": _mimi_whole, "mimi_stream": _mimi_stream,
}
