"""`tandem worker` whose echo becomes slow: for each call of a step it waits the seconds that the file named says, once
there is one. Run it by `python -P`: beside it lies `tests/agent`, which is no `agent`."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path

from agent import models
from agent.engine import EchoEngine, StepInputs, StepOutputs
from tandem.cli import main

LATE = Path(sys.argv[1])


class LateEcho(EchoEngine):
    def step(self, inputs: StepInputs, *, transcribe: bool = True) -> StepOutputs:
        with contextlib.suppress(OSError, ValueError):  # not there, or just being written
            time.sleep(len(inputs.slots) * float(LATE.read_text()))
        return super().step(inputs, transcribe=transcribe)


if __name__ == "__main__":
    models.EchoEngine = LateEcho  # type: ignore[misc]
    sys.argv[1:] = ["worker"]
    main()
