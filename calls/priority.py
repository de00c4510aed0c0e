"""Work that must be in time goes before work that only has to be done, where the system lets us."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

MEDIA = -15  # a call's clock: little work, every 20 ms
STEP = -12  # a worker's step: much work, every 80 ms
BESIDE_STEPS = 5  # what a worker makes ahead of its steps
SESSION = -10  # of whatever calls depend on; the same for all, or a full machine would starve those that have less


def before_others(niceness: int) -> None:
    """Give this thread, and those that it starts from now on, this niceness; nothing happens where it isn't allowed."""
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, niceness)  # on Linux 0 is the calling thread


def session_before_others(niceness: int = SESSION, process: int | None = None) -> None:
    """Give the session that this process leads, or another one, this niceness; nothing happens where it isn't allowed,
    or where it leads none.

    Linux shares the cores among sessions first and among their threads then (sched(7), "The autogroup feature"): beside
    programs of other sessions a thread's own niceness counts for nothing. In a control group with a share of its own,
    as a container is, it is that share that counts.
    """
    leader = os.getpid() if process is None else process
    with contextlib.suppress(OSError):  # not Linux, no such kernel, not allowed, or the process has ended
        if os.getsid(leader) == leader:
            Path(f"/proc/{leader}/autogroup").write_text(str(niceness))
