from __future__ import annotations

import asyncio
import os
import signal
import sys
import textwrap
from pathlib import Path

import pytest

from tandem import supervisor
from tandem.supervisor import Supervisor

ROLE = """
    import os, signal, sys, time
    folder, name = os.environ["FOLDER"], sys.argv[-1]
    with open(f"{folder}/log", "a") as log:
        log.write(f"{name} {os.getpid()}\\n")
    def end(*_):
        with open(f"{folder}/log", "a") as log:
            log.write(f"{name} ends\\n")
        if name != "stubborn" or os.path.exists(f"{folder}/asked"):
            sys.exit(0)
        open(f"{folder}/asked", "w").close()
    signal.signal(signal.SIGTERM, end)
    while True:
        time.sleep(0.01)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Roles run this program in place of `tandem`; its folder holds what they say of themselves."""
    (tmp_path / "tandem.py").write_text(textwrap.dedent(ROLE))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("FOLDER", str(tmp_path))
    monkeypatch.chdir(tmp_path)  # `python -m` looks here first
    monkeypatch.setattr(supervisor, "FIRST_PAUSE_S", 0.01)
    return tmp_path


async def _lines(folder: Path, count: int) -> list[str]:
    async with asyncio.timeout(10):
        while True:
            lines = (folder / "log").read_text().splitlines() if (folder / "log").exists() else []
            if len(lines) >= count:
                return lines
            await asyncio.sleep(0.01)


async def test_a_role_that_dies_starts_again_and_the_others_stay(folder: Path) -> None:
    roles = Supervisor(["one", "two"], {})
    await roles.start()
    roles.settled = True
    lines = await _lines(folder, 2)
    pids = {line.split()[0]: int(line.split()[1]) for line in lines}
    os.kill(pids["one"], signal.SIGKILL)
    again = (await _lines(folder, 3))[2].split()
    assert again[0] == "one"
    assert int(again[1]) != pids["one"]
    await roles.stop(5, asyncio.Event())
    assert (await _lines(folder, 5))[3:] == ["one ends", "two ends"]


async def test_a_role_that_ends_before_all_are_ready_isnt_started_again_but_named(folder: Path) -> None:
    roles = Supervisor(["one", "two"], {})
    await roles.start()
    lines = await _lines(folder, 2)
    os.kill(next(int(line.split()[1]) for line in lines if line.startswith("two")), signal.SIGKILL)
    assert await asyncio.wait_for(roles.failed, 10) == "two can't start: it ended with SIGKILL"
    await roles.stop(5, asyncio.Event())
    assert (await _lines(folder, 3))[2:] == ["one ends"]


async def test_roles_end_one_after_the_other_in_the_order_in_which_they_were_named(folder: Path) -> None:
    roles = Supervisor(["c", "a", "b"], {})
    await roles.start()
    await _lines(folder, 3)
    await roles.stop(5, asyncio.Event())
    assert (await _lines(folder, 6))[3:] == ["c ends", "a ends", "b ends"]


async def test_hurry_cuts_the_wait_for_a_role_short(folder: Path) -> None:
    roles = Supervisor(["stubborn"], {})
    await roles.start()
    await _lines(folder, 1)
    hurry = asyncio.Event()
    stopping = asyncio.create_task(roles.stop(60, hurry))
    await _lines(folder, 2)
    hurry.set()
    async with asyncio.timeout(10):
        await stopping
    assert (await _lines(folder, 3))[1:] == ["stubborn ends", "stubborn ends"]


async def test_roles_end_when_their_supervisor_is_killed(folder: Path) -> None:
    program = ("import asyncio, sys; from tandem_supervisor import Supervisor\n"
               "async def run():\n    await Supervisor(['one'], {}).start()\n    await asyncio.sleep(60)\n"
               "asyncio.run(run())")
    (folder / "tandem_supervisor.py").write_text(Path(supervisor.__file__).read_text())
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", program)
    await _lines(folder, 1)
    parent.kill()
    await parent.wait()
    assert (await _lines(folder, 2))[1] == "one ends"
