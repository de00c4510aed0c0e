"""A whole step of B rows as one function of buffers at fixed places, which a GPU captures once and then replays.

    host                                device, no host in between                             host
    FrameBuffers.send ─▶ encode ─▶ generate (text, depth chain) ─▶ decode ─▶ FrameBuffers.fetch
                            └────────── transcribe ──────────────────┘
                         ╰───────────── Frame.run(plan) ─────────────╯

All that differs from step to step is in the buffers, in the slots' state and in a `Plan`. Steps of one plan do the same
operations in the same order on the same memory; so for each plan they can be captured.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agent.moshi.checkpoint import Model
from agent.moshi.generate import Controls, Generated
from agent.moshi.layers import Rows
from agent.moshi.stages import Stages
from agent.moshi.transcribe import Transcribed, Transcriber

Pairs = tuple[tuple[int, int], ...]  # (slot, position) of each row

# whole numbers that a step is given, a column each; then the caller's codes and the forced ones
SLOT, ENCODED, GENERATED, DECODING_SLOT, DECODED, TRANSCRIBED = range(6)
TEXT_MODE, FORCED_TEXT, SEED, TEXT_TOP_K, AUDIO_TOP_K, CODES = range(6, 12)
TEXT_TEMPERATURE, AUDIO_TEMPERATURE, PAD_BIAS, REPETITION_PENALTY, REALS = range(5)
TEXT, SAMPLED_TEXT, CALLER_TEXT, OUT_CODES = range(4)  # that it gives; then the agent's codes and the caller's
TEXT_ENTROPY, AUDIO_ENTROPY, CODEBOOK_SPREAD, PAUSES = range(4)


@dataclass(frozen=True)
class Plan:
    """What the host decides of a step, and a captured one can't choose for itself."""

    rows: int  # a bucket's
    reach: int | None  # Rows.reach
    hears: bool  # the caller's sound; else codes of it are given
    speaks: bool  # some row has a frame to decode
    transcribes: bool
    text_tiers: tuple[int, ...]
    audio_tiers: tuple[int, ...]
    barred: bool
    penalised: bool


@dataclass(frozen=True)
class Known:
    """Each stage's rows as the host knows them: where they are needed to read in place."""

    encoded: Pairs | None
    generated: Pairs | None
    decoded: Pairs | None
    transcribed: Pairs | None


UNKNOWN = Known(None, None, None, None)


