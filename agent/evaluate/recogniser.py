"""The closed-set recogniser: reads which of the receptionist's sentences is said in a sound (pocketsphinx).

With an open vocabulary it is of no use on synthesised speech; with a grammar of all that may be said it is nearly
perfect on clear sound, so that what it misses is unclear.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from agent.evaluate.judging import words_of
from agent.train.domain.reader import Domain
from agent.train.domain.reception import (
    ASK_CHANGE,
    ASK_NAME,
    CANCELLED,
    CLOSED,
    GO_ON,
    GREETING,
    HELP,
    NOTHING_ASKED,
    QUESTIONS,
    STILL_THERE,
)
from agent.train.domain.slots import DAYS, DISHES, NAMES, NUMBERS, TIMES, WEEKDAYS
from agent.train.speech import SAMPLE_RATE, Samples

_RATE = 16_000  # Hz, of the recogniser's acoustic model
_FLOOR = 5e-3  # of noise, as no microphone is without: digital silence confuses the recogniser
_AROUND_S = 0.3  # of silence before and after
_BEAMS = {"beam": 1e-54, "wbeam": 1e-34, "pbeam": 1e-54}  # wider than the defaults, which lose whole sentences

_SLOTS: Mapping[str, Iterable[str]] = {
    "number": NUMBERS, "day": DAYS, "weekday": WEEKDAYS, "time": TIMES, "name": NAMES, "dish": DISHES,
}
_SLOT_SENTENCES = (
    "on <weekday> we are open from noon to (midnight | eleven | ten)", "we are closed on <weekday>",
    "yes we have <dish> on the menu", "sorry we do not have <dish>", "the <dish> costs <number> dollars",
    "<number> minutes is no problem we will keep your table",
    "a table for <number> [on] <day> at <time> under <name> is that right",
    "your table is booked see you [on] <day>",
    "your table is now [for <number>] [[on] <day>] [at <time>]",
    "<name> your table is now [for <number>] [[on] <day>] [at <time>]",
)


class RecogniserError(RuntimeError):
    """One line that says what is missing."""


def sentences_of(domain: Domain) -> tuple[str, ...]:
    """All that the receptionist says and that has no value in it, each once."""
    asked = [f"You asked about {intent.topic}." for intent in domain.intents.values() if intent.topic]
    answers = [intent.answer for intent in domain.intents.values() if intent.answer]
    own = [GREETING, HELP, STILL_THERE, GO_ON, ASK_NAME, ASK_CHANGE, CLOSED, NOTHING_ASKED, CANCELLED,
           f"Of course. {ASK_CHANGE}", f"I am sorry. {ASK_CHANGE}", *QUESTIONS.values()]
    return tuple(dict.fromkeys([*own, *answers, *asked]))


def grammar_of(domain: Domain) -> str:
    """All that the receptionist may say, as a JSGF grammar."""
    rules = {name: _either(" ".join(words_of(value)) for value in values) for name, values in _SLOTS.items()}
    echo = "[<number> people | one person] [<day>] [<time>] [<name>]"
    questions = _either(" ".join(words_of(question)) for question in QUESTIONS.values())
    whole = [_tree([words_of(sentence) for sentence in sentences_of(domain)]), *_SLOT_SENTENCES,
             f"(of course | {echo}) ({questions})", f"<name> {' '.join(words_of(ASK_CHANGE))}",
             f"<name> {' '.join(words_of(CANCELLED))}"]
    lines = [f"<{name}> = {rule};" for name, rule in rules.items()]
    return "\n".join(["#JSGF V1.0;", "grammar reception;", *lines, f"public <said> = {_either(whole)};"])


def _tree(sentences: Iterable[tuple[str, ...]]) -> str:
    """The sentences, what several begin with said once: searching the flat list takes several times as long."""
    after: dict[str, list[tuple[str, ...]]] = {}
    ends = False
    for sentence in sentences:
        if sentence:
            after.setdefault(sentence[0], []).append(sentence[1:])
        else:
            ends = True
    branches = [f"{word} {_tree(rest)}".strip() for word, rest in after.items()]
    if not branches:
        return ""
    joined = _either(branches)
    if ends:
        return f"[{joined}]"
    return joined if len(branches) == 1 else f"({joined})"


def _either(choices: Iterable[str]) -> str:
    return " | ".join(dict.fromkeys(choices))


@dataclass
class Recogniser:
    """Make it by `load`."""

    _decoder: Any

    @classmethod
    def load(cls, domain: Domain) -> Recogniser:
        """Raises RecogniserError where pocketsphinx isn't installed, or lacks one of the domain's words."""
        return cls.of(grammar_of(domain))

    @classmethod
    def of(cls, grammar: str) -> Recogniser:
        """One that knows what this JSGF grammar lets say. Raises RecogniserError."""
        try:
            pocketsphinx: Any = import_module("pocketsphinx")
        except ModuleNotFoundError:
            raise RecogniserError(
                "the recogniser isn't installed: `pip install pocketsphinx`, or judge the words alone") from None
        model = Path(str(pocketsphinx.get_model_path())) / "en-us"
        decoder = pocketsphinx.Decoder(
            hmm=str(model / "en-us"), dict=str(model / "cmudict-en-us.dict"), lm=None, cmn="batch",
            **_BEAMS, loglevel="FATAL", logfn=os.devnull)
        words = set(re.findall(r"[a-z']+", re.sub(r"<\w+>|^.*;\n.*;\n", " ", grammar)))
        if unknown := sorted(word for word in words - {"public"} if decoder.lookup_word(word) is None):
            raise RecogniserError(f"the recogniser can't pronounce {', '.join(unknown)}")
        decoder.add_jsgf_string("reception", grammar)
        decoder.activate_search("reception")
        return cls(decoder)

    def __call__(self, sound: Samples) -> str:
        """The words that are said in `sound` [n] at SAMPLE_RATE; "" if none are. The same for the same sound."""
        silence = np.zeros(round(_AROUND_S * _RATE))
        narrow = np.concatenate([silence, _resampled(sound), silence])
        noisy = narrow + _FLOOR * np.random.default_rng(0).standard_normal(narrow.size)
        self._decoder.start_utt()
        self._decoder.process_raw((noisy.clip(-1, 1) * 32767).astype("<i2").tobytes(), full_utt=True)
        self._decoder.end_utt()
        found = self._decoder.hyp()
        return str(found.hypstr) if found else ""


def _resampled(sound: Samples) -> np.typing.NDArray[np.float64]:
    """A whole utterance at _RATE."""
    if not sound.size:
        return np.zeros(0)
    size = max(1, sound.size * _RATE // SAMPLE_RATE)
    spectrum = np.fft.rfft(sound.astype(np.float64))[:size // 2 + 1]
    return np.fft.irfft(spectrum, size) * (size / sound.size)
