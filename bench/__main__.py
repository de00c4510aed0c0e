"""Run what is measured, all of it or the named parts, and add the results to RESULTS.md."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import time
from importlib import import_module
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "RESULTS.md"
PARTS = {
    "reference": "Beside the reference implementation",
    "phases": "Calls of random phases",
    "stt": "The caller's words",
    "codec": "A training of the codec",
    "precision": "In which type a training multiplies",
    "quantised": "8 bits beside float32",
    "bridge": "What the SIP bridge adds",
    "busy_machine": "Calls beside a busy program",
    "playout": "What a piece in hand costs",
    "operators": "The operator's hand",
    "dashboards": "Fifty dashboards",
    "web_bridge": "What the WebRTC bridge adds",
    "leases": "Leases among many workers",
    "scale": "What a call costs Redis and Postgres",
    "search": "Lists and searches over 100,000 calls",
}


def machine() -> str:
    """What the numbers were taken on."""
    model = next((line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.machine())
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (f"{model}, {os.cpu_count()} cores, {device}; Python {platform.python_version()}, "
            f"torch {torch.__version__}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="*", choices=[[], *PARTS],
                        help=f"one or more of {', '.join(PARTS)}; default: all")
    parts = parser.parse_args().part or list(PARTS)
    sections = [f"\n## {datetime.date.today()}: {machine()}\n"]
    for name in parts:
        began = time.monotonic()
        lines = import_module(f"bench.{name}").run()
        sections += [f"### {PARTS[name]} (`python -m bench {name}`, {time.monotonic() - began:.0f} s)\n", *lines, ""]
        print("\n".join(sections[-len(lines) - 2:]))
    with RESULTS.open("a") as file:
        file.write("\n".join(sections))


main()
