"""What the WebRTC bridge adds to a call: from a packet in to its sound in a packet out, at a bare peer.

As bench/bridge.py does it for SIP. Opus's own look-ahead, 2.5 ms each way, is in the numbers.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import numpy as np

from bench.web_peer import Piece, WebTalk, call
from calls.settings import load_settings
from media.audio import CHUNK, CHUNK_S, FRAME_S, SAMPLE_RATE
from tandem.embedded import embedded_redis
from tandem.own_server import serving

CALLS, SECONDS = 4, 30.0
EVERY = 26  # packets between two clicks: no multiple of a frame's four
FIRST_S = 12.0  # of a call, not counted: the playout begins with a piece more in hand
LOUD = 0.1
_CLICK: Piece = 0.4 * np.sign(np.sin(2 * np.pi * 800 * np.arange(CHUNK) / SAMPLE_RATE + 0.01))
_SILENCE: Piece = np.zeros(CHUNK)


def run() -> list[str]:
    with tempfile.TemporaryDirectory(prefix="tandem-bench-") as name, embedded_redis(Path(name) / "ours") as redis_url:
        settings = load_settings(model="random", slots=1)
        with serving(settings, Path(name), redis_url, echo_slots=4) as ours:
            talks = [asyncio.run(call(ours.web_port, "echo", SECONDS, _said)) for _ in range(CALLS)]
    delays = [delay for talk in talks for delay in _delays(talk)]
    lost = sum(max(talk.sequences) - min(talk.sequences) + 1 - len(set(talk.sequences)) for talk in talks)
    beyond = 1000 * (np.array(delays) - 2 * FRAME_S)
    p5, p50, p95, p99 = np.percentile(beyond, (5, 50, 95, 99))
    spacing = np.percentile(1000 * np.concatenate([np.diff(talk.came_at) for talk in talks]), (5, 50, 95, 99))
    return [
        f"{len(delays)} clicks in {CALLS} calls, Opus; a sample's way, without its two frames:",
        "", "| | p5 | p50 | p95 | p99 |", "|---|---|---|---|---|",
        f"| ms, packet in to packet out | {p5:.0f} | **{p50:.0f}** | {p95:.0f} | {p99:.0f} |",
        f"| ms, from one packet out to the next | {' | '.join(f'{each:.0f}' for each in spacing)} |",
        "", f"{sum(len(talk.came) for talk in talks)} packets out, {lost} of them lost. At most 60 ms (p50) is wanted."]


def _said(number: int) -> Piece:
    return _SILENCE if number % EVERY else _CLICK


def _delays(talk: WebTalk) -> list[float]:
    """Of each click that came back: from its packet's sending to its packet's arrival, in seconds."""
    delays, taken = [], 0
    for number in range(EVERY, len(talk.sent_at), EVERY):
        sent = talk.sent_at[number]
        while taken < len(talk.came) and talk.came_at[taken] < sent:
            taken += 1
        for at in range(taken, len(talk.came)):
            loud = np.flatnonzero(np.abs(talk.came[at]) > LOUD)
            if loud.size:
                if number * CHUNK_S > FIRST_S:
                    delays.append(talk.came_at[at] + loud[0] / SAMPLE_RATE - sent)
                taken = at + 4  # a click may lie in two packets
                break
    return delays
