"""Labels of a moment: the phone, or the word, that is spoken then, or silence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from agent.train.phones import PHONES
from agent.train.render import Word

SILENCE = 0  # the label where nobody speaks; phones follow
LABELS = 1 + len(PHONES)
LABELS_PER_FRAME = 2  # of the 40 ms around 20 and 60 ms: a phone is often shorter than a frame
LAG_S = 0.08  # a frame's labels are those of the frame before: a phone is told by what follows it, too

_JOINED_S = 0.01  # a gap so short between two phones is none


def phone_label(phone: str) -> int:
    return 1 + PHONES.index(phone)


def labels_at(times_s: npt.NDArray[np.float64], spoken: Sequence[Word],
              label: Callable[[str], int] = phone_label) -> npt.NDArray[np.int64]:
    """The labels [n] at these times of phones, or words, in their order."""
    changes = [(part.begin_s, label(part.text)) for part in spoken]
    changes += [(part.end_s, SILENCE) for part, after in pairwise([*spoken, None])
                if part is not None and (after is None or after.begin_s > part.end_s + _JOINED_S)]
    changes.sort(key=lambda change: change[0])
    begins = np.array([-np.inf, *(at for at, _ in changes)])
    labels = np.array([SILENCE, *(label for _, label in changes)], np.int64)
    return labels[np.searchsorted(begins, times_s, side="right") - 1]
