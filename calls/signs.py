"""Signs of a broken conversation, from what the model measures of itself in each step (pure).

Moshi's paper (appendix D) tells them by the entropies, in nats, of the last 64 frames' tokens: of the text, and of the
agent's codebooks. A sign counts once it has lasted HOLD_STEPS, and again only after it was gone for as long.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Literal

Sign = Literal["noise", "gibberish", "noisy sound", "repetition"]

WINDOW = 64  # steps that each entropy looks at
HOLD_STEPS = 25  # two seconds

GIBBERISH = 3.5  # text entropy above it: words without sense
NOISE = 2.0  # median entropy of the codebooks above it while no word is written: sound that is no speech
NOISY = 0.6  # deviation between the codebooks' entropies above it
SILENT_TEXT = 1e-6
FLAT, LEAST_TEXT = 0.05, 0.3  # a text entropy that moves less in WINDOW steps, and isn't that of silence: a loop


@dataclass
class Signs:
    """One call's."""

    _texts: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _seen: int = 0
    _lasting: Sign | None = None  # what the last steps say, and for how many
    _for: int = 0
    _told: Sign | None = None

    def feed(self, text_entropy: float, audio_entropy: float, codebook_spread: float) -> Sign | None:
        """The next step's; the sign that begins to count with it, if one does."""
        self._texts.append(text_entropy)
        self._seen += 1
        if self._seen < WINDOW:
            return None
        now = self._sign(text_entropy, audio_entropy, codebook_spread)
        self._for = self._for + 1 if now == self._lasting else 1
        self._lasting = now
        if self._for < HOLD_STEPS or now == self._told:
            return None
        self._told = now
        return now

    def _sign(self, text_entropy: float, audio_entropy: float, codebook_spread: float) -> Sign | None:
        if text_entropy > GIBBERISH:
            return "gibberish"
        if text_entropy < SILENT_TEXT and audio_entropy > NOISE:
            return "noise"
        if codebook_spread > NOISY:
            return "noisy sound"
        if len(self._texts) == WINDOW and min(self._texts) > LEAST_TEXT and max(self._texts) - min(self._texts) < FLAT:
            return "repetition"
        return None
