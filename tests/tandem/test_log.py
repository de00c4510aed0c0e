"""What a role writes to its log, as whoever collects logs reads it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PROGRAM = """
import asyncio, logging, sys
from calls.log_context import current_call
from tandem import log

log.configure("sip", "info", sys.argv[1])
logger = logging.getLogger("media.session")

def fails(password):
    raise ValueError("it broke")

async def call():
    current_call.set("c1")
    logger.info("no sound comes")
    await asyncio.create_task(within())

async def within():
    logger.info("still none after %d s", 5)

asyncio.run(call())
logger.info("nobody's line")
logger.warning("%s listens to call %s", "ann", "c2")
logger.info("100 %% of call %s", "c3")
try:
    fails("hunter2 is a secret")
except ValueError:
    logger.exception("call %s failed", "c4")
"""


def written(format: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", PROGRAM, format], capture_output=True, text=True, check=True)
    return done.stderr.splitlines()


def test_json_lines_say_which_call_they_are_about() -> None:
    lines = [json.loads(line) for line in written("json")]
    assert [(line["event"], line.get("call")) for line in lines] == [
        ("no sound comes", "c1"), ("still none after 5 s", "c1"), ("nobody's line", None),
        ("ann listens to call c2", "c2"), ("100 % of call c3", "c3"), ("call c4 failed", "c4")]
    assert {(line["role"], line["logger"]) for line in lines} == {("sip", "media.session")}
    assert [line["level"] for line in lines] == ["info", "info", "info", "warning", "info", "error"]
    assert "ValueError: it broke" in lines[-1]["exception"]
    assert all(line["time"].endswith("Z") for line in lines)


@pytest.mark.parametrize("format", ["text", "json"])
def test_a_traceback_never_shows_what_variables_hold(format: str) -> None:
    text = "\n".join(written(format))
    assert "it broke" in text
    assert "hunter2" not in text.replace('fails("hunter2 is a secret")', "")
