"""The engine: one device, many slots, one step for all that are ready. encode -> generate -> decode.

pcm ─ encode ─▶ caller codes ─ generate ─▶ text, agent codes ─ align by the delays ─ decode ─▶ pcm
                     └──────── transcribe ─▶ the caller's text, pauses; where there is a speech-to-text model
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from agent import frames
from agent.moshi.checkpoint import Model
from agent.moshi.config import PAD_TOKEN
from agent.moshi.frame import Frame, Known, Plan
from agent.moshi.generate import Controls, History
from agent.moshi.graphs import Capture, Graphs
from agent.moshi.kv import PLAIN, KVSettings, SlotRows
from agent.moshi.layers import to_device
from agent.moshi.prompt import Prompt, PromptError
from agent.moshi.sampling import tier_of
from agent.moshi.stages import Stages, bucket_of
from agent.moshi.transcribe import Transcriber, check_same_codes
from agent.personas import Personas
from agent.snapshot import Snapshot
from agent.step import Engine, Floats, Ints, ModelInfo, Past, Sampling, StepInputs, StepOutputs, TextMode
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
                 kv: KVSettings = PLAIN, capture: Capture | None = None) -> None:
        """With `capture` steps are captured, once `prepare_steps` was called, and replayed."""
        if slots < 1:
            raise ValueError(f"an engine needs at least one slot, not {slots}")
        self.transcriber: Transcriber | None = None
        if stt is not None:
            check_same_codes(model, stt)
            self.transcriber = Transcriber(stt.lm, slots, KVSettings(page=kv.page))
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
        self.frame = Frame(model, self.stages, self.transcriber)
        self.graphs: Graphs | None = None
        if capture is not None:
            own = self.default_sampling(1)
            self.graphs = Graphs(self.frame, (_tiers(own.text_temperature, own.text_top_k),
                                              _tiers(own.audio_temperature, own.audio_top_k)), capture)
        self._run = self.frame.run if self.graphs is None else self.graphs.run
        # what takes longer than a step goes beside the steps, where a device can do two things
        self._beside = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
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

    def prepare_steps(self) -> None:
        """Capture what can be; takes its time. Before the first step."""
        if self.graphs is not None:
            self.graphs.prepare()

    def prepare(self, persona: Persona) -> None:
        """Have what `begin` copies; takes a pass over the whole prompt the first time. Raises PromptError."""
        with self._beside_steps():
            self._personas.prefilled(persona)

    def begin(self, slot: int, persona: Persona) -> None:
        """A slot starts anew in its next step, which isn't `fresh` then, as somebody. May run on another thread than
        `step`'s, beside steps of other slots. Raises PromptError; then nothing has changed."""
        self.stages.begin(slot, self._personas.prefilled(persona))
        if self.transcriber is not None:
            self.transcriber.begin(slot)

    def release(self, slot: int) -> None:
        """The slot isn't stepped any more until it starts anew: others may have the memory that it took."""
        self.stages.generator.ring.release(slot)
        if self.transcriber is not None:
            self.transcriber.state.ring.release(slot)

    def rebuild(self, slot: int, past: Past, persona: Persona | None = None) -> None:
        """Bring a slot to where it would be after these steps, which it took as somebody, where there is a `persona`: a
        prompt that the window has left behind counts no more. May run on another thread than `step`'s, beside steps of
        other slots. Raises ValueError for what isn't of this model; then nothing has changed."""
        info = self._info
        prompt = self._personas.prompt(persona) if persona and past.whole else None
        past.check(info)
        with self._beside_steps():
            self._rebuild(slot, past, prompt)

    def _rebuild(self, slot: int, past: Past, prompt: Prompt | None) -> None:
        info = self._info
        own = info.agent_codebooks
        text, agent, caller, silence = (self._on_device(part, np.int64) for part in (
            past.text, past.agent_codes[:own], past.caller_codes, self._silence[:own]))
        heard, missed = (self._on_device(part, np.float32) for part in (past.heard, past.missed))
        missed_codes = self.stages.rebuild(
            slot, History(text, agent, caller), heard, missed, silence, self.frame.codebooks,
            prompt.history if prompt else None, prompt.embeddings if prompt else None)
        if self.transcriber is not None and self.transcriber.codebooks <= info.caller_codebooks:
            written = torch.from_numpy(past.caller_text >= 0).to(self.device)
            said = self._on_device(past.caller_text, np.int64)[written]
            self.transcriber.rebuild(slot, said, caller[:self.transcriber.codebooks, written])
            for codes in missed_codes:
                self.transcriber.step([slot], [False], codes[None])

    def save(self, slot: int) -> Snapshot:
        """All there is of a slot, which isn't stepped meanwhile. Waits for the device."""
        return Snapshot.of(self._state_rows(), slot, self._info.name, self.device.type)

    def restore(self, slot: int, snapshot: Snapshot) -> None:
        """Go on in a slot, which isn't stepped meanwhile, where another one was: bit for bit. Raises ValueError for the
        snapshot of another model or another kind of device; then nothing has changed."""
        rows = self._state_rows()
        snapshot.check(rows, self._info.name, self.device.type)
        rings = {"generator": self.stages.generator.ring}
        if self.transcriber is not None:
            rings["transcriber"] = self.transcriber.state.ring
        for name, ring in rings.items():
            length = snapshot.rows.get(f"{name}.ring.length")
            ring.take(slot, int(snapshot.rows[f"{name}.position"]), ring.length if length is None else int(length))
        snapshot.put(rows, slot)

    def _state_rows(self) -> dict[str, SlotRows]:
        rows = self.stages.state_rows()
        if self.transcriber is not None:
            rows |= {f"transcriber.{name}": part for name, part in self.transcriber.state_rows().items()}
        return rows

    @contextmanager
    def _beside_steps(self) -> Iterator[None]:
        """What isn't a step, in a stream of its own, after what was asked of the device before; waits for its end."""
        if self._beside is None:
            yield
            return
        self._beside.wait_stream(torch.cuda.default_stream(self.device))
        with torch.cuda.stream(self._beside):
            yield
        self._beside.synchronize()

    def _on_device(self, array: Ints | Floats, dtype: type) -> Tensor:
        return to_device(torch.from_numpy(np.ascontiguousarray(array, dtype)), self.device)

    def _step(self, inputs: StepInputs, given_codes: Ints | None, transcribe: bool) -> StepOutputs:
        slots, fresh, stages = inputs.slots.tolist(), inputs.fresh.tolist(), self.stages
        generated = stages.generate_clock.count(slots, fresh)
        speaks = np.full(len(slots), False)
        if self.frame.speaks:
            speaks = stages.generate_clock.positions[inputs.slots] > self._info.largest_delay
        stages.decode_clock.positions[inputs.slots[inputs.fresh]] = 0
        # rows without a frame yet decode into the scratch slot: their own slots' state stays as it is
        decoding = np.where(speaks, inputs.slots, stages.decode_clock.scratch).tolist()
        transcriber = self.transcriber if transcribe and given_codes is None else None
        known = Known(
            encoded=stages.encode_clock.count(slots, fresh) if given_codes is None else None, generated=generated,
            decoded=stages.decode_clock.count(decoding, [False] * len(slots)),
            transcribed=transcriber.clock.count(slots, fresh) if transcriber is not None else None)
        self._ready(known)
        positions = [position for pairs in (generated, known.transcribed or ()) for _, position in pairs]
        sampling = inputs.sampling
        plan = Plan(
            rows=len(generated), reach=self.frame.reach_of(max(positions)), hears=given_codes is None,
            speaks=bool(speaks.any()), transcribes=transcriber is not None,
            text_tiers=_tiers(sampling.text_temperature, sampling.text_top_k),
            audio_tiers=_tiers(sampling.audio_temperature, sampling.audio_top_k),
            barred=bool((inputs.text_mode != TextMode.FREE).any()),
            penalised=bool((sampling.repetition_penalty != 1).any()))
        buffers = self.frame.buffers[plan.rows]
        frames.write(buffers, inputs, known, given_codes)
        buffers.send()
        self._run(plan, known)
        buffers.fetch()
        return frames.read(buffers, speaks, self._info)

    @torch.inference_mode()
    def _ready(self, known: Known) -> None:
        """See that all rings have room for their rows."""
        stages = self.stages
        rings = [(stages.encoder.ring, known.encoded), (stages.generator.ring, known.generated),
                 (stages.decoder.ring, known.decoded)]
        if self.transcriber is not None:
            rings.append((self.transcriber.state.ring, known.transcribed))
        for ring, pairs in rings:
            ring.ready(pairs or ())


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

    def release(self, slot: int) -> None:
        pass

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
