"""When which word and phone of a text is said in a sound of it, for synthesisers that don't tell (pocketsphinx).

Words are found by the recogniser's acoustic model, which knows the text; so are the phones within. Where it comes to no
end (phones in some 6 % of sentences, words in a few that are very short), they share the time of what they are in.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.train.sounded import Phone, Sounded, SpeechError

RATE = 16_000  # Hz: what the acoustic model hears

_FRAME_S = 0.01
_BEAMS = {"beam": 1e-80, "pbeam": 1e-80, "wbeam": 1e-60}  # the text is known: hardly anything needs to be pruned
_VOWELS = frozenset(("aa", "ae", "ah", "ao", "aw", "ax", "ay", "eh", "er", "ey", "ih", "iy", "ow", "oy", "uh", "uw"))
_VOWELS_SHARE = 1.6  # of a word's time, a consonant's being 1

Pronounce = Callable[[str], Sequence[str]]  # a word -> its symbols of agent.train.phones


@dataclass
class Aligner:
    """Make it by `load`; use it from one thread."""

    _decoder: Any
    _pronounce: Pronounce  # of another synthesiser: of words that the dictionary lacks, and which schwas are `ax`
    _pronounced: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def load(cls, pronounce: Pronounce) -> Aligner:
        import pocketsphinx  # a tenth of a second, which most who synthesise don't need

        model = Path(str(pocketsphinx.get_model_path())) / "en-us"
        return cls(pocketsphinx.Decoder(
            hmm=str(model / "en-us"), dict=str(model / "cmudict-en-us.dict"), lm=None, cmn="batch", **_BEAMS,
            loglevel="FATAL", logfn=os.devnull), pronounce)

    def __call__(self, text: str, sounded: Sounded) -> Sounded:
        """The same sound, with the times of its words and phones. The same for the same arguments. Raises SpeechError
        where there are no words."""
        assert sounded.rate == RATE
        places = [(place, said) for place, word in enumerate(text.split()) for said in _spoken(word)]
        if not places:
            raise SpeechError(f"{text!r} has no words")
        for _, said in places:
            if self._decoder.lookup_word(said) is None:
                self._decoder.add_word(said, " ".join(map(_cmu, self._pronunciation(said))), True)
        self._decoder.set_align_text(" ".join(said for _, said in places))
        self._hear(sounded.pcm)
        found = [(str(part.word), float(part.start_frame), part.end_frame + 1.0)
                 for part in self._decoder.seg() or () if not part.word.startswith(("<", "["))]
        within = None
        if [name.partition("(")[0] for name, _, _ in found] == [said for _, said in places]:
            within = self._phones_within(sounded.pcm, len(found))
        else:
            found = self._sharing([said for _, said in places], len(sounded.pcm) / 2 / RATE / _FRAME_S)
        words: list[tuple[int, float, float]] = []
        phones: list[Phone] = []
        for number, ((place, said), (name, begin, end)) in enumerate(zip(places, found, strict=True)):
            timed = within[number] if within else _shared(self._decoder.lookup_word(name).split(), begin, end)
            symbols = self._symbols(said, [name for name, _, _ in timed])
            phones += [(symbol, first * _FRAME_S, last * _FRAME_S)
                       for symbol, (_, first, last) in zip(symbols, timed, strict=True)]
            if words and words[-1][0] == place:  # twenty-two
                words[-1] = (place, words[-1][1], end * _FRAME_S)
            else:
                words.append((place, begin * _FRAME_S, end * _FRAME_S))
        return Sounded(sounded.rate, sounded.pcm, tuple(words), tuple(phones))

    def _hear(self, pcm: bytes) -> None:
        self._decoder.start_utt()
        self._decoder.process_raw(pcm, full_utt=True)
        self._decoder.end_utt()

    def _phones_within(self, pcm: bytes, words: int) -> list[list[tuple[str, float, float]]] | None:
        """The phones [begin, end) in frames of each word that was just found; None where that came to no end."""
        try:
            self._decoder.set_alignment()
            self._hear(pcm)
        except RuntimeError:
            return None
        within = [[(str(phone.name), phone.start, phone.start + phone.duration) for phone in word]
                  for word in self._decoder.get_alignment() if not word.name.startswith(("<", "["))]
        return within if len(within) == words else None

    def _sharing(self, words: Sequence[str], frames: float) -> list[tuple[str, float, float]]:
        """Words that share so many frames by how many phones they have."""
        counts = [len(self._decoder.lookup_word(word).split()) for word in words]
        bounds = [frames * sum(counts[:before]) / sum(counts) for before in range(len(words) + 1)]
        return list(zip(words, bounds, bounds[1:], strict=False))

    def _pronunciation(self, word: str) -> tuple[str, ...]:
        if word not in self._pronounced:
            self._pronounced[word] = tuple(self._pronounce(word))
        return self._pronounced[word]

    def _symbols(self, word: str, names: Sequence[str]) -> list[str]:
        """CMU's names as symbols: its AH is `ah` or `ax`, as the other synthesiser says the word, where it says it with
        as many phones; else `ax` beside other vowels, and in "a" and "the"."""
        if "AH" not in names:
            return [name.lower() for name in names]
        other = self._pronunciation(word)
        alike = len(other) == len(names)
        others = sum(name.lower() in _VOWELS and name != "AH" for name in names)
        schwa = "ax" if others or len(names) <= 2 else "ah"
        return [name.lower() if name != "AH" else other[at] if alike and other[at] in ("ah", "ax") else schwa
                for at, name in enumerate(names)]


def _spoken(word: str) -> list[str]:
    return [part for part in word.lower().strip(",.?!").split("-") if part]


def _cmu(symbol: str) -> str:
    return "AH" if symbol == "ax" else symbol.upper()


def _shared(names: Sequence[str], begin: float, end: float) -> list[tuple[str, float, float]]:
    shares = [_VOWELS_SHARE if name.lower() in _VOWELS else 1.0 for name in names]
    a_share = (end - begin) / sum(shares)
    bounds = [begin + a_share * sum(shares[:count]) for count in range(len(names) + 1)]
    return [(name, first, last) for name, first, last in zip(names, bounds, bounds[1:], strict=False)]
