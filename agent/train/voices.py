"""Who speaks: the agent's one voice, the callers' voices, and which of them training never hears.

Four families of synthesis: from Debian espeak-ng (formants: accents x variants), flite (statistical and diphone voices
of one speaker each) and festival (the same techniques, other speakers), and pico (statistical). What is held out is
held out by speaker, so flite's and festival's recordings of one person never stand on both sides:

    training          espeak-ng: 7 accents x 32 variants; flite: awb, rms, kal; pico: its American, its Briton
    held_out_voices   espeak-ng: the same accents x 5 other variants; flite: slt
    held_out_family   festival: ked (diphones), slt (statistical)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    import numpy as np

Family = Literal["espeak", "flite", "festival", "pico"]
Split = Literal["training", "held_out_voices", "held_out_family"]
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True)
class Voice:
    """`name` as its family knows it: `gmw/en-US+f3` (accent and variant), `awb`, `ked_diphone`.

    `speaker` is whom it sounds like: a variant of espeak-ng in whatever accent, a recorded person elsewhere.
    """

    family: Family
    name: str

    @property
    def speaker(self) -> str:
        if self.family == "espeak":
            return self.name.partition("+")[2]
        return _RECORDED.get(self.name, self.name)


@dataclass(frozen=True)
class Manner:
    """How a voice speaks. 1, 0, 1 is its own way; what a family can't change stays as it is."""

    rate: float = 1.0
    semitones: float = 0.0
    melody: float = 1.0  # how far the pitch moves; espeak-ng only
    formants: float = 1.0  # how much higher they are than the voice's own: a shorter or longer vocal tract

    def __post_init__(self) -> None:
        if not 0.5 <= self.rate <= 2:
            raise ValueError(f"a manner's rate is 0.5 to 2, not {self.rate}")
        if not -12 <= self.semitones <= 12:
            raise ValueError(f"a manner's semitones are -12 to 12, not {self.semitones}")
        if not 0 <= self.melody <= 2:
            raise ValueError(f"a manner's melody is 0 to 2, not {self.melody}")
        if not 0.8 <= self.formants <= 1.25:
            raise ValueError(f"a manner's formants are 0.8 to 1.25 times the voice's, not {self.formants}")


@dataclass(frozen=True)
class Talker:
    """A voice and how it speaks in one call."""

    voice: Voice
    manner: Manner = Manner()


AGENT = Talker(Voice("espeak", "gmw/en-US+f3"), Manner(rate=160 / 175))

_RECORDED = {"kal16": "kal", "kal_diphone": "kal", "ked_diphone": "ked", "cmu_us_slt_arctic_hts": "slt"}

# Accents by how often they are drawn.
_ACCENTS = {
    "en-US": 4, "en": 2, "en-GB-scotland": 1, "en-GB-x-rp": 1, "en-029": 1, "en-GB-x-gbclan": 1, "en-GB-x-gbcwmd": 1,
}
# Variants that sound like people; robots, whispers and effects are left out, and the agent's own (f3) too.
_VARIANTS: dict[Split, tuple[str, ...]] = {
    "training": (
        "m1", "m2", "m3", "m4", "m5", "m6", "m8", "f1", "f2", "f4", "Andy", "Annie", "Alicia", "Michael", "adam",
        "anika", "belinda", "zac", "Denis", "Diogo", "Lee", "Mario", "john", "robert", "pablo", "david", "boris",
        "caleb", "iven", "shelby", "travis", "steph",
    ),
    "held_out_voices": ("m7", "f5", "linda", "Mike", "paul"),
    "held_out_family": (),
}
_OTHERS: dict[Split, tuple[Voice, ...]] = {
    "training": (Voice("flite", "awb"), Voice("flite", "rms"), Voice("flite", "kal16"), Voice("pico", "en-US"),
                 Voice("pico", "en-GB")),
    "held_out_voices": (Voice("flite", "slt"),),
    "held_out_family": (Voice("festival", "ked_diphone"), Voice("festival", "cmu_us_slt_arctic_hts")),
}
# Training's voices are few; moved formants make many more people of them. What is held out is heard as it is. flite's
# are men, pico's women: a woman's formants are a sixth above a man's, and her pitch half an octave or more.
_FORMANTS: dict[Family, tuple[float, float]] = {"espeak": (0.92, 1.09), "flite": (0.9, 1.24), "pico": (0.82, 1.1)}
_PITCH_BY_FORMANTS = 25.0  # semitones of a recorded voice's pitch by an octave of its formants
# How many of a split's callers have an espeak-ng voice: in training most, for the sake of variety.
_ESPEAK_SHARE: dict[Split, float] = {"training": 0.6, "held_out_voices": 0.8, "held_out_family": 0.0}

CALLERS: dict[Split, tuple[Voice, ...]] = {
    split: tuple(
        Voice("espeak", f"gmw/{accent}+{variant}") for accent in _ACCENTS for variant in _VARIANTS[split]
    ) + _OTHERS[split]
    for split in SPLITS
}


def draw_caller(split: Split, generator: np.random.Generator) -> Talker:
    """A caller of this split: a voice, and a manner that stays the same for the whole call."""
    if generator.random() < _ESPEAK_SHARE[split]:
        weights = list(_ACCENTS.values())
        accent = generator.choice(list(_ACCENTS), p=[weight / sum(weights) for weight in weights])
        voice = Voice("espeak", f"gmw/{accent}+{generator.choice(_VARIANTS[split])}")
    else:
        voice = _OTHERS[split][int(generator.integers(len(_OTHERS[split])))]
    manner = Manner(
        rate=float(generator.uniform(0.77, 1.15)),  # of espeak-ng: 135 to 201 words a minute
        semitones=float(generator.uniform(-4, 4)),
        melody=float(generator.uniform(0.7, 1.4)),
    )
    if split == "training":
        lowest, highest = _FORMANTS[voice.family]
        octaves = float(generator.uniform(math.log2(lowest), math.log2(highest)))
        moved = _PITCH_BY_FORMANTS * octaves if voice.family != "espeak" else 0.0
        manner = replace(manner, formants=2**octaves, semitones=manner.semitones + moved)
    return Talker(voice, manner)
