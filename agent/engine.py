"""The engine: one device, many slots, one step for all that are ready. encode -> generate -> decode.

pcm ─ encode ─▶ caller codes ─ generate ─▶ text, agent codes ─ align by the delays ─ decode ─▶ pcm
                     └──────── transcribe ─▶ the caller's text, pauses; where there is a speech-to-text model
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from agent.moshi.checkpoint import Model
from agent.moshi.config import PAD_TOKEN
from agent.moshi.generate import Controls, Generated, History
from agent.moshi.kv import PLAIN, KVSettings
from agent.moshi.layers import to_device
from agent.moshi.prompt import PromptError
from agent.moshi.sampling import tier_of
from agent.moshi.stages import Stages, bucket_of
from agent.moshi.transcribe import Transcribed, Transcriber, check_same_codes
from agent.personas import Personas
from agent.snapshot import Snapshot
from agent.step import Bools, Engine, Floats, Ints, ModelInfo, Past, Sampling, StepInputs, StepOutputs, TextMode
from calls.wire import Persona

__all__ = [
    "EchoEngine", "Engine", "ModelInfo", "MoshiEngine", "Sampling", "StepInputs", "StepOutputs", "TextMode",
    "measure_threads",
]


class MoshiEngine:
    """A checkpoint with room for `slots` conversations, and beside it a speech-to-text model, if there is one, that
    hears the same codes. All state is allocated here, none in a step. Raises CheckpointError for a speech-to-text model
    that hears others. `voices` is a folder of voices, beside those that the checkpoint brings."""

    def __init__(self, model: Model, slots: int, stt: Model | None = None, voices: Path | None = None,
                 kv: KVSettings = PLAIN) -> None:
        if slots < 1:
            raise ValueError(f"an engine needs at least one slot, not {slots}")
        self._transcriber: Transcriber | None = None
        if stt is not None:
            check_same_codes(model, stt)
            self._transcriber = Transcriber(stt.lm, slots)
        self.model, self._slots, self.device = model, slots, model.device
        lm, mimi = model.lm.config, model.mimi.config
        self._info = ModelInfo(
            name=model.name, sample_rate=mimi.sample_rate, frame_samples=mimi.frame_samples,
            generated_codebooks=lm.generated_codebooks, agent_codebooks=lm.agent_codebooks,
            caller_codebooks=lm.caller_codebooks, largest_delay=lm.largest_delay, context=lm.temporal.context or 0,
            pause_heads=lm.extra_heads if stt is None else stt.lm.config.extra_heads,
            pause_classes=lm.extra_classes if stt is None else 1, text_tokens=lm.text_card_out,
            codebook_size=lm.audio_card)
        self.stages = Stages(model, slots, kv)
        self._personas = Personas(
            model, lambda prompt: self.stages.prefill(prompt.history, prompt.embeddings), voices)
        self._codebooks = max(lm.caller_codebooks, self._transcriber.codebooks if self._transcriber else 0)
        self._silence = np.full(lm.generated_codebooks, -1, np.int64)
        self._silence[:lm.agent_codebooks] = model.silence()[:lm.generated_codebooks]

    @property
    def info(self) -> ModelInfo:
        return self._info

    @property
    def slots(self) -> int:
        return self._slots

    @property
    def silence(self) -> Ints:
        return self._silence

    def default_sampling(self, rows: int) -> Sampling:
        """The checkpoint's own settings, where it has any."""
        names = {"temp": "audio_temperature", "temp_text": "text_temperature", "top_k": "audio_top_k",
                 "top_k_text": "text_top_k"}
        own = self.model.generation
        given = {ours: own[theirs] for theirs, ours in names.items() if theirs in own}
        return Sampling.of(rows, **given)

    def step(self, inputs: StepInputs, *, transcribe: bool = True) -> StepOutputs:
        """One frame of each given slot; the host waits for the device once, for the results. Without `transcribe` the
        speech-to-text model, if there is one, misses this frame."""
        inputs.check(self._info, self._slots)
        return self._step(inputs, None, transcribe)

    def step_codes(self, inputs: StepInputs, caller_codes: Ints) -> StepOutputs:
        """The same of what was heard once, `caller_codes` [B, caller codebooks], in place of `inputs.pcm`. A slot is
        stepped either so or by `step`: the codec's memory of what was heard stays as it is. Raises ValueError."""
        inputs.check(self._info, self._slots)
        wanted = (len(inputs.slots), self._info.caller_codebooks)
        if caller_codes.shape != wanted:
            raise ValueError(f"step: caller_codes has shape {list(caller_codes.shape)}, not {list(wanted)}")
        if caller_codes.size and not 0 <= caller_codes.min() <= caller_codes.max() < self._info.codebook_size:
            raise ValueError(f"step: caller_codes must be from 0 to {self._info.codebook_size - 1}")
        return self._step(inputs, caller_codes, transcribe=False)

    def prepare(self, persona: Persona) -> None:
        """Have what `begin` copies; takes a pass over the whole prompt the first time. Raises PromptError."""
        self._personas.prefilled(persona)

    def begin(self, slot: int, persona: Persona) -> None:
        """A slot starts anew in its next step, which isn't `fresh` then, as somebody. May run on another thread than
        `step`'s, beside steps of other slots. Raises PromptError; then nothing has changed."""
        self.stages.begin(slot, self._personas.prefilled(persona))
        if self._transcriber is not None:
            self._transcriber.begin(slot)

    def rebuild(self, slot: int, past: Past, persona: Persona | None = None) -> None:
        """Bring a slot to where it would be after these steps, which it took as somebody, where there is a `persona`: a
        prompt that the window has left behind counts no more. May run on another thread than `step`'s, beside steps of
        other slots. Raises ValueError for what isn't of this model; then nothing has changed."""
        info = self._info
        prompt = self._personas.prompt(persona) if persona and past.whole else None
        past.check(info)
        own = info.agent_codebooks
        text, agent, caller, silence = (self._on_device(part, np.int64) for part in (
            past.text, past.agent_codes[:own], past.caller_codes, self._silence[:own]))
        heard, missed = (self._on_device(part, np.float32) for part in (past.heard, past.missed))
        missed_codes = self.stages.rebuild(
            slot, History(text, agent, caller), heard, missed, silence, self._codebooks,
            prompt.history if prompt else None, prompt.embeddings if prompt else None)
        if self._transcriber is not None and self._transcriber.codebooks <= info.caller_codebooks:
            written = torch.from_numpy(past.caller_text >= 0).to(self.device)
            said = self._on_device(past.caller_text, np.int64)[written]
            self._transcriber.rebuild(slot, said, caller[:self._transcriber.codebooks, written])
            for codes in missed_codes:
                self._transcriber.step([slot], [False], codes[None])

    def save(self, slot: int) -> Snapshot:
        """All there is of a slot, which isn't stepped meanwhile. Waits for the device."""
        return Snapshot.of(self._state_rows(), slot, self._info.name, self.device.type)

    def restore(self, slot: int, snapshot: Snapshot) -> None:
        """Go on in a slot, which isn't stepped meanwhile, where another one was: bit for bit. Raises ValueError for the
        snapshot of another model or another kind of device; then nothing has changed."""
        snapshot.put(self._state_rows(), slot, self._info.name, self.device.type)

    def _state_rows(self) -> dict[str, Tensor]:
        rows = self.stages.state_rows()
        if self._transcriber is not None:
            rows |= {f"transcriber.{name}": tensor for name, tensor in self._transcriber.state_rows().items()}
        return rows

    def _on_device(self, array: Ints | Floats, dtype: type) -> Tensor:
        return to_device(torch.from_numpy(np.ascontiguousarray(array, dtype)), self.device)

    @torch.inference_mode()
    def _step(self, inputs: StepInputs, given_codes: Ints | None, transcribe: bool) -> StepOutputs:
        slots, fresh = inputs.slots.tolist(), inputs.fresh.tolist()
        count = len(slots)
        stages, info = self.stages, self._info
        if given_codes is None:
            frames = torch.zeros(bucket_of(count), info.frame_samples)
            frames[:count] = torch.from_numpy(np.ascontiguousarray(inputs.pcm, np.float32))
            caller_codes = stages.encode(slots, fresh, to_device(frames, self.device), self._codebooks)
        else:
            caller_codes = self._packed(list(given_codes.T), bucket_of(count), torch.int64).t()
        heard_codes = caller_codes[:, :info.caller_codebooks]
        generated = stages.generate(slots, fresh, heard_codes, self._controls(inputs))
        transcribed = None
        if transcribe and self._transcriber is not None:
            transcribed = self._transcriber.step(slots, fresh, caller_codes)
        speaks = stages.generate_clock.positions[inputs.slots] > info.largest_delay
        if info.agent_codebooks == 0:
            speaks[:] = False
        stages.decode_clock.positions[inputs.slots[inputs.fresh]] = 0
        heard = None
        if speaks.any():
            # rows without a frame yet decode into the scratch slot: their own slots' state stays as it is
            decoded = np.where(speaks, inputs.slots, stages.decode_clock.scratch).tolist()
            heard = stages.decode(decoded, [False] * count, generated.aligned[:, 1:].clamp(min=0))
        return self._outputs(count, speaks, heard, heard_codes, generated, transcribed)

    def _controls(self, inputs: StepInputs) -> Controls:
        """The inputs' controls on the device, filled up to the bucket; padding is greedy and free."""
        sampling, size = inputs.sampling, bucket_of(len(inputs.slots))
        whole = self._packed([inputs.text_mode, inputs.forced_text, sampling.seed, sampling.text_top_k,
                              sampling.audio_top_k, *inputs.forced_audio.T], size, torch.int64)
        real = self._packed([sampling.text_temperature, sampling.audio_temperature, sampling.pad_bias,
                             sampling.repetition_penalty], size, torch.float32)
        return Controls(
            text_mode=whole[0], forced_text=whole[1], seed=whole[2], text_top_k=whole[3], audio_top_k=whole[4],
            forced_audio=whole[5:].t(), text_temperature=real[0], audio_temperature=real[1], pad_bias=real[2],
            repetition_penalty=real[3],
            text_tiers=_tiers(sampling.text_temperature, sampling.text_top_k),
            audio_tiers=_tiers(sampling.audio_temperature, sampling.audio_top_k),
            barred=bool((inputs.text_mode != TextMode.FREE).any()),
            penalised=bool((sampling.repetition_penalty != 1).any()))

    def _packed(self, columns: Sequence[Ints | Floats], size: int, dtype: torch.dtype) -> Tensor:
        """Columns [B] as one tensor [columns, size] on the device: one transfer."""
        packed = torch.zeros(len(columns), size, dtype=dtype)
        for row, column in zip(packed.numpy(), columns, strict=True):
            row[:len(column)] = column
        return to_device(packed, self.device)

    def _outputs(self, count: int, speaks: Bools, heard: Tensor | None, caller_codes: Tensor,
                 generated: Generated, transcribed: Transcribed | None) -> StepOutputs:
        caller_text, pauses = self._of_the_caller(generated, transcribed)
        tensors = [caller_codes, generated.text, generated.sampled_text, generated.codes, caller_text, pauses,
                   generated.text_entropy, generated.audio_entropy, generated.codebook_spread]
        if heard is not None:
            tensors.append(heard)
        if self.device.type != "cpu":
            tensors = [torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
                       for tensor in tensors]
            torch.accelerator.current_stream(self.device).synchronize()  # the one wait
        caller, text, sampled, codes, said, paused, entropy, middle, spread, *sound = [
            tensor[:count].numpy() for tensor in tensors]
        pcm = np.zeros((count, self._info.frame_samples), np.float32)
        if sound:
            pcm[speaks] = sound[0][speaks]
        return StepOutputs(
            pcm=pcm, text=text, sampled_text=sampled, agent_codes=codes, caller_codes=caller,
            caller_text=said, pauses=paused, text_entropy=entropy, audio_entropy=middle,
            codebook_spread=spread)

    def _of_the_caller(self, generated: Generated, transcribed: Transcribed | None) -> tuple[Tensor, Tensor]:
        """The caller's text [B] and pauses [B, heads, classes], by whichever model writes them."""
        if transcribed is not None:
            return transcribed.text, transcribed.pauses[..., None]
        nothing = torch.full_like(generated.text, -1)
        if self._transcriber is not None:
            return nothing, generated.pauses.new_zeros(len(nothing), self._info.pause_heads, 1)
        return generated.text if self._info.generated_codebooks == 0 else nothing, generated.pauses


