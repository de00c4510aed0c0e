"""The steps that a call's caller heard: in memory while it lasts, one file at its end.

A file is a line of JSON (the header) and then rows of one length, `wire.StepLayout`'s, in the order of k.
Rows are kept as long as a model that is rebuilt from them can make use of them.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from calls import wire

FORMAT = 1
SUFFIX = ".tokens"
HEADER_BYTES = 4096  # at most
PENDING = 64  # steps whose sound hasn't been heard yet: about 5 s


class TokenLogError(ValueError):
    """One line that names the file and what is wrong with it."""


@dataclass(frozen=True)
class Header:
    """What one needs to know to read the rows."""

    call: str
    model: str
    answered_at: str  # ISO 8601, the call's sample 0
    generated_codebooks: int
    caller_codebooks: int
    pause_heads: int
    first_k: int
    steps: int
    format: int = FORMAT

    @property
    def layout(self) -> wire.StepLayout:
        return wire.StepLayout(self.generated_codebooks, self.caller_codebooks, self.pause_heads)


class TokenLog:
    """One call's steps. `add` takes them as they come, `heard` says up to where the caller has heard them."""

    def __init__(self, layout: wire.StepLayout, kept_steps: int) -> None:
        self.layout = layout
        self._rows: deque[tuple[int, bytes]] = deque(maxlen=kept_steps)
        self._pending: deque[tuple[int, bytes]] = deque(maxlen=PENDING)
        self._anew_from: int | None = None

    def add(self, step: wire.Step) -> None:
        """Take the step of a frame that may be heard soon; k rises."""
        self._pending.append((step.k, self.layout.pack(step)))

    def heard(self, k: int) -> None:
        """The caller has begun to hear frame k, so the steps up to it are part of the call."""
        while self._pending and self._pending[0][0] <= k:
            self._rows.append(self._pending.popleft())

    def forget_unheard(self) -> None:
        """What was on its way to the caller never arrives."""
        self._pending.clear()

    def begin_anew(self, k: int) -> None:
        """From frame k on the agent knows nothing of the steps before."""
        self._anew_from = k

    @property
    def anew(self) -> bool:
        return self._anew_from is not None

    def steps(self) -> tuple[wire.Step, ...]:
        """The steps that were heard, for a worker that has to rebuild the call."""
        return self._known(self._rows)

    def all_steps(self) -> tuple[wire.Step, ...]:
        """Those and the ones on their way to the caller, for a worker that follows the one that has the call."""
        return self.steps() + self._known(self._pending)

    def _known(self, rows: Iterable[tuple[int, bytes]]) -> tuple[wire.Step, ...]:
        """Those that the agent knows of."""
        first_k = self._anew_from or 0
        return tuple(self.layout.unpack(row) for k, row in rows if k >= first_k)

    def __len__(self) -> int:
        return len(self._rows)

    def write(self, path: Path, call: str, model: str, answered_at: str) -> None:
        """Write the file, whole or not at all; makes its folder. Raises OSError."""
        layout = self.layout
        header = Header(call, model, answered_at, layout.generated_codebooks, layout.caller_codebooks,
                        layout.pause_heads, self._rows[0][0] if self._rows else 0, len(self._rows))
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        try:
            with part.open("wb") as file:
                file.write(json.dumps(asdict(header)).encode() + b"\n")
                file.writelines(row for _, row in self._rows)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


def token_log_path(data_dir: Path, call: str) -> Path:
    return data_dir / "calls" / (call + SUFFIX)


def read_token_log(path: Path) -> tuple[Header, Iterator[wire.Step]]:
    """A file's header and its steps; raises TokenLogError."""
    try:
        with path.open("rb") as file:
            line = file.readline(HEADER_BYTES)
            rows = file.read()
    except OSError as error:
        raise TokenLogError(f"{path}: can't be read ({error.strerror})") from None
    try:
        header = Header(**json.loads(line))
    except (ValueError, TypeError):
        raise TokenLogError(f"{path}: doesn't begin with a token log's header") from None
    if header.format != FORMAT:
        raise TokenLogError(f"{path}: is of format {header.format}, not {FORMAT}")
    size = header.layout.row.size
    if len(rows) != size * header.steps:
        raise TokenLogError(f"{path}: has {len(rows)} bytes of steps, its header says {size * header.steps}")
    return header, (header.layout.unpack(rows[at:at + size]) for at in range(0, len(rows), size))
