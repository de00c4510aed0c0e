"""Text to speech: a text, word by word, to frames of codes, and those to sound.

The model decides when a word begins, by the token for that; the words come from the text (facts of Kyutai's delayed
streams: any token but those for padding and a new word counts as padding; while a word's pieces are fed, it pads; after
MOST_PADDING steps without a word the next one is begun). The sound follows its text by the model's delay.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from agent.moshi.checkpoint import CheckpointError, _find_files, _stored_dtype, fill
from agent.moshi.config import EPAD_TOKEN, PAD_TOKEN, ZERO_TOKEN, ConfigError
from agent.moshi.layers import Rows
from agent.moshi.mimi import Mimi
from agent.moshi.safetensors_file import SafetensorsFile
from agent.moshi.sampling import draw, draw_keys, tier_of
from agent.moshi.source import Source
from agent.moshi.speech_config import SpeechConfig
from agent.moshi.speech_model import Memory, SpeechModel
from agent.moshi.text import Tokenizer

MOST_PADDING = 8  # steps without a word, before the next one is begun
FIRST_PADDING = 2  # before the first word, so that it isn't cut
LAST_FRAMES = 4  # after the last word's sound
MAIN_SPEAKER = 1  # the token before the first word, for models with voices
BETWEEN = 1  # padding after each word's pieces: articulates better
SPEAKERS = 5  # places for voices; we fill the first
TEXT_TOP_K, AUDIO_TOP_K = 25, 250
TEMPERATURE = 0.6
GUIDANCE = "2.0"  # of models that were taught it as a condition
MOST_FRAMES = 1500  # of one speech: two minutes
_BREAK = re.compile(r'<break\s+time="([0-9]+(?:\.[0-9]*)?)s"\s*/?>|\s+')


# codes [codebooks] of a frame of sound; words that began, each with the frame in which its sound does
Step = tuple[Tensor, tuple[tuple[int, str], ...]]


class SpeechError(ValueError):
    """One line that says why a text isn't spoken."""


@dataclass
class Word:
    """`tokens` to be fed, and how many steps no other word may begin in after it did; none at all is a pause."""

    tokens: list[int]
    padding: int = 0
    text: str = ""


@dataclass
class Script:
    """What is to be said, as the model's text stream takes it (pure)."""

    words: deque[Word]
    words_ahead: int = 0
    ended: bool = False  # all words have begun
    begun: list[str] = field(default_factory=list)  # words that did, until somebody takes them away
    _left: int = FIRST_PADDING  # steps in which it may still pad
    _forced: int = FIRST_PADDING  # in which it must
    _queued: deque[int] = field(default_factory=deque)
    _ahead: deque[int] = field(default_factory=deque)

    def take(self, sampled: int) -> tuple[int, int]:
        """The text stream's next token, and that of the stream ahead (ZERO_TOKEN: none), given what the model wants."""
        begins = sampled == EPAD_TOKEN or self._left <= 0
        if begins and not self._queued and self._forced <= 0 and self._begin():
            if not self.words_ahead:
                return EPAD_TOKEN, ZERO_TOKEN
            return self._next(), EPAD_TOKEN
        self._left, self._forced = max(0, self._left - 1), max(0, self._forced - 1)
        return self._next(), self._ahead.popleft() if self.words_ahead and self._ahead else ZERO_TOKEN

    def _begin(self) -> bool:
        """The next word; False for a pause, and for none."""
        if not self.words:
            first, self.ended = not self.ended, True
            return first and self.words_ahead > 0  # that it would begin one is told once more
        word = self.words.popleft()
        self._forced = word.padding
        if not word.tokens:
            return False
        self._queued.extend(word.tokens)
        self.begun.append(word.text)
        self._left = MOST_PADDING
        if self.words_ahead:
            later = [each.tokens for each in self.words if each.tokens]
            if len(later) >= self.words_ahead:
                self._ahead.extend(later[self.words_ahead - 1])
        return True

    def _next(self) -> int:
        return self._queued.popleft() if self._queued else PAD_TOKEN