def _tiers(temperature: Floats, top_k: Ints) -> tuple[int, ...]:
    return tuple(sorted({tier_of(int(k)) for k in top_k[temperature > 0]}))


class EchoEngine:
    """Gives back what it hears, one frame later; for tests of the audio path."""

    def __init__(self, slots: int, sample_rate: int = 24000, frame_samples: int = 1920) -> None:
        self._info = ModelInfo(
            name="echo", sample_rate=sample_rate, frame_samples=frame_samples, generated_codebooks=0,
            agent_codebooks=0, caller_codebooks=0, largest_delay=1, context=1, pause_heads=0, pause_classes=0,
            text_tokens=PAD_TOKEN + 1, codebook_size=1)
        self._slots = slots
        self._heard = np.zeros((slots, frame_samples), np.float32)

    @property
    def info(self) -> ModelInfo:
        return self._info

    @property
    def slots(self) -> int:
        return self._slots

    @property
    def silence(self) -> Ints:
        return np.zeros(0, np.int64)

    def default_sampling(self, rows: int) -> Sampling:
        return Sampling.of(rows)

    def prepare(self, persona: Persona) -> None:
        raise PromptError("the echo isn't anybody")

    def begin(self, slot: int, persona: Persona) -> None:
        raise PromptError("the echo isn't anybody")

    def rebuild(self, slot: int, past: Past, persona: Persona | None = None) -> None:
        past.check(self._info)
        before = np.concatenate([past.heard, past.missed])
        self._heard[slot] = before[-1] if len(before) else 0

    def step(self, inputs: StepInputs, *, transcribe: bool = True) -> StepOutputs:
        inputs.check(self._info, self._slots)
        pcm = self._heard[inputs.slots]
        pcm[inputs.fresh] = 0
        self._heard[inputs.slots] = inputs.pcm
        rows = len(inputs.slots)
        none, zero = np.zeros((rows, 0), np.int64), np.zeros(rows, np.float32)
        return StepOutputs(
            pcm=pcm, text=np.full(rows, PAD_TOKEN, np.int64), sampled_text=np.full(rows, PAD_TOKEN, np.int64),
            agent_codes=none, caller_codes=none, caller_text=np.full(rows, -1, np.int64),
            pauses=np.zeros((rows, 0, 0), np.float32), text_entropy=zero, audio_entropy=zero,
            codebook_spread=zero)


