from __future__ import annotations

import numpy as np
import pytest

from calls import wire
from media.audio import FRAME_BYTES, FRAME_SAMPLES
from media.moves import SPEAKING_FRAMES, goes_on_speaking

QUIET = bytes(FRAME_BYTES)
LOUD = np.full(FRAME_SAMPLES, 3000, "<i2").tobytes()
WORD = 9


def steps(*texts: int) -> list[wire.Step]:
    return [wire.Step(k, text, text, 0, (), (), -1, (), 0.0, 0.0, 0.0, 0, 0) for k, text in enumerate(texts)]


@pytest.mark.parametrize(("texts", "sound", "goes_on"), [
    ((wire.PAD, wire.EPAD, WORD, wire.PAD), (LOUD, LOUD, LOUD, LOUD, QUIET, QUIET), True),
    ((wire.PAD, wire.EPAD, WORD, wire.PAD), (QUIET, QUIET, QUIET, QUIET, QUIET, LOUD), False),
    ((wire.PAD,) * 4, (QUIET,) * 6, False),
    ((WORD, *(wire.PAD,) * SPEAKING_FRAMES), (QUIET,) * (SPEAKING_FRAMES + 3), False),
    ((wire.PAD, WORD), (), True),
    ((), (QUIET,), False),
], ids=["in a word", "somebody speaks meanwhile", "it listens", "it has spoken", "nothing came since", "at the begin"])
def test_an_agent_in_the_middle_of_its_words_goes_on_unless_somebody_spoke(
        texts: tuple[int, ...], sound: tuple[bytes, ...], goes_on: bool) -> None:
    assert goes_on_speaking(steps(*texts), enumerate(sound)) is goes_on
