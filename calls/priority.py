"""Work that must be in time goes before work that only has to be done, where the system lets us."""

from __future__ import annotations

import contextlib
import os

MEDIA = -15  # a call's clock: little work, every 20 ms
STEP = -12  # a worker's step: much work, every 80 ms
BESIDE_STEPS = 5  # what a worker makes ahead of its steps


def before_others(niceness: int) -> None:
    """Give this thread, and those that it starts from now on, this niceness; nothing happens where it isn't allowed."""
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, niceness)  # on Linux 0 is the calling thread