def measure_threads(engine: MoshiEngine, most: int | None = None, budget_s: float = 5.0) -> int:
    """How many threads inside torch make a step of all slots fastest here. Steps the scratch slot alone.

    More threads than idle cores cost a factor of ten and more, so one more must be worth it: the smallest count
    within 10 % of the best wins.
    """
    most = most or torch.get_num_threads()
    before = torch.get_num_threads()
    counts = sorted({1, *(n for n in (2, 4, 8, 16, 32) if n < most), most})
    times: dict[int, float] = {}
    deadline = time.monotonic() + budget_s
    try:
        for count in counts:
            torch.set_num_threads(count)
            times[count] = _median_time(lambda: _scratch_step(engine), deadline)
            if time.monotonic() > deadline:
                break
    finally:
        torch.set_num_threads(before)
    best = min(times.values())
    return next(count for count in counts if times.get(count, np.inf) <= 1.1 * best)


def _scratch_step(engine: MoshiEngine) -> None:
    """A whole step of all slots' size in which every row works on the scratch slot."""
    stages, rows = engine.stages, bucket_of(engine.slots)
    scratch, fresh = [engine.slots] * rows, [True] * rows
    with torch.inference_mode():
        pcm = torch.zeros(rows, engine.info.frame_samples, device=engine.device)
        caller_codes = stages.encode(scratch, fresh, pcm, engine.info.caller_codebooks)
        controls = Controls.greedy(rows, engine.info.generated_codebooks, engine.device)
        generated = stages.generate(scratch, fresh, caller_codes, controls)
        if engine.info.agent_codebooks:
            stages.decode(scratch, fresh, generated.aligned[:, 1:].clamp(min=0))
        generated.text.cpu()  # wait for the device


def _median_time(call: Callable[[], None], deadline: float, times: int = 5) -> float:
    call()
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
        if time.monotonic() > deadline:
            break
    return float(np.median(taken))
