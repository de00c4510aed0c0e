"""What went wrong in a call, by what is kept of it, and what to do about it (pure)."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from calls.events import EndReason, Measure
from calls.line_words import line_in_words
from calls.store import CallRow, LineRow, MoveRow, RecordingRow

Verdict = Literal["good", "doubtful", "bad"]

FEW = 3  # frames are nothing to worry about: a call's first ones may be late
STEP_S = 0.08  # in which a step has to be done


@dataclass(frozen=True)
class Finding:
    """`advice` says what to do, where there is something."""

    what: str
    verdict: Verdict
    found: str
    advice: str = ""


def findings_of(row: CallRow, *, measures: Mapping[str, Measure], moves: Iterable[MoveRow], line: Iterable[LineRow],
                heard: Collection[str], recording: RecordingRow | None, recorded: bool) -> Iterator[Finding]:
    """All that can be told of a call; `heard` are the sides whose words are kept, `recorded` whether calls are."""
    yield _end_of(row)
    yield from _line_of(line)
    yield from _frames_of(row)
    yield from _hops_of(measures)
    for move in moves:
        yield Finding("moved", "doubtful", f"from {move.worker_before} to {move.worker} after {move.k} frames: "
                      f"{move.why}; {move.seconds:.2f} s", "look at the first worker's log")
    if row.answered_at is None:
        return
    for speaker in ("agent", "caller"):
        if speaker not in heard and row.model != "echo":
            yield Finding(f"words of the {speaker}", "doubtful", "none", {
                "agent": "did it speak? was it held?",
                "caller": "one-way audio, or no speech-to-text model (TANDEM_STT)?"}[speaker])
    if recorded and row.ended_at is not None:
        kept = recording is not None and abs(recording.seconds - (row.frames or 0) * STEP_S) < 1
        yield Finding("recording", "good" if kept else "doubtful",
                      f"{recording.seconds:.1f} s at {recording.url}" if recording else "none",
                      "it is kept after the call, by the bridge or, if that died, by the persister")


_ENDS: dict[EndReason, tuple[Verdict, str]] = {
    EndReason.BUSY: ("bad", "all slots were taken: start more workers, or raise TANDEM_SLOTS"),
    EndReason.NO_WORKER: ("bad", "no worker offered the model, or Redis was away: see `tandem doctor`"),
    EndReason.OVERLOADED: ("bad", "events couldn't be saved fast enough: look at the persister and Postgres"),
    EndReason.WORKER_LOST: ("bad", "its worker was lost and there was no other: look at the worker's log"),
    EndReason.BRIDGE_LOST: ("bad", "the process that carried it died or stood still: look at its log"),
    EndReason.MEDIA_LOST: ("bad", "nothing came from the other side any more: its network, or a firewall"),
    EndReason.SHUTDOWN: ("doubtful", "its bridge was ended while it ran: drain longer (TANDEM_DRAIN_S)"),
    EndReason.NO_ANSWER: ("doubtful", "nobody took the call in time: is ring_s long enough?"),
    EndReason.REJECTED: ("doubtful", "by whoever was called or, of a call that came in, by the telephony document"),
    EndReason.FAILED: ("bad", "what is said before tells whose fault; the bridge's log has more, by the call's id"),
}
_ON_THE_LINE = {
    "sound_stopped": "RTP stopped: a firewall or NAT between, or a phone that sends nothing while it is muted",
    "sound_one_way": "our RTP doesn't arrive: a firewall or NAT between, or our SDP's address is no way to us",
    "queued": "all slots were taken: start more workers, or raise TANDEM_SLOTS",
}


def _end_of(row: CallRow) -> Finding:
    if row.end_reason is None:
        return Finding("end", "good", f"none yet, it is {row.state}")
    verdict, advice = _ENDS.get(EndReason(row.end_reason), ("good", ""))
    return Finding("end", verdict, f"{row.end_reason}, by the {row.ended_by} side. {row.why}", advice)


def _line_of(line: Iterable[LineRow]) -> Iterator[Finding]:
    """What went wrong on the telephone line."""
    for one in line:
        failed = one.what == "transfer" and one.side == "remote" and not re.search(r": (1|2)\d\d|answered", one.text)
        if one.what in _ON_THE_LINE or failed:
            yield Finding("line", "doubtful", f"{line_in_words(one.what, one.side, one.text, one.via)}, "
                          f"{STEP_S * one.k:.0f} s after the answer",
                          _ON_THE_LINE.get(one.what, "the transfer's target wouldn't or couldn't take the call"))


def _frames_of(row: CallRow) -> Iterator[Finding]:
    frames = row.frames or 0
    for name, count, advice in (
            ("frames dropped", row.frames_dropped, "the caller's: the worker was too slow, or the link between them"),
            ("frames missing", row.frames_missing, "the agent's: late or never there; compare the hops below"),
            ("underruns", row.underruns, "the playout had nothing in hand: see what is late below")):
        if frames and count is not None:
            share = count / frames
            verdict: Verdict = "good" if count < FEW or share < 0.005 else "doubtful" if share < 0.05 else "bad"
            yield Finding(name, verdict, f"{count} of {frames}", advice)


def _hops_of(measures: Mapping[str, Measure]) -> Iterator[Finding]:
    advices = {"step": (STEP_S, "the model is too slow here for so many calls: fewer slots, more cores, a GPU"),
               "wait": (0.03, "frames wait for their step: too many calls on one worker"),
               "link": (0.02, "the way between bridge and worker is slow"),
               "bridge": (0.01, "the bridge is short of processor time")}
    for hop, (bound_s, advice) in advices.items():
        measure = measures.get(hop)
        if measure is not None and measure.p95_s is not None and measure.p50_s is not None:
            yield Finding(f"{hop}, p50 / p95", "good" if measure.p95_s <= bound_s else "doubtful",
                          f"{1000 * measure.p50_s:.1f} / {1000 * measure.p95_s:.1f} ms", advice)
