"""The roles of one machine as child processes: started, watched, restarted, ended in order."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.5  # before a restart; doubles with every one that follows soon
LONGEST_PAUSE_S = 30.0
PR_SET_PDEATHSIG = 1  # prctl(2)
LONGER_THAN_DRAIN_S = 20.0  # a role that drains gets so much more before it is killed
STEADY_S = 60.0  # a role that ran so long starts again with the first pause


@dataclass(eq=False)
class Role:
    """A child process that runs `tandem NAME`."""

    name: str
    process: asyncio.subprocess.Process | None = None
    pause_s: float = FIRST_PAUSE_S
    watcher: asyncio.Task[None] | None = field(default=None, repr=False)


class Supervisor:
    """Keeps roles running. They get sessions of their own, so that a terminal's Ctrl-C reaches only us.

    A role that ends before all are ready is no accident but a wrong setting: it isn't started again.
    """

    def __init__(self, names: Sequence[str], environment: Mapping[str, str]) -> None:
        self._roles = [Role(name) for name in names]
        self._environment = {**os.environ, **environment}
        self._stopping = False
        self.settled = False  # set once all are ready: from then on a role that ends is started again
        self.failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()  # the role that can't start

    async def start(self) -> None:
        for role in self._roles:
            await self._spawn(role)
            role.watcher = asyncio.create_task(self._watch(role))

    async def stop(self, timeout_s: float, hurry: asyncio.Event) -> None:
        """End the roles one after the other, in the order in which they were named; `hurry` cuts the waits short.

        A role gets SIGTERM and `timeout_s` to end its calls; with `hurry` a second SIGTERM and 5 s; then SIGKILL.
        """
        self._stopping = True
        for role in self._roles:
            if role.watcher is not None:
                role.watcher.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await role.watcher
            await _end(role, timeout_s, hurry)

    async def _spawn(self, role: Role) -> None:
        role.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tandem", role.name, env=self._environment, start_new_session=True,
            stdin=asyncio.subprocess.DEVNULL, preexec_fn=_end_with_parent)

    async def _watch(self, role: Role) -> None:
        while not self._stopping:
            assert role.process is not None
            began = time.monotonic()
            code = await role.process.wait()
            if not self.settled:
                if not self.failed.done():
                    self.failed.set_result(f"{role.name} can't start: it ended with {_verdict(code)}")
                return
            if time.monotonic() - began > STEADY_S:
                role.pause_s = FIRST_PAUSE_S
            log.error("%s ended with %s; it starts again in %g s", role.name, _verdict(code), role.pause_s)
            await asyncio.sleep(role.pause_s)
            role.pause_s = min(2 * role.pause_s, LONGEST_PAUSE_S)
            await self._spawn(role)


async def _end(role: Role, timeout_s: float, hurry: asyncio.Event) -> None:
    process = role.process
    if process is None or process.returncode is not None:
        return
    process.terminate()
    ended = asyncio.ensure_future(process.wait())
    hurried = asyncio.ensure_future(hurry.wait())
    try:
        await asyncio.wait({ended, hurried}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await asyncio.wait({ended}, timeout=5.0)
        if not ended.done():
            log.error("%s doesn't end by itself and is killed", role.name)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await ended
    finally:
        hurried.cancel()


def _end_with_parent() -> None:
    """In the child, before it becomes the role: the kernel sends it SIGTERM when we die without a word."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _verdict(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
