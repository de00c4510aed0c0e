"""Calls on disk, in the format of Moshi's public fine-tuning code, so that real calls and made ones are read alike.

    calls.jsonl     {"path": "000000.wav", "duration": 63.2}, a line a call; paths from the file's own folder
    000000.wav      stereo, 16 bit: the agent on the left, the caller on the right
    000000.json     {"alignments": [["hello", [0.4, 0.72], "SPEAKER_USER"], …], "tandem": {…}}

SPEAKER_MAIN is the agent, SPEAKER_USER the caller. What only we know stands under "tandem", which may be missing:
utterances, phonemes, held (see agent.train.render.Call), and how the call was made.
"""

from __future__ import annotations

import json
import math
import os
import wave
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from agent.train.render import Call, Utterance, Word
from agent.train.script import LineKind, Speaker
from agent.train.speech import FRAME_SAMPLES, SAMPLE_RATE, Samples
from media.telephone import from_line, resample, to_line

OURS = "tandem"  # the key of what the public format doesn't have
_LABELS: dict[Speaker, str] = {"agent": "SPEAKER_MAIN", "caller": "SPEAKER_USER"}
_SPEAKERS: dict[str, Speaker] = {label: speaker for speaker, label in _LABELS.items()}
_RATES = (8000, 192_000)  # Hz: what a WAV may have
_LATE_S = 1.0  # how far past the sound a word may end: aligners are not exact


class DatasetError(ValueError):
    """One line that names the file and what is wrong with it."""


@dataclass(frozen=True)
class Entry:
    """A line of the list of calls."""

    path: Path  # of the WAV
    duration_s: float


# --- writing ---


def write_call(path: Path, call: Call, made: Mapping[str, Any]) -> None:
    """Write `path` (a .wav) and the .json beside it; `made` says how the call came about. Where the .json is there,
    both files are whole."""
    stereo = np.stack([to_line(call.agent), to_line(call.caller)], axis=1)  # [n, 2]
    unfinished = path.with_suffix(".wav.part")
    with unfinished.open("wb") as file, wave.open(file, "wb") as writer:
        writer.setnchannels(2)
        writer.setsampwidth(2)
        writer.setframerate(SAMPLE_RATE)
        writer.writeframes(stereo.astype("<i2").tobytes())
    os.replace(unfinished, path)
    ours = {
        "utterances": [asdict(utterance) for utterance in call.utterances],
        "phonemes": _labelled(call.phonemes),
        "held": call.held,
        **made,
    }
    write_whole(path.with_suffix(".json"), json.dumps({"alignments": _labelled(call.words), OURS: ours}))


def _labelled(words: Iterable[Word]) -> list[Any]:
    return [[word.text, [word.begin_s, word.end_s], _LABELS[word.speaker]] for word in words]


def write_list(path: Path, entries: Iterable[Entry]) -> None:
    """The list of calls (a .jsonl) in whose folder their sound lies."""
    lines = [
        json.dumps({"path": entry.path.relative_to(path.parent).as_posix(), "duration": entry.duration_s})
        for entry in entries
    ]
    write_whole(path, "".join(f"{line}\n" for line in lines))


def write_whole(path: Path, text: str) -> None:
    """Write a file that is never seen half written."""
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(text)
    os.replace(unfinished, path)


# --- reading ---


