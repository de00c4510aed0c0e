"""espeak-ng through its shared library: sound, and when each word and phoneme begins.

The library keeps state from one utterance to the next (random numbers, the phase of its flutter), which nothing
resets: for sound that depends on text and voice alone, call `sound` once in a fresh process.
"""

from __future__ import annotations

import ctypes
from bisect import bisect_right
from pathlib import Path

from agent.train import phones
from agent.train.sounded import Phone, Sounded, SpeechError, word_offsets
from agent.train.voices import Manner

_LIBRARY = "libespeak-ng.so.1"
_SYNCHRONOUS = 2  # espeak_AUDIO_OUTPUT: sound goes to the callback, on this thread
_PHONEME_EVENTS = 1
_UTF8 = 1
_AT_CHARACTER = 1  # espeak_POSITION_TYPE
_RATE, _PITCH, _RANGE = 1, 3, 4  # espeak_PARAMETER
_END, _WORD, _PHONEME = 0, 1, 7  # espeak_EVENT_TYPE
_WORDS_A_MINUTE = 175  # at rate 1
_PITCH_PER_SEMITONE = 5  # of its scale of 0 to 99, near its middle


class _Id(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("phoneme", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    """espeak_EVENT of speak_lib.h."""

    _fields_ = (
        ("type", ctypes.c_int), ("unique_identifier", ctypes.c_uint), ("text_position", ctypes.c_int),
        ("length", ctypes.c_int), ("audio_position", ctypes.c_int), ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p), ("id", _Id),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


def load() -> ctypes.CDLL:
    """The library, not yet initialised. Raises SpeechError where it isn't installed."""
    try:
        return ctypes.CDLL(_LIBRARY)
    except OSError:
        raise SpeechError(f"{_LIBRARY} is missing: install Debian's package espeak-ng") from None


def sound(text: str, voice: str, manner: Manner) -> Sounded:
    """Speak `text`. Raises SpeechError."""
    library = load()
    rate = library.espeak_Initialize(_SYNCHRONOUS, 0, None, _PHONEME_EVENTS)
    if rate <= 0:
        raise SpeechError("espeak-ng can't start: are its data (Debian's espeak-ng-data) installed?")
    parts: list[bytes] = []
    events: list[tuple[int, int, int, str]] = []  # type, sample, position in the text from 1, phoneme

    def collect(samples: ctypes._Pointer[ctypes.c_short], count: int, batch: ctypes._Pointer[_Event]) -> int:
        if samples and count > 0:
            parts.append(ctypes.string_at(samples, 2 * count))
        position = 0
        while batch and batch[position].type != _END:
            event = batch[position]
            phoneme = event.id.phoneme.decode("utf-8", "replace") if event.type == _PHONEME else ""
            events.append((event.type, event.sample, event.text_position, phoneme))
            position += 1
        return 0

    callback = _Callback(collect)
    library.espeak_SetSynthCallback(callback)
    _choose(library, voice)
    library.espeak_SetParameter(_RATE, round(_WORDS_A_MINUTE * manner.rate), 0)
    library.espeak_SetParameter(_PITCH, min(99, max(0, round(50 + _PITCH_PER_SEMITONE * manner.semitones))), 0)
    library.espeak_SetParameter(_RANGE, round(50 * manner.melody), 0)
    encoded = text.encode()
    if library.espeak_Synth(encoded, ctypes.c_size_t(len(encoded) + 1), 0, _AT_CHARACTER, 0, _UTF8, None, None):
        raise SpeechError(f"espeak-ng can't speak {text!r}")
    words, spoken = _read(text, [(kind, sample / rate, at, name) for kind, sample, at, name in events])
    return Sounded(rate, b"".join(parts), words, spoken)


def _choose(library: ctypes.CDLL, voice: str) -> None:
    """The library takes an unknown variant for none, so that is looked up here."""
    data = ctypes.c_char_p()
    library.espeak_Info(ctypes.byref(data))
    variant = voice.partition("+")[2]
    if variant and not (Path((data.value or b"").decode()) / "voices" / "!v" / variant).is_file():
        raise SpeechError(f"this espeak-ng has no variant {variant!r}")
    if library.espeak_SetVoiceByName(voice.encode()):
        raise SpeechError(f"this espeak-ng has no voice {voice!r}")


def _read(
    text: str, events: list[tuple[int, float, int, str]],
) -> tuple[tuple[tuple[int, float, float], ...], tuple[Phone, ...]]:
    """Words and phones from events (type, seconds, position, phoneme): a phone lasts until the next one begins, a
    word from its first phone to its last. Words that it joins ("of the") come as one."""
    offsets = word_offsets(text)
    ends = [at for kind, at, _, _ in events if kind == _PHONEME][1:]
    spoken: list[Phone] = []
    times: dict[int, tuple[float, float]] = {}
    word = -1
    for kind, begin, position, name in events:
        if kind == _WORD:
            word = bisect_right(offsets, position - 1) - 1
        elif kind == _PHONEME:
            end = ends.pop(0) if ends else begin
            phone = phones.of_espeak(name)
            if phone is None or word < 0:
                continue
            if end <= begin and spoken and spoken[-1][2] == begin:
                # A consonant whose sound is part of the vowel before it ("well"): the vowel's last third.
                symbol, started, _ = spoken[-1]
                begin = end - (end - started) / 3
                spoken[-1] = (symbol, started, begin)
            if end > begin:
                spoken.append((phone, begin, end))
                times[word] = (times.get(word, (begin,))[0], end)
    return tuple((index, begin, end) for index, (begin, end) in sorted(times.items())), tuple(spoken)
