"""flite through its shared libraries: sound, words and segments with times.

It draws random numbers from the process's one generator, so the same text sounds the same only in a fresh process.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

from agent.train import phones
from agent.train.sounded import Sounded, SpeechError
from agent.train.voices import Manner

_LANGUAGE = ("libflite.so.1", "libflite_cmulex.so.1", "libflite_usenglish.so.1")
_WORD_BEGIN = b"R:SylStructure.daughter.daughter.R:Segment.p.end"
_WORD_END = b"R:SylStructure.daughtern.daughtern.R:Segment.end"
_PITCH, _STRETCH = b"f0_shift", b"duration_stretch"  # flite keeps the pointers: they must live as long as the library


class _Wave(ctypes.Structure):
    """cst_wave."""

    _fields_ = (
        ("type", ctypes.c_char_p), ("sample_rate", ctypes.c_int), ("samples_count", ctypes.c_int),
        ("channels", ctypes.c_int), ("samples", ctypes.c_void_p),
    )


class _Voice(ctypes.Structure):
    """The beginning of cst_voice."""

    _fields_ = (("name", ctypes.c_char_p), ("features", ctypes.c_void_p))


def load(voice: str) -> tuple[ctypes.CDLL, ctypes.CDLL]:
    """flite and the library of one of its voices. Raises SpeechError where they aren't installed."""
    try:
        flite, *_ = (ctypes.CDLL(name, ctypes.RTLD_GLOBAL) for name in _LANGUAGE)
    except OSError:
        raise SpeechError(f"{_LANGUAGE[0]} is missing: install Debian's package libflite1") from None
    try:
        return flite, ctypes.CDLL(f"libflite_cmu_us_{voice}.so.1", ctypes.RTLD_GLOBAL)
    except OSError:
        raise SpeechError(f"this flite has no voice {voice!r}") from None


def sound(text: str, voice: str, manner: Manner) -> Sounded:
    """Speak `text`. Raises SpeechError."""
    flite, library = load(voice)
    _declare(flite)
    flite.flite_init()
    register = getattr(library, f"register_cmu_us_{voice}")
    register.restype, register.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    handle = register(None)
    features = ctypes.cast(handle, ctypes.POINTER(_Voice)).contents.features
    flite.flite_feat_set_float(features, _STRETCH, 1 / manner.rate)
    flite.flite_feat_set_float(features, _PITCH, 2 ** (manner.semitones / 12))
    utterance = flite.flite_synth_text(text.encode(), handle)
    wave = flite.utt_wave(utterance) if utterance else None
    if not wave:
        raise SpeechError(f"flite can't speak {text!r}")
    contents = ctypes.cast(wave, ctypes.POINTER(_Wave)).contents
    pcm = ctypes.string_at(contents.samples, 2 * contents.samples_count)
    tokens = list(_items(flite, utterance, b"Token"))
    if len(tokens) != len(text.split()):
        raise SpeechError(f"flite reads {len(tokens)} words in {text!r}, not {len(text.split())}")
    words = []
    for index, token in enumerate(tokens):
        first, last = flite.item_daughter(token), flite.item_last_daughter(token)
        if first:
            begin = flite.flite_ffeature_float(first, _WORD_BEGIN)
            words.append((index, begin, flite.flite_ffeature_float(last, _WORD_END)))
    ends = [
        (flite.flite_ffeature_string(item, b"name").decode(), flite.flite_ffeature_float(item, b"end"))
        for item in _items(flite, utterance, b"Segment")
    ]
    return Sounded(contents.sample_rate, pcm, tuple(words), phones.segments(ends))


def _items(flite: ctypes.CDLL, utterance: int, relation: bytes) -> Iterator[int]:
    item = flite.relation_head(flite.utt_relation(utterance, relation))
    while item:
        yield item
        item = flite.item_next(item)


def _declare(flite: ctypes.CDLL) -> None:
    pointer, string, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_float
    for name, result, arguments in (
        ("flite_synth_text", pointer, [string, pointer]),
        ("flite_feat_set_float", None, [pointer, string, number]),
        ("flite_ffeature_string", string, [pointer, string]),
        ("flite_ffeature_float", number, [pointer, string]),
        ("utt_wave", pointer, [pointer]),
        ("utt_relation", pointer, [pointer, string]),
        ("relation_head", pointer, [pointer]),
        ("item_next", pointer, [pointer]),
        ("item_daughter", pointer, [pointer]),
        ("item_last_daughter", pointer, [pointer]),
    ):
        function = getattr(flite, name)
        function.restype, function.argtypes = result, arguments
