"""A phone that answers: sipp, beside a test."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from call_peers import SCENARIOS


@contextlib.contextmanager
def answering(port: int, folder: Path, *options: str) -> Iterator[None]:
    """Whoever calls 127.0.0.1:`port` is answered with what they say."""
    process = subprocess.Popen(
        ["sipp", "-sf", str(SCENARIOS / "answers.xml"), "-i", "127.0.0.1", "-p", str(port),
         "-nostdin", "-rtp_echo", *options], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
