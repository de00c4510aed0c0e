"""`tandem telephony …` and `tandem call place`."""

from __future__ import annotations

import asyncio
import json
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

from calls.audit import Audit
from calls.causes import in_words, outcome
from calls.connect import open_redis
from calls.dialling import Dial, Dials
from calls.routing import RoutingUnavailable
from calls.settings import Settings
from calls.store import CallRow
from calls.telephony import TELEPHONY, BadTelephony, Telephony, changes, telephony_of
from calls.telephony_published import publish, states
from calls.telephony_store import Outdated, TelephonyStore
from tandem.call_commands import open_store
from tandem.control_command import redis_url, whoever_this_is
from tandem.errors import UserError, told_in_one_line
from tandem.serve import sealing_secret

MOST_BYTES = 1024 * 1024  # of a document
POLL_S = 0.3
LONGEST_RING_S = 200.0


def show(settings: Settings) -> None:
    """Print the newest version."""
    async def run() -> None:
        async with open_store(settings) as store:
            version = await TelephonyStore(store, b"").newest()
        print(f"version {version.number}{f', {version.at:%Y-%m-%d %H:%M} by {version.by}' if version.at else ''}",
              file=sys.stderr)
        print(json.dumps(TELEPHONY.dump_python(version.document.shown(), mode="json"), indent=2, ensure_ascii=False))

    asyncio.run(run())


def check(path: Path) -> None:
    """Raises UserError for a document that isn't good."""
    document = _document(path)
    print(f"good: {len(document.trunks)} trunks, {len(document.inbound.routes)} routes, "
          f"{len(document.outbound.destinations)} destinations")


def save(settings: Settings, path: Path, over: int | None) -> None:
    """Keep a document, and let the SIP processes have it."""
    document = _document(path)
    secret = sealing_secret(settings, "passwords").encode()

    async def run() -> None:
        async with open_store(settings) as store:
            documents = TelephonyStore(store, secret)
            before = await documents.newest()
            saved = await documents.save(document, whoever_this_is(), over)
            await Audit(store).note(f"{whoever_this_is()} (command line)", "telephony changed",
                                    f"version {saved.number}", changes(before.document, saved.document))
        print(f"version {saved.number}: {changes(before.document, saved.document)}")
        async with open_redis(redis_url(settings)) as redis:
            await publish(redis, saved)

    with told_in_one_line(BadTelephony, Outdated, RoutingUnavailable):
        asyncio.run(run())


def list_trunks(settings: Settings) -> None:
    """Print a line for each trunk in each SIP process."""
    async def run() -> None:
        async with open_redis(redis_url(settings)) as redis:
            for one in await states(redis, time.time()):
                again = f"  again in {one.next_s:.0f} s" if one.next_s is not None else ""
                status = f"  {one.sip_status} {one.reason}" if one.sip_status else ""
                print(f"{one.trunk:20}  {one.state:12}{status}{again}  {one.bridge}")

    with told_in_one_line(RoutingUnavailable):
        asyncio.run(run())


def place(settings: Settings, dial: Dial, *, wait: bool) -> None:
    """Have a call made and print its id; with `wait`, what became of it by then."""
    async def ask() -> str:
        async with open_redis(redis_url(settings)) as redis:
            answer = await Dials(redis).place(dial)
        if answer.error:
            raise UserError(answer.message)
        return answer.call

    with told_in_one_line(RoutingUnavailable):
        call = asyncio.run(ask())
    print(call)
    if wait:
        print(asyncio.run(_outcome(settings, call)))


async def _outcome(settings: Settings, call: str) -> str:
    """What became of a call that we make. Raises UserError where it isn't known in time."""
    deadline = time.monotonic() + LONGEST_RING_S
    async with open_store(settings) as store:
        while time.monotonic() < deadline:
            row: CallRow | None = await store.call(call)
            if row is not None and (row.answered_at or row.end_reason):
                found = outcome(row.answered_at is not None, row.end_reason)
                why = in_words(row.end_reason, row.end_detail, row.sip_status, row.q850)
                return f"{found}: {why}" if why else found
            await asyncio.sleep(POLL_S)
    raise UserError(f"nothing is known of it after {LONGEST_RING_S:g} s")


def _document(path: Path) -> Telephony:
    """Raises UserError."""
    try:
        if str(path) == "-":
            data = sys.stdin.buffer.read(MOST_BYTES + 1)
        else:
            with path.open("rb") as file:
                data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror})") from None
    if len(data) > MOST_BYTES:
        raise UserError(f"{path}: a document has at most {MOST_BYTES} bytes")
    try:
        content: Any = tomllib.loads(data.decode()) if path.suffix == ".toml" else json.loads(data)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    with told_in_one_line(BadTelephony):
        return telephony_of(content)
