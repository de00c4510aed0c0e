"""`tandem call …`: what Postgres keeps of calls, as text."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager

from calls.events import HOPS, TURNS, Measure
from calls.line_words import line_in_words
from calls.settings import Settings
from calls.store import CallRow, ControlRow, LineRow, MoveRow, Store, StoreError, UtteranceRow
from tandem.embedded import EmbeddedError, running_postgres
from tandem.errors import UserError, told_in_one_line

FRAME_S = 0.08  # of a call's clock


def list_calls(settings: Settings, limit: int) -> None:
    """Print the newest calls, a line each."""
    rows = [("call", "received", "from", "to", "model", "seconds", "end")]
    rows += [(row.id, _time(row), row.caller or "-", row.callee or "-", row.model or "-", _seconds(row), _end(row))
             for row in asyncio.run(_calls(settings, limit))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for cells in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())


def show_call(settings: Settings, call_id: str) -> None:
    """Print one call and its utterances."""
    asyncio.run(_show(settings, call_id))


async def _calls(settings: Settings, limit: int) -> list[CallRow]:
    async with open_store(settings) as store:
        return list(await store.calls(limit))


async def _show(settings: Settings, call_id: str) -> None:
    async with open_store(settings) as store:
        row = await store.call(call_id)
        if row is None:
            raise UserError(f"there is no call {call_id}")
        print(f"{row.id}  {row.caller} -> {row.callee}  {_time(row)}  {row.codec or 'not answered'}")
        print(f"model {row.model or '-'}  worker {row.worker or '-'}  {_seconds(row)} s  {_end(row)}")
        if row.why:
            print(row.why)
        if row.frames is not None:
            print(f"frames {row.frames}  dropped {row.frames_dropped}  missing {row.frames_missing}  "
                  f"underruns {row.underruns}")
        if (kept := await store.recording(row.id)) is not None:
            print(f"recording {kept.url}  {kept.seconds:.1f} s  {kept.codec}  lost {kept.lost_s:g} s  "
                  f"paused {kept.paused_s:g} s")
        _print_measures(await store.measures(row.id))
        _print_timeline(await store.utterances(row.id), await store.controls(row.id), await store.moves(row.id),
                        await store.line_events(row.id))


def _print_timeline(utterances: Iterable[UtteranceRow], controls: Iterable[ControlRow], moves: Iterable[MoveRow],
                    line: Iterable[LineRow]) -> None:
    """What was said, what operators did, how the call moved and what happened on its line, in one order."""
    lines = [(one.start_s or 0.0, one.end_s or 0.0, f"{one.speaker}: {one.text}") for one in utterances]
    for control in controls:
        what = f"{control.action}{' muted' if control.mute else ''}{f' {control.text!r}' if control.text else ''}"
        outcome = control.outcome + (f" ({control.why})" if control.why else "")
        lines.append((FRAME_S * control.first_k, FRAME_S * (control.k + 1), f"[{control.by}] {what}: {outcome}"))
    lines += [(FRAME_S * move.k, FRAME_S * move.k + move.seconds,
               f"[moved] {move.worker_before} ({move.why}) -> {move.worker}, {move.steps} steps remembered")
              for move in moves]
    lines += [(FRAME_S * one.k, FRAME_S * one.k, f"[line] {line_in_words(one.what, one.side, one.text, one.via)}")
              for one in line]
    for start_s, end_s, text in sorted(lines):
        print(f"{start_s:8.2f} {end_s:8.2f}  {text}")


def _print_measures(measures: Mapping[str, Measure]) -> None:
    for names in (HOPS, TURNS):
        there = [measures[name] for name in names if name in measures and measures[name].p50_s is not None]
        if there:
            print(f"{'milliseconds':12}  {'count':>6}  {'p50':>6}  {'p95':>6}  {'p99':>6}")
        for measure in there:
            quantiles = (measure.p50_s, measure.p95_s, measure.p99_s)
            cells = (f"{1000 * quantile:6.1f}" if quantile is not None else "     -" for quantile in quantiles)
            print(f"{measure.name:12}  {measure.count:6}  {'  '.join(cells)}")
    if "overlap" in measures:
        told = ((name, measures[name].count) for name in ("interruption", "backchannel", "concealed")
                if name in measures)
        print("  ".join((f"overlap {measures['overlap'].total_s:g} s", *(f"{name} {count}" for name, count in told))))


@asynccontextmanager
async def open_store(settings: Settings) -> AsyncIterator[Store]:
    """The settings' Postgres, or that of the Tandem that runs here. Raises UserError."""
    store = Store(_url(settings))
    try:
        with told_in_one_line(StoreError):
            yield store
    finally:
        await store.close()


def _url(settings: Settings) -> str:
    if settings.database_url is not None:
        return settings.database_url.get_secret_value()
    with told_in_one_line(EmbeddedError):
        return running_postgres(settings.data_dir)


def _time(row: CallRow) -> str:
    return f"{row.received_at.astimezone():%Y-%m-%d %H:%M:%S}"


def _seconds(row: CallRow) -> str:
    return f"{(row.ended_at - row.answered_at).total_seconds():.1f}" if row.ended_at and row.answered_at else "-"


def _end(row: CallRow) -> str:
    if row.end_reason is None:
        return row.state
    status = f" {row.sip_status}" if row.sip_status else ""
    detail = f" ({row.end_detail})" if row.end_detail else ""
    return f"{row.end_reason}{status}{detail}"