class FrameBuffers:
    """What one step reads and writes. A CPU's host and device are one; to a GPU there are three copies, and three back,
    from and to memory that doesn't move (pinned). Used by one step at a time."""

    def __init__(self, rows: int, given: int, taken: int, reals: int, samples: int, device: torch.device) -> None:
        self._device = device
        self.host_whole, self.whole = self._pair(given, rows, dtype=torch.int64)
        self.host_real, self.real = self._pair(REALS, rows, dtype=torch.float32)
        self.host_pcm, self.pcm = self._pair(rows, samples, dtype=torch.float32)
        self.host_out_whole, self.out_whole = self._pair(rows, taken, dtype=torch.int64)
        self.host_out_real, self.out_real = self._pair(rows, reals, dtype=torch.float32)
        self.host_out_pcm, self.out_pcm = self._pair(rows, samples, dtype=torch.float32)

    def _pair(self, *shape: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        if self._device.type == "cpu":
            one = torch.zeros(*shape, dtype=dtype)
            return one, one
        pinned = self._device.type == "cuda"
        return (torch.zeros(*shape, dtype=dtype, pin_memory=pinned),
                torch.zeros(*shape, dtype=dtype, device=self._device))

    def send(self) -> None:
        """What the host wrote, to the device; without a wait."""
        if self._device.type != "cpu":
            for host, there in ((self.host_whole, self.whole), (self.host_real, self.real), (self.host_pcm, self.pcm)):
                there.copy_(host, non_blocking=True)

    def fetch(self) -> None:
        """What the step gave, to the host: the one wait of a step."""
        if self._device.type != "cpu":
            for host, there in ((self.host_out_whole, self.out_whole), (self.host_out_real, self.out_real),
                                (self.host_out_pcm, self.out_pcm)):
                host.copy_(there, non_blocking=True)
            torch.accelerator.current_stream(self._device).synchronize()


class Frame:
    """The step of a model's stages, and of the speech-to-text model that hears the same codes, if there is one."""

    def __init__(self, model: Model, stages: Stages, transcriber: Transcriber | None) -> None:
        self.stages, self.transcriber = stages, transcriber
        self._mimi, self._voice, self._lm = model.mimi, model.voice, model.lm.config
        self.codebooks = max(self._lm.caller_codebooks, transcriber.codebooks if transcriber else 0)
        heads = self._lm.extra_heads * self._lm.extra_classes if transcriber is None else transcriber.pause_heads
        given = CODES + self._lm.caller_codebooks + self._lm.generated_codebooks
        taken = OUT_CODES + self._lm.generated_codebooks + self._lm.caller_codebooks
        # all are made here: a step allocates none of them
        sizes = [1 << power for power in range(stages.bucket.bit_length())]
        self.buffers = {size: FrameBuffers(size, given, taken, PAUSES + heads, model.mimi.config.frame_samples,
                                           stages.device) for size in sizes}
        self.reaches = stages.generator.ring.reaches()

    @property
    def speaks(self) -> bool:
        """Whether it is a model with a voice."""
        return self._lm.agent_codebooks > 0

    def reach_of(self, position: int) -> int | None:
        """The least reach that holds it."""
        return next((reach for reach in self.reaches if reach > position), self.reaches[-1] if self.reaches else None)

    def idle(self, rows: int) -> None:
        """Have a bucket's next step work on the scratch slot alone."""
        buffers = self.buffers[rows]
        for buffer in (buffers.host_whole, buffers.host_real, buffers.host_pcm):
            buffer.zero_()
        whole = buffers.host_whole
        whole[SLOT], whole[DECODING_SLOT], whole[FORCED_TEXT] = self.stages.slots, self.stages.slots, -1
        whole[CODES + self._lm.caller_codebooks:] = -1
        buffers.host_real[REPETITION_PENALTY] = 1
        buffers.send()

    @torch.inference_mode()
    def run(self, plan: Plan, known: Known = UNKNOWN) -> None:
        """One step, from and to the plan's buffers. On a device other than a CPU there is no host in it."""
        stages, buffers = self.stages, self.buffers[plan.rows]
        whole, heard_count = buffers.whole, self._lm.caller_codebooks
        forced = whole[CODES + heard_count:]

        def rows(slots: int, positions: int, pairs: Pairs | None) -> Rows:
            return Rows(whole[slots], whole[positions], pairs, plan.reach)

        if plan.hears:
            caller_codes = self._mimi.encode_step(buffers.pcm, self.codebooks, stages.encoder,
                                                  rows(SLOT, ENCODED, known.encoded))
        else:
            caller_codes = whole[CODES:CODES + heard_count].t()
        real = buffers.real
        controls = Controls(
            text_mode=whole[TEXT_MODE], forced_text=whole[FORCED_TEXT], seed=whole[SEED],
            text_top_k=whole[TEXT_TOP_K], audio_top_k=whole[AUDIO_TOP_K], forced_audio=forced.t(),
            text_temperature=real[TEXT_TEMPERATURE], audio_temperature=real[AUDIO_TEMPERATURE],
            pad_bias=real[PAD_BIAS], repetition_penalty=real[REPETITION_PENALTY], text_tiers=plan.text_tiers,
            audio_tiers=plan.audio_tiers, barred=plan.barred, penalised=plan.penalised)
        heard_codes = caller_codes[:, :heard_count]
        generated = stages.generate_rows(heard_codes, controls, rows(SLOT, GENERATED, known.generated))
        transcribed = None
        if plan.transcribes:
            assert self.transcriber is not None
            transcribed = self.transcriber.step_rows(caller_codes, rows(SLOT, TRANSCRIBED, known.transcribed))
        if plan.speaks:
            pcm = self._voice.decode_step(generated.aligned[:, 1:].clamp(min=0), stages.decoder,
                                          rows(DECODING_SLOT, DECODED, known.decoded))
            buffers.out_pcm.copy_(pcm)
        said, pauses = self._of_the_caller(generated, transcribed)
        torch.cat([generated.text[:, None], generated.sampled_text[:, None], said[:, None], generated.codes,
                   heard_codes], dim=1, out=buffers.out_whole)
        torch.cat([generated.text_entropy[:, None], generated.audio_entropy[:, None],
                   generated.codebook_spread[:, None], pauses.flatten(1)], dim=1, out=buffers.out_real)

    def _of_the_caller(self, generated: Generated, transcribed: Transcribed | None) -> tuple[Tensor, Tensor]:
        """The caller's text [B] and pauses [B, heads, …], by whichever model writes them."""
        if transcribed is not None:
            return transcribed.text, transcribed.pauses
        nothing = torch.full_like(generated.text, -1)
        if self.transcriber is not None:
            return nothing, generated.pauses.new_zeros(len(nothing), self.transcriber.pause_heads)
        return generated.text if self._lm.generated_codebooks == 0 else nothing, generated.pauses
