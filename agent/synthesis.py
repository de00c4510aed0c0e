"""A speech model beside the agent's: lines that operators and rules have it say are made on a thread of its own.

    worker: say ─▶ Synthesiser.say ─▶ thread: Speech ─▶ Saying ─▶ Monologue, a step at a time ─▶ the caller
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import torch

from agent.moshi.checkpoint import Model
from agent.moshi.layers import Rows
from agent.moshi.speech import Speech, SpeechError
from agent.saying import SaidStep, Saying, TextTrack
from agent.sound import to_s16le
from calls.priority import BESIDE_STEPS, before_others

MOST_LINES = 32  # being made or waiting for it; the next is said in the agent's own voice
AHEAD = 50  # steps that a line is made ahead of its saying: four seconds
LOOK_S = 0.02  # between two looks at whether there is something to do

log = logging.getLogger(__name__)


class Synthesiser:
    """Makes the lines of a worker's calls, all of them a step at a time, the one that has least in hand first. `say`
    may be called from any thread."""

    def __init__(self, speech: Speech, agent: Model, words_of: Callable[[str], list[list[int]]]) -> None:
        """`words_of`: a text as words of the agent's pieces. Raises SpeechError where the sound doesn't fit."""
        ours, theirs = agent.voice.config, speech.codec.config
        if (ours.sample_rate, ours.frame_samples) != (theirs.sample_rate, theirs.frame_samples):
            made, wanted = (f"{codec.frame_samples} samples at {codec.sample_rate} Hz" for codec in (theirs, ours))
            raise SpeechError(f"{speech.name} makes frames of {made}, {agent.name} of {wanted}")
        self._speech, self._voice, self._words_of = speech, agent.voice, words_of
        self._codebooks = agent.lm.config.agent_codebooks
        self._delays = agent.lm.config.delays[1:1 + self._codebooks]
        self._largest = agent.lm.config.largest_delay
        self._silence = tuple(agent.silence()[:self._codebooks])
        self._lines: list[tuple[Saying, Iterator[SaidStep]]] = []
        self._changed = threading.Condition()  # guards the lines
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="synthesis", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def say(self, text: str) -> Saying | None:
        """A line that is on its way from now on; None where too many are."""
        with self._changed:
            if len(self._lines) >= MOST_LINES:
                return None
            saying = Saying()
            self._lines.append((saying, self.steps(text)))
            self._changed.notify()
            return saying

    def steps(self, text: str) -> Iterator[SaidStep]:
        """A line's steps. Raises SpeechError."""
        speech, device, track = self._speech, self._speech.model.device, TextTrack()
        decoder, encoder = speech.codec.decoder_state(1, device), self._voice.encoder_state(1, device)
        sound: list[tuple[bytes, tuple[int, ...]]] = []
        for codes, begun in speech.steps(text):
            for frame, word in begun:
                track.add(frame, self._words_of(word))
            with torch.inference_mode():
                row = Rows.of([0], [len(sound)], device)
                pcm = speech.codec.decode_step(codes[None], decoder, row)
                heard = self._voice.encode_step(pcm, self._codebooks, encoder, row)
            sound.append((to_s16le(pcm[0].cpu().numpy()), tuple(heard[0].tolist())))
            yield self._step(len(sound) - 1, track, sound)
        quiet = bytes(2 * self._voice.config.frame_samples), self._silence
        told = len(sound)
        sound += [quiet] * (len(track.tokens) - told)  # where the last pieces come after the sound
        for at in range(told, len(sound) + self._largest):
            yield self._step(at, track, sound)

    def _step(self, at: int, track: TextTrack, sound: list[tuple[bytes, tuple[int, ...]]]) -> SaidStep:
        codes = tuple(sound[at - delay][1][k] if 0 <= at - delay < len(sound) else -1
                      for k, delay in enumerate(self._delays))
        heard = at - self._largest
        return SaidStep(track.at(at), codes, sound[heard][0] if 0 <= heard < len(sound) else None)

    def _run(self) -> None:
        before_others(BESIDE_STEPS)
        with ExitStack() as streams:
            if (device := self._speech.model.device).type == "cuda":  # beside the steps there, too
                streams.enter_context(torch.cuda.stream(torch.cuda.Stream(device)))
            self._make_lines()

    def _make_lines(self) -> None:
        while (line := self._least_ahead()) is not None:
            saying, steps = line
            try:
                saying.put(next(steps))
            except StopIteration:
                saying.finish()
                self._drop(saying)
            except Exception as error:  # the thread's edge: a line that fails ends alone
                known = isinstance(error, SpeechError)
                log.log(logging.WARNING if known else logging.ERROR, "a line can't be said by %s: %s",
                        self._speech.name, error, exc_info=None if known else error)
                saying.fail(str(error)[:200])
                self._drop(saying)

    def _least_ahead(self) -> tuple[Saying, Iterator[SaidStep]] | None:
        """Wait for a line that wants more; None when the thread should end."""
        with self._changed:
            while not self._stopping:
                self._lines = [line for line in self._lines if not line[0].cancelled]
                wanting = [line for line in self._lines if line[0].ahead < AHEAD]
                if wanting:
                    return min(wanting, key=lambda line: line[0].ahead)
                self._changed.wait(LOOK_S if self._lines else None)
            return None

    def _drop(self, saying: Saying) -> None:
        with self._changed:
            self._lines = [line for line in self._lines if line[0] is not saying]
