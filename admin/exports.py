"""A call's words in the formats of other programs: CSV, SubRip (SRT), WebVTT."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping

from calls.store import ControlRow, UtteranceRow

FRAME_S = 0.08  # of a call's clock
_NAMES = {"agent": "Agent", "caller": "Caller", "operator": "Operator"}


def as_csv(utterances: Iterable[UtteranceRow], controls: Iterable[ControlRow]) -> str:
    """A line for each utterance and each control, by time; seconds since the answer."""
    rows: list[tuple[float, float, str, str, str]] = [
        (one.start_s or 0.0, one.end_s or 0.0, one.speaker, "says", one.text) for one in utterances]
    rows += [(FRAME_S * one.first_k, FRAME_S * (one.k + 1), one.by or "operator", f"{one.action}: {one.outcome}",
              one.text) for one in controls]
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(("start_s", "end_s", "who", "what", "text"))
    writer.writerows((f"{start:.2f}", f"{end:.2f}", _plain(who), what, _plain(text))
                     for start, end, who, what, text in sorted(rows))
    return out.getvalue()


def as_srt(utterances: Iterable[UtteranceRow]) -> str:
    cues = []
    for number, one in enumerate(_spoken(utterances), 1):
        text = f"{_NAMES.get(one.speaker, one.speaker)}: {one.text}"
        cues.append(f"{number}\n{_clock(one.start_s, ',')} --> {_clock(one.end_s, ',')}\n{text}\n")
    return "\n".join(cues)


def as_vtt(utterances: Iterable[UtteranceRow]) -> str:
    cues = ["WEBVTT\n"]
    for one in _spoken(utterances):
        text = one.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        cues.append(f"{_clock(one.start_s, '.')} --> {_clock(one.end_s, '.')}\n"
                    f"<v {_NAMES.get(one.speaker, one.speaker)}>{text}\n")
    return "\n".join(cues)


TYPES: Mapping[str, tuple[str, Callable[[Iterable[UtteranceRow], Iterable[ControlRow]], str]]] = {
    "csv": ("text/csv; charset=utf-8", as_csv),
    "srt": ("application/x-subrip; charset=utf-8", lambda utterances, _: as_srt(utterances)),
    "vtt": ("text/vtt; charset=utf-8", lambda utterances, _: as_vtt(utterances)),
}


def _spoken(utterances: Iterable[UtteranceRow]) -> list[UtteranceRow]:
    return sorted((one for one in utterances if one.text), key=lambda one: (one.start_s or 0.0, one.speaker))


def _clock(seconds: float | None, mark: str) -> str:
    ms = max(0, round(1000 * (seconds or 0.0)))
    return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}{mark}{ms % 1000:03}"


def _plain(text: str) -> str:
    """Not a formula, whatever a caller said: spreadsheets would run it."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
