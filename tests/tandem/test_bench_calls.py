"""`tandem bench calls`: two phones for a few seconds, and what is told of them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from calls.events import CallMeasured, Envelope, Measure, encode
from tandem.bench_calls_command import Cost, Told, _costs, _hops, _role


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "tandem", "bench", "calls", *arguments], cwd=cwd, text=True,
                          capture_output=True, timeout=120, check=False)


def test_a_phone_and_a_browser_are_measured_from_end_to_end(tmp_path: Path) -> None:
    done = run("--sip", "1", "--webrtc", "1", "--minutes", "0.1", "--user", "echo", "--plot", "calls.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 of 1 SIP calls and 1 of 1 from browsers to echo, 6 s each" in done.stdout
    frames = dict(re.findall(r"^ *(frames(?: \w+)?|underruns) +(\d+)", done.stdout, re.M))
    assert int(frames["frames"]) == pytest.approx(2 * 6 / 0.08, abs=20)
    assert (frames["frames dropped"], frames["frames missing"]) == ("0", "0")
    for hop in ("bridge", "link", "wait", "step", "playout", "whole"):
        assert re.search(rf"^ *{hop} +\d+( +[\d.]+ \([\d.]+\)){{3}}", done.stdout, re.M), done.stdout
    for role in ("worker", "sip", "webrtc", "persist", "web", "postgres"):
        assert re.search(rf"^ *{role} +\d+ ", done.stdout, re.M), done.stdout
    likeness = [float(found) for found in re.findall(r"^ *[12] +\w+ +\d+ +\d+ +\d+ +([\d.]+)", done.stdout, re.M)]
    assert len(likeness) == 2
    assert min(likeness) > 0.8, "each hears its own voice"
    assert (tmp_path / "calls.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("arguments", "complaint"), [
    (("--user", "somebody"), "--user somebody: give agent or echo"),
    (("--plot", "calls.txt"), "calls.txt: give a .png or an .svg"),
    (("--sip", "0"), "--sip and --webrtc: nobody calls"),
    (("--uri", "sip:agent@127.0.0.1"), "--uri: TANDEM_REDIS_URL must name that Tandem's Redis"),
])
def test_what_cant_be_measured_is_named(tmp_path: Path, arguments: tuple[str, ...], complaint: str) -> None:
    done = run(*arguments, "--minutes", "0.1", cwd=tmp_path)
    assert done.returncode == 1
    assert complaint in done.stderr


def test_of_each_call_the_last_measures_count() -> None:
    from datetime import UTC, datetime

    def told_of(call: str, milliseconds: float) -> bytes:
        seconds = milliseconds / 1000
        measures = (Measure("step", 100, 100 * seconds, seconds, seconds, seconds),)
        return encode(Envelope(call, "bridge", 1, 1, datetime.now(UTC), CallMeasured(measures)))

    told = Told()
    for data in (told_of("a", 90), told_of("a", 10), told_of("b", 20), told_of("c", 60), b"nothing"):
        told.take(data)
    assert [measure.p50_s for measure in told.of("step")] == [0.01, 0.02, 0.06]
    table = _hops(told)
    assert table.row_count == 1
    assert [next(iter(column.cells)) for column in table.columns] == ["step", "300", *["20.0 (60.0)"] * 3]


def test_processes_are_told_apart_by_what_they_run() -> None:
    assert _role(["python", "-m", "tandem", "worker"]) == "worker"
    assert _role(["python", "-c", "from multiprocessing.spawn import spawn_main; spawn_main()"]) == "sip"
    assert _role(["/somewhere/bin/redis-server", "127.0.0.1:0"]) == "redis"
    assert _role(["postgres: checkpointer"]) == "postgres"
    cost = Cost([1.0, 2.0], {"worker": [0.2, 0.4]}, {"worker": [500.0, 510.0]}, {"worker": 1})
    told = [next(iter(column.cells)) for column in _costs(cost).columns]
    assert told == ["worker", "1", "0.300", "0.40", "500", "510"]
