"""What measures GPUs runs: with a tiny model on a CPU, whose numbers say nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(part: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", f"bench.{part}", "--device", "cpu", "--model", "tiny", *arguments],
                          cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_steps_are_measured_at_all_fills_in_all_ways_with_and_without_speech_to_text() -> None:
    told = run("gpu", "--calls", "1,2", "--steps", "3")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in told.splitlines() if line.startswith("| ")][1:]
    measured = [row for row in rows if len(row) == 10]
    assert [row[:4] for row in measured] == [
        [way, calls, stt, fill] for way in ("float32", "8 bits (int8)") for calls in ("1", "2") for stt in ("no", "yes")
        for fill in ("empty", "half", "full")]
    for row in measured:
        p50, p99, floor = map(float, row[4:7])
        assert 0 < floor < p50 <= p99
        assert int(row[8]) > 100
    operations = {row[2]: int(row[8]) for row in measured[:6]}
    assert operations["yes"] > operations["no"]


@pytest.mark.parametrize("aged", [(), ("--aged",)])
def test_calls_are_carried_over_real_links(aged: tuple[str, ...]) -> None:
    told = run("gpu_calls", "--calls", "3", "--seconds", "3", *aged)
    lines = re.findall(r"^(.+), (\w+) context at first: 3 calls, (\d+) frames: ([\d.]+) % on time, (\d+) lost", told,
                       re.M)
    assert [line[0] for line in lines] == ["float32", "8 bits (int8)"]
    for _, context, frames, _, lost in lines:
        assert context == ("full" if aged else "empty")
        assert int(frames) >= 3 * 10
        assert int(lost) < int(frames)  # a busy machine loses some


def test_without_a_gpu_it_says_so_in_a_line() -> None:
    for part in ("gpu", "gpu_calls"):
        done = subprocess.run([sys.executable, "-m", f"bench.{part}", "--device", "cuda"], cwd=ROOT, text=True,
                              env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, capture_output=True, timeout=120,
                              check=False)
        assert done.returncode == 1
        assert done.stderr == "there is no GPU here; --device cpu --model tiny shows that the harness runs\n"
