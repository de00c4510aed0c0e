"""What agents write, frame by frame, on its way to those who watch just now. Nothing of it is kept.

    session ──a Written each frame──▶ MonologueTeller ──a batch, five times a second──▶ one short stream ──▶ LiveEvents
                                            ▲                                                                    │
                                            └────── a mark that somebody watches, renewed each second ◀──────────┘

While nobody watches, a bridge sends nothing: a session keeps the last KEPT frames, and the bridge asks for the mark
with its heartbeat. These aren't events (calls/events.py): they would be ten times as many rows as all that is said, and
for good there is the token log, which has each of them. Who doesn't keep up, or comes late, misses some.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError
from redis.asyncio import Redis
from redis.exceptions import RedisError

from calls import wire

TOLD_EVERY_S = 0.2
KEPT = 64  # frames of a call that wait to be told: 5 s
MOST_BATCHES = 400  # in the stream, of all bridges; a little more, as Redis trims by blocks
STREAM_LASTS_S = 30.0  # after the last batch
WATCHED_S = 3.0  # for which a mark is good
MARKED_EVERY_S = 1.0
STREAM = "tandem:{monologues}:stream"
WATCHED = "tandem:{monologues}:watched"

Token = Literal["pad", "epad", "piece", "other"]


@dataclass(frozen=True)
class Written:
    """The text token that frame k took, and the one that the model would have taken by itself. A piece's text begins
    with ▁ where a word begins; other tokens have none."""

    k: int
    token: Token
    piece: str
    how: Literal["free", "barred", "forced"]  # barred: the model's, of those that it might take
    muted: bool
    wanted: Token
    wanted_piece: str


Told = Mapping[str, tuple[Written, ...]]  # by call
_TOLD: TypeAdapter[dict[str, tuple[Written, ...]]] = TypeAdapter(dict[str, tuple[Written, ...]])


@dataclass(frozen=True)
class Batch:
    """What one bridge told at once; `id` is the stream's."""

    id: str
    calls: Told

    def of(self, call: str) -> Batch:
        return Batch(f"{self.id} {call}", {call: self.calls[call]})


class LastWritten:
    """A call's last frames that nobody was told of yet (pure)."""

    def __init__(self) -> None:
        self._frames: deque[Written] = deque(maxlen=KEPT)
        self._text: wire.Text | None = None

    def text(self, text: wire.Text) -> None:
        """The pieces of a step that comes next."""
        if text.speaker == "agent" and text.word is None:
            self._text = text

    def step(self, step: wire.Step) -> None:
        piece, wanted = "", ""
        if self._text is not None and self._text.k == step.k:
            piece, wanted = self._text.piece, self._text.sampled
        forced, barred = step.mode & wire.FORCED, step.mode & wire.TEXT_MODE
        self._frames.append(Written(
            step.k, _token(step.text, piece), piece, "forced" if forced else "barred" if barred else "free",
            bool(step.mode & wire.MUTED), _token(step.sampled_text, wanted), wanted))

    def take(self) -> tuple[Written, ...]:
        frames = tuple(self._frames)
        self._frames.clear()
        return frames


def _token(token: int, piece: str) -> Token:
    if token == wire.PAD:
        return "pad"
    if token == wire.EPAD:
        return "epad"
    return "piece" if piece else "other"


class MonologueTeller:
    """A bridge's side."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._watched = asyncio.Event()

    async def look(self) -> None:
        """Whether anybody watches. Raises RedisError or OSError."""
        if await self._redis.exists(WATCHED):
            self._watched.set()
        else:
            self._watched.clear()

    async def run(self, take: Callable[[], Told]) -> None:
        """Tells what `take` gives, as long as anybody watches, until it is cancelled. Without Redis it is left out."""
        while True:
            await self._watched.wait()
            if told := take():
                with contextlib.suppress(RedisError, OSError):
                    await self._tell(told)
            await asyncio.sleep(TOLD_EVERY_S)

    async def _tell(self, told: Told) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.xadd(STREAM, {"written": _TOLD.dump_json(dict(told))}, maxlen=MOST_BATCHES, approximate=True)
        pipeline.pexpire(STREAM, round(1000 * STREAM_LASTS_S))
        await pipeline.execute()


async def mark_watched(redis: Redis) -> None:
    """Have bridges tell, for WATCHED_S. Raises RedisError or OSError."""
    await redis.set(WATCHED, "1", px=round(1000 * WATCHED_S))


def batch_of(id: str, fields: Mapping[Any, Any]) -> Batch | None:
    """An entry of the stream; None where it isn't one of ours."""
    try:
        return Batch(id, _TOLD.validate_json(fields[b"written"] if b"written" in fields else fields["written"]))
    except (KeyError, ValidationError):
        return None
