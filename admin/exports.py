"""A call's words in the formats of other programs: CSV, SubRip (SRT), WebVTT."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping

from calls.store import ControlRow, UtteranceRow
from media.captions import Cue, as_srt, as_vtt

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


TYPES: Mapping[str, tuple[str, Callable[[Iterable[UtteranceRow], Iterable[ControlRow]], str]]] = {
    "csv": ("text/csv; charset=utf-8", as_csv),
    "srt": ("application/x-subrip; charset=utf-8", lambda utterances, _: as_srt(_cues(utterances))),
    "vtt": ("text/vtt; charset=utf-8", lambda utterances, _: as_vtt(_cues(utterances))),
}


def _cues(utterances: Iterable[UtteranceRow]) -> list[Cue]:
    cues = [Cue(one.start_s or 0.0, one.end_s or 0.0, _NAMES.get(one.speaker, one.speaker), one.text)
            for one in utterances if one.text]
    return sorted(cues, key=lambda cue: (cue.start_s, cue.who))


def _plain(text: str) -> str:
    """Not a formula, whatever a caller said: spreadsheets would run it."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
