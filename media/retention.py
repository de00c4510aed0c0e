"""Rules of retention carried out: calls, recordings and token logs that are too old go, what must not be kept is
redacted in words and sound.

The persister does so every RUN_S, a bounded piece at a time; one process at a time works on what all share, and each on
its own machine's token logs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from redis.asyncio import Redis
from redis.exceptions import RedisError

from calls.audit import Audit
from calls.erasing import Erasing
from calls.retention_store import RetentionStore, Version
from calls.store import Store, StoreError
from media.recordings import Codec, StorageError, remove, silence
from media.token_log import SUFFIX

RUN_S = 60.0
AT_ONCE = 200  # calls, recordings, logs of a piece; the rest is the next one's
PIECES = 10  # of one kind in one run, lest it never ends
MOST_FAILED = 5  # calls that can't be redacted now, in one run
LEASE_S = 600
WHO = "retention"
_KEY = "tandem:{retention}"

log = logging.getLogger(__name__)


@dataclass
class Report:
    """What was done, or would be."""

    calls_erased: int = 0
    recordings_removed: int = 0
    token_logs_removed: int = 0
    calls_redacted: int = 0
    found: Counter[str] = field(default_factory=Counter)
    recordings_silenced: int = 0
    failed: list[str] = field(default_factory=list)  # what couldn't be done now, a line each


class Keeping:
    """Methods raise StoreError."""

    def __init__(self, store: Store, data_dir: Path) -> None:
        self._rules, self._erasing, self._audit = RetentionStore(store), Erasing(store), Audit(store)
        self._logs = data_dir / "calls"

    async def run(self, *, dry_run: bool = False, who: str = WHO) -> Report:
        """Everything that is due now, at most PIECES of AT_ONCE of each kind."""
        report, version = Report(), await self._rules.newest()
        await self._erase(version, report, dry_run, who)
        await self._remove_recordings(version, report, dry_run, who)
        await self._redact(version, report, dry_run, who)
        if not dry_run:
            await self._finish(report)
        await self.sweep(version, report, dry_run=dry_run)
        return report

    async def _erase(self, version: Version, report: Report, dry_run: bool, who: str) -> None:
        days = version.rules.calls_days
        for _ in range(PIECES if days is not None else 0):
            assert days is not None
            old = await self._rules.old_calls(days, PIECES * AT_ONCE if dry_run else AT_ONCE)
            if dry_run:
                report.calls_erased = len(old)
                return
            if not old:
                return
            report.calls_erased += len(await self._erasing.erase(old))
            await self._audit.note(who, "calls erased", f"{len(old)} calls", f"older than {days} days")

    async def _remove_recordings(self, version: Version, report: Report, dry_run: bool, who: str) -> None:
        days = version.rules.recordings_days
        if days is None:
            return
        old = await self._rules.old_recordings(days, PIECES * AT_ONCE)
        if dry_run:
            report.recordings_removed = len(old)
            return
        gone = await self._removed(old, report)
        if gone:
            await self._rules.forget_recordings(gone)
            await self._audit.note(who, "recordings removed", f"{len(gone)} recordings", f"older than {days} days")
        report.recordings_removed += len(gone)

    async def _redact(self, version: Version, report: Report, dry_run: bool, who: str) -> None:
        if not version.rules.redacts:
            return
        failed = 0
        for call in await self._rules.to_redact(version.number, PIECES * AT_ONCE):
            try:
                done = await self._rules.redact(call, version, dry_run=dry_run)
            except StoreError as error:
                report.failed.append(f"call {call}: {error}")
                failed += 1
                if failed == MOST_FAILED:
                    return
                continue
            if not done.found:
                continue
            report.calls_redacted += 1
            report.found.update(done.found)
            if not dry_run:
                told = ", ".join(f"{name}: {count}" for name, count in sorted(done.found.items()))
                await self._audit.note(who, "call redacted", call, told)

    async def _finish(self, report: Report) -> None:
        """Sound that must go, or fall silent; where its storage is away, the next time."""
        gone = await self._removed(await self._erasing.left(), report)
        if gone:
            await self._erasing.removed(gone)
        await self._erasing.forget()
        for call, url, codec, spans in await self._rules.to_silence(AT_ONCE):
            try:
                if codec not in get_args(Codec):
                    raise StorageError(f"{url}: {codec} can't be silenced")
                size = await silence(url, codec, spans)  # type: ignore[arg-type]
            except StorageError as error:
                report.failed.append(str(error))
            else:
                await self._rules.silenced(call, size)
                report.recordings_silenced += 1

    async def _removed(self, urls: dict[str, str], report: Report) -> list[str]:
        gone = []
        for call, url in urls.items():
            try:
                await remove(url)
                gone.append(call)
            except StorageError as error:
                report.failed.append(str(error))
        return gone

    async def sweep(self, version: Version, report: Report, *, dry_run: bool = False) -> None:
        """This machine's token logs: those that are too old, and those of calls that were erased or redacted."""
        files = await asyncio.to_thread(lambda: sorted(self._logs.glob("*" + SUFFIX)))
        days = version.rules.token_logs_days
        old = {path for path in files if days is not None and _age_s(path) > 86400 * days}
        for begin in range(0, len(files), AT_ONCE):
            piece = files[begin:begin + AT_ONCE]
            calls = [path.name.removesuffix(SUFFIX) for path in piece]
            without = await self._erasing.of(calls) | await self._rules.without_token_logs(calls)
            old |= {path for path, call in zip(piece, calls, strict=True) if call in without}
        report.token_logs_removed += len(old)
        if not dry_run:
            await asyncio.to_thread(_unlink, old)


async def keep_rules(store: Store, redis: Redis, data_dir: Path, stop: asyncio.Event, *, every_s: float = RUN_S
                     ) -> None:
    """Until `stop`: carry the rules out. Where another process has just done so, this one sees to its own files."""
    keeping, rules = Keeping(store, data_dir), RetentionStore(store)
    failing = False
    while not stop.is_set():
        try:
            if await redis.set(_KEY, "", nx=True, ex=LEASE_S):
                try:
                    report = await keeping.run()
                finally:
                    await redis.pexpire(_KEY, round(900 * every_s))
                for line in report.failed[:3]:
                    log.warning("retention: %s", line)
            else:
                await keeping.sweep(await rules.newest(), Report())
            failing = False
        except (StoreError, RedisError, OSError) as error:
            if not failing:
                log.warning("retention waits: %s", error)
            failing = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(every_s):
                await stop.wait()


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:  # gone meanwhile
        return 0.0


def _unlink(paths: Iterable[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
