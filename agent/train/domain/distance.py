"""How far the held-out phrasings are from what training says: edit distance in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean

from agent.train.domain.reader import Domain, Intent


@dataclass(frozen=True)
class HeldOutDistance:
    """One held-out phrasing and the training phrasing of the same intent that is nearest to it."""

    intent: str
    held_out: str
    nearest: str
    distance: float  # 0: the same words; 1: none in common


def edit_distance(one: Sequence[str], other: Sequence[str]) -> int:
    """The fewest words inserted, deleted or replaced that make one the other (Levenshtein)."""
    row = list(range(len(other) + 1))
    for i, word in enumerate(one, start=1):
        diagonal, row[0] = row[0], i
        for j, its in enumerate(other, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (word != its))
    return row[-1]


def normalised_distance(one: str, other: str) -> float:
    """Edit distance in words over the longer's length; a slot in braces is one word, case and commas don't count."""
    words, others = (text.lower().replace(",", " ").split() for text in (one, other))
    return edit_distance(words, others) / max(len(words), len(others))


def nearest(held_out: str, training: Iterable[str]) -> tuple[str, float]:
    """The training phrasing nearest to a held-out one, and its normalised distance."""
    return min(((phrasing, normalised_distance(held_out, phrasing)) for phrasing in training), key=lambda it: it[1])


def distances(intents: Iterable[Intent]) -> list[HeldOutDistance]:
    """For each held-out phrasing the nearest training phrasing of its intent."""
    return [
        HeldOutDistance(intent.name, phrasing, *nearest(phrasing, intent.training))
        for intent in intents
        for phrasing in intent.held_out
    ]


def mean_distance(domain: Domain) -> float:
    return mean(found.distance for found in distances(domain.intents.values()))


def smallest_distance(domain: Domain) -> HeldOutDistance:
    return min(distances(domain.intents.values()), key=lambda found: found.distance)
