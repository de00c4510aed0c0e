"""What must be in time goes before others: a session's niceness, by what the kernel says of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from calls.priority import BESIDE_STEPS, SESSION, session_before_others

OWN = Path("/proc/self/autogroup")
PRINTS_ITS_OWN = """
import os, sys
from calls.priority import session_before_others
session_before_others(int(sys.argv[1]))
print(open("/proc/self/autogroup").read(), os.getpriority(os.PRIO_PROCESS, 0))
"""

pytestmark = pytest.mark.skipif(not OWN.exists(), reason="this kernel doesn't share its cores among sessions")


def niceness_after(niceness: int, *, leads: bool) -> int:
    """Of the session of a process that asks for it."""
    told = subprocess.run([sys.executable, "-c", PRINTS_ITS_OWN, str(niceness)], start_new_session=leads,
                          capture_output=True, text=True, check=True).stdout
    return niceness_of(told)


def niceness_of(told: str) -> int:
    found = re.fullmatch(r"/autogroup-\d+ nice (-?\d+)\s+(-?\d+\s*)?", told)
    assert found, told
    return int(found[1])


@pytest.fixture
def other() -> Iterator[int]:
    """A process that leads a session."""
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as process:
        yield process.pid
        process.kill()


def may_go_before_others(other: int) -> bool:
    try:
        os.setpriority(os.PRIO_PROCESS, other, SESSION)
    except PermissionError:
        return False
    return True


def test_a_process_that_leads_its_session_gives_it_its_niceness() -> None:
    assert niceness_after(BESIDE_STEPS, leads=True) == BESIDE_STEPS


def test_a_session_goes_before_others_where_that_is_allowed_and_stays_as_it_was_elsewhere(other: int) -> None:
    assert niceness_after(SESSION, leads=True) == (SESSION if may_go_before_others(other) else 0)


def test_so_does_that_of_a_server_which_was_started(other: int) -> None:
    session_before_others(process=other)
    assert niceness_of(Path(f"/proc/{other}/autogroup").read_text()) == (SESSION if may_go_before_others(other) else 0)


def test_a_process_that_has_ended_is_no_error() -> None:
    ended = subprocess.Popen(["true"], start_new_session=True)
    ended.wait()
    session_before_others(process=ended.pid)  # raises nothing
    assert not Path(f"/proc/{ended.pid}").exists()


def test_a_session_that_others_lead_stays_as_it_was() -> None:
    before = niceness_of(OWN.read_text())
    assert niceness_after(BESIDE_STEPS, leads=False) == before
    assert niceness_of(OWN.read_text()) == before
