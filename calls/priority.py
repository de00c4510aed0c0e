"""Work that must be in time goes before work that only has to be done, where the system lets us."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

MEDIA = -15  # a call's clock: little work, every 20 ms
STEP = -12  # a worker's step: much work, every 80 ms
BESIDE_STEPS = 5  # what a worker makes ahead of its steps

_AUTOGROUP = Path("/proc/self/autogroup")


def before_others(niceness: int) -> None:
    """Give this thread, and those that it starts from now on, this niceness; nothing happens where it isn't allowed."""
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, niceness)  # on Linux 0 is the calling thread


def session_before_others(niceness: int) -> None:
    """Give this process's session this niceness, if it leads one; nothing happens where it isn't allowed.

    Linux shares the cores among sessions first and among their threads then (sched(7), "The autogroup feature"): beside
    programs of other sessions a thread's own niceness counts for nothing. In a control group with a share of its own,
    as a container is, it is that share that counts.
    """
    if os.getsid(0) == os.getpid():
        with contextlib.suppress(OSError):  # not Linux, no such kernel, or not allowed
            _AUTOGROUP.write_text(str(niceness))
