"""`tandem call …`: what Postgres keeps of calls, as text."""

from __future__ import annotations

import asyncio

from rich.console import Console
from rich.table import Table

from calls.settings import Settings
from calls.store import CallRow, Store
from tandem.embedded import EmbeddedError, running_postgres
from tandem.errors import UserError, told_in_one_line


def list_calls(settings: Settings, limit: int) -> None:
    """Print the newest calls, a line each."""
    rows = asyncio.run(_calls(settings, limit))
    table = Table("call", "received", "from", "to", "model", "seconds", "end", box=None, pad_edge=False)
    for row in rows:
        table.add_row(row.id, _time(row), row.caller, row.callee, row.model or "-", _seconds(row), _end(row))
    Console().print(table if rows else "no calls yet")


def show_call(settings: Settings, call_id: str) -> None:
    """Print one call and its utterances."""
    asyncio.run(_show(settings, call_id))


async def _calls(settings: Settings, limit: int) -> list[CallRow]:
    store = Store(_url(settings))
    try:
        return list(await store.calls(limit))
    finally:
        await store.close()


async def _show(settings: Settings, call_id: str) -> None:
    store = Store(_url(settings))
    try:
        row = await store.call(call_id)
        if row is None:
            raise UserError(f"there is no call {call_id}")
        out = Console(highlight=False)
        out.print(f"{row.id}  {row.caller} -> {row.callee}  {_time(row)}  {row.codec or 'not answered'}")
        out.print(f"model {row.model or '-'}  worker {row.worker or '-'}  {_seconds(row)} s  {_end(row)}")
        out.print(f"frames {row.frames}  dropped {row.frames_dropped}  missing {row.frames_missing}  "
                  f"underruns {row.underruns}")
        for utterance in await store.utterances(row.id):
            out.print(f"{utterance.start_s:8.2f} {utterance.end_s:8.2f}  {utterance.speaker}: {utterance.text}")
    finally:
        await store.close()


def _url(settings: Settings) -> str:
    if settings.database_url is not None:
        return settings.database_url.get_secret_value()
    with told_in_one_line(EmbeddedError):
        return running_postgres(settings.data_dir)


def _time(row: CallRow) -> str:
    return f"{row.received_at.astimezone():%Y-%m-%d %H:%M:%S}" if row.received_at else "-"


def _seconds(row: CallRow) -> str:
    return f"{(row.ended_at - row.answered_at).total_seconds():.1f}" if row.ended_at and row.answered_at else "-"


def _end(row: CallRow) -> str:
    status = f" ({row.sip_status})" if row.sip_status else ""
    return f"{row.end_reason}{status}" if row.end_reason else row.state