class Speech:
    """A text-to-speech checkpoint that is loaded, with its voice. One speech at a time."""

    def __init__(self, name: str, model: SpeechModel, codec: Mimi, tokenizer: Tokenizer, voice: Tensor | None) -> None:
        """`voice` [frames, speaker dim], for models that look at one. Raises SpeechError."""
        config = model.speech
        if (voice is None) is not (config.speaker is None):
            raise SpeechError(f"{name}: needs a voice" if voice is None else f"{name}: takes no voice")
        if voice is not None and (voice.dim() != 2 or voice.shape[1] != config.speaker_dim):
            raise SpeechError(f"{name}: a voice has {config.speaker_dim} values a frame, not {list(voice.shape)[1:]}")
        self.name, self.model, self.codec, self.tokenizer = name, model, codec, tokenizer
        with torch.inference_mode():
            self._voice = None if voice is None else model.looked_at(voice.to(model.device).float(), SPEAKERS)
            self._summed = model.summed({"control": "ok", "cfg": GUIDANCE})

    def words(self, text: str) -> list[Word]:
        """With `<break time="0.5s"/>` for pauses. Raises SpeechError for a text without words."""
        for old, new in (("’", "'"), (":", " "), ("(", ""), (")", "")):
            text = text.replace(old, new)
        found: list[Word] = []

        def add(word: str) -> None:
            if word:
                first = self.model.speech.speaker is not None and not any(each.tokens for each in found)
                tokens = [MAIN_SPEAKER] * first + self.tokenizer.encode(word)
                found.append(Word(tokens, BETWEEN + len(tokens) - 1, word))

        at = 0
        for match in _BREAK.finditer(text):
            add(text[at:match.start()])
            at = match.end()
            if match[1]:
                found.append(Word([], round(float(match[1]) * self.codec.config.frame_rate)))
        add(text[at:])
        if not any(word.tokens for word in found):
            raise SpeechError("there are no words to say")
        return found

    def codes(self, text: str, *, seed: int = 0, temperature: float = TEMPERATURE) -> Iterator[Tensor]:
        """Frames of codes [codebooks], as they come. Raises SpeechError."""
        for codes, _ in self.steps(text, seed=seed, temperature=temperature):
            yield codes

    @torch.inference_mode()
    def steps(self, text: str, *, seed: int = 0, temperature: float = TEMPERATURE) -> Iterator[Step]:
        """Frames of codes [codebooks], and with each the words that began in the text meanwhile, ahead of their sound.
        Raises SpeechError."""
        model, config = self.model, self.model.speech
        lm, device = config.lm, model.device
        codebooks = min(lm.generated_codebooks, self.codec.config.codebooks)
        delays = lm.delays[1:1 + codebooks]
        script, memory = Script(deque(self.words(text)), config.words_ahead), Memory(model, MOST_FRAMES)
        read = (torch.tensor([lm.text_initial_token]), torch.tensor([ZERO_TOKEN]))
        taken: list[Tensor] = []  # of each step [generated codebooks]
        begun: list[tuple[int, str]] = []
        last = None
        heat, most = torch.full((1,), temperature, device=device), torch.full((1,), TEXT_TOP_K, device=device)
        tiers = (tier_of(TEXT_TOP_K),) if temperature else ()
        audio_tiers = (tier_of(AUDIO_TOP_K),) if temperature else ()
        for step in range(MOST_FRAMES):
            codes = self._read_codes(step, taken)
            x = model.temporal_step(model.read(read[0].to(device), read[1].to(device), codes, self._summed), memory,
                                    self._voice)
            keys = draw_keys(torch.tensor([seed], device=device), torch.tensor([step], device=device), 1 + codebooks)
            sampled = int(draw(model.text_logits(x), heat, most, keys[:, 0], tiers))
            text_token, ahead = script.take(sampled)
            begun += [(step, word) for word in script.begun]
            script.begun.clear()
            read = torch.tensor([text_token]), torch.tensor([ahead])
            frame = torch.full((lm.generated_codebooks,), ZERO_TOKEN, device=device)
            if step >= config.delay_frames:
                made = model.take_codes(x, read[0].to(device), read[1].to(device), codebooks, temperature, AUDIO_TOP_K,
                                        keys[:, 1:], audio_tiers)
                for k, delay in enumerate(delays):
                    if step >= config.delay_frames + delay:
                        frame[k] = made[k]
            taken.append(frame)
            done = step - max(delays)  # the frame that this step completes
            if done >= config.delay_frames:
                yield torch.stack([taken[done + delay][k] for k, delay in enumerate(delays)]), tuple(begun)
                begun.clear()
            if script.ended and last is None:
                last = step + config.delay_frames + LAST_FRAMES
            if last is not None and step + 1 >= last:
                return
        raise SpeechError(f"a text must be said within {MOST_FRAMES / self.codec.config.frame_rate:.0f} s")

    def _read_codes(self, step: int, taken: Sequence[Tensor]) -> Tensor:
        """What each codebook's stream reads in a step [1, codebooks]: its initial token until its delay is over."""
        lm = self.model.config
        read = torch.full((lm.generated_codebooks,), lm.audio_initial_token, device=self.model.device)
        for k, delay in enumerate(lm.delays[1:]):
            if step > delay:
                read[k] = taken[step - 1][k]
        return read[None]

    @torch.inference_mode()
    def say(self, text: str, *, seed: int = 0, temperature: float = TEMPERATURE) -> Iterator[Tensor]:
        """Frames of sound [frame samples], as they come. Raises SpeechError."""
        state = self.codec.decoder_state(1, self.model.device)
        for at, codes in enumerate(self.codes(text, seed=seed, temperature=temperature)):
            yield self.codec.decode_step(codes[None], state, Rows.of([0], [at], self.model.device))[0]


def load_speech(source: str | Path, voice: Path | None = None, *, device: torch.device | str = "cpu",
                dtype: torch.dtype | None = None) -> Speech:
    """A folder or a repository `owner/name` in the layout of kyutai/tts-1.6b-en_fr, and the file of a voice in that of
    kyutai/tts-voices (`speaker_wavs`). Raises CheckpointError, SpeechError."""
    found = _find_files(Source(source))
    device = torch.device(device)
    if found.tokenizer_path is None:
        raise CheckpointError(f"{found.name}: has no tokenizer")
    with ExitStack() as opened:
        file = opened.enter_context(SafetensorsFile(found.files["moshi_name"].path))
        codec = found.codecs(device).mimi
        try:
            config = SpeechConfig.from_dict(found.config, codec.config.frame_rate)
        except ConfigError as error:
            raise CheckpointError(f"{found.name}: {error}") from None
        with torch.device("meta"):
            model = SpeechModel(config)
        fill(model, file, device, dtype or _stored_dtype(file))
    spoken = None if voice is None else _read_voice(voice)
    return Speech(found.name, model.eval(), codec, Tokenizer(found.tokenizer_path), spoken)


def _read_voice(path: Path) -> Tensor:
    try:
        return load_file(path)["speaker_wavs"][0].T.contiguous()
    except (SafetensorError, OSError, LookupError):
        raise SpeechError(f"{path}: isn't the file of a voice") from None