def read_list(path: Path) -> tuple[Entry, ...]:
    """The calls of a .jsonl. Raises DatasetError for an unreadable line or sound that isn't there."""
    entries = []
    for number, line in enumerate(_text(path).splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        fields = _object(where, _parsed(where, line))
        name, duration = fields.get("path"), fields.get("duration")
        if not isinstance(name, str) or not name:
            raise DatasetError(f'{where}: "path" must name a WAV')
        if duration is None or not _is_number(duration) or duration <= 0:
            raise DatasetError(f'{where}: "duration" must be seconds above 0, not {duration!r}')
        sound = path.parent / name
        if not sound.is_file():
            raise DatasetError(f"{where}: {sound} is missing")
        entries.append(Entry(sound, float(duration)))
    if not entries:
        raise DatasetError(f"{path}: lists no calls")
    return tuple(entries)


def read_call(path: Path) -> Call:
    """The call of a stereo WAV and the JSON beside it. Utterances, phonemes and held spans are empty where the JSON
    has none; sound of another rate is resampled. Raises DatasetError."""
    agent, caller = _stereo(path)
    return _labelled_call(path, agent, caller, agent.size / SAMPLE_RATE)


def read_labels(entry: Entry) -> Call:
    """A call without its sound: both sides are empty. Raises DatasetError."""
    silent = np.zeros(0, np.float32)
    return _labelled_call(entry.path, silent, silent, entry.duration_s)


def _labelled_call(path: Path, agent: Samples, caller: Samples, duration_s: float) -> Call:
    about = path.with_suffix(".json")
    fields = _object(about, _parsed(about, _text(about)))
    ours = _object(f'{about}: "{OURS}"', fields.get(OURS, {}))

    def labelled(key: str, what: str, items: Any) -> tuple[Word, ...]:
        words = [_word(f"{about}: {what} {number}", item, duration_s)
                 for number, item in enumerate(_list(f'{about}: "{key}"', items), 1)]
        return tuple(sorted(words, key=lambda word: (word.begin_s, word.end_s)))

    return Call(
        agent, caller,
        utterances=tuple(
            _utterance(f"{about}: utterance {number}", item)
            for number, item in enumerate(_list(f'{about}: "utterances"', ours.get("utterances", [])), 1)
        ),
        words=labelled("alignments", "alignment", fields.get("alignments")),
        phonemes=labelled("phonemes", "phoneme", ours.get("phonemes", [])),
        held=tuple(
            _span(f"{about}: held span {number}", item)
            for number, item in enumerate(_list(f'{about}: "held"', ours.get("held", [])), 1)
        ),
    )


def read_made(path: Path) -> dict[str, Any]:
    """What a call's JSON says under "tandem", as it stands there; empty if it says nothing. Raises DatasetError."""
    about = path.with_suffix(".json")
    fields = _object(about, _parsed(about, _text(about)))
    return _object(f'{about}: "{OURS}"', fields.get(OURS, {}))


def _stereo(path: Path) -> tuple[Samples, Samples]:
    """Left and right [n] at SAMPLE_RATE, filled up to whole frames."""
    try:
        with wave.open(str(path), "rb") as reader:
            channels, width, rate = reader.getnchannels(), reader.getsampwidth(), reader.getframerate()
            promised = reader.getnframes()
            data = reader.readframes(promised)
    except (wave.Error, EOFError, OSError) as error:
        raise DatasetError(f"{path}: can't be read as WAV ({error})") from None
    if channels != 2 or width != 2:
        raise DatasetError(f"{path}: must be stereo of 16 bit, not {channels} channel(s) of {8 * width} bit")
    if not _RATES[0] <= rate <= _RATES[1]:
        raise DatasetError(f"{path}: a rate of {rate} Hz is outside of {_RATES[0]} to {_RATES[1]}")
    if len(data) < 4 * max(1, promised):
        raise DatasetError(f"{path}: holds {len(data) // 4} of {promised} samples")
    sides = from_line(np.frombuffer(data, "<i2").reshape(-1, 2)).T  # [2, n]
    left, right = (_framed(resample(side, rate, SAMPLE_RATE)) for side in sides)
    return left, right


def _framed(sound: Samples) -> Samples:
    return np.pad(sound, (0, -sound.size % FRAME_SAMPLES))


def _word(where: str, item: Any, duration_s: float) -> Word:
    if not isinstance(item, list) or len(item) != 3:
        raise DatasetError(f"{where} must be [word, [begin, end], speaker]")
    text, span, label = item
    if not isinstance(text, str) or not text.strip():
        raise DatasetError(f"{where}: {text!r} is no word")
    if label not in _SPEAKERS:
        raise DatasetError(f"{where}: the speaker must be {' or '.join(_SPEAKERS)}, not {label!r}")
    begin_s, end_s = _span(where, span)
    if end_s > duration_s + _LATE_S:
        raise DatasetError(f"{where}: {text!r} ends at {end_s:.2f} s, the sound at {duration_s:.2f} s")
    return Word(_SPEAKERS[label], text, begin_s, end_s)


def _utterance(where: str, item: Any) -> Utterance:
    fields = _object(where, item)
    try:
        utterance = Utterance(**fields)
    except TypeError:
        raise DatasetError(f"{where} must have just {', '.join(Utterance.__dataclass_fields__)}") from None
    if utterance.speaker not in get_args(Speaker) or utterance.kind not in get_args(LineKind):
        raise DatasetError(f"{where}: unknown speaker or kind, {utterance.speaker!r} and {utterance.kind!r}")
    _span(where, [utterance.begin_s, utterance.end_s])
    return utterance


def _span(where: str, item: Any) -> tuple[float, float]:
    if not isinstance(item, list) or len(item) != 2 or not all(map(_is_number, item)):
        raise DatasetError(f"{where}: its time must be [begin, end] in seconds, not {item!r}")
    if not 0 <= item[0] <= item[1]:
        raise DatasetError(f"{where}: its time runs from {item[0]} to {item[1]} s")
    return float(item[0]), float(item[1])


def _is_number(item: Any) -> bool:
    return isinstance(item, int | float) and not isinstance(item, bool) and math.isfinite(item)


def _object(where: object, item: Any) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise DatasetError(f"{where} must be a JSON object")
    return item


def _list(where: str, item: Any) -> list[Any]:
    if not isinstance(item, list):
        raise DatasetError(f"{where} must be a list")
    return item


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DatasetError(f"{path}: is not UTF-8") from None


def _parsed(where: object, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DatasetError(f"{where}: not JSON ({error.msg} at character {error.pos})") from None
