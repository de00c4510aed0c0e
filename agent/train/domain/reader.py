"""Reads the phrasings from their files and checks them: what callers say, and what the agent answers."""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from agent.train.domain.slots import FORMS, forms_in

FOLDER = Path(__file__).parent
MANNERS = "manners"  # the file of what is said around a sentence
OPERATORS, HELD_OUT_OPERATORS = FOLDER / "operators.txt", FOLDER / "operators_held_out.txt"  # a sentence a line
SMALLEST_TRAINING = 30
SMALLEST_HELD_OUT = 8

_PHRASING = re.compile(r"[a-zA-Z',{}_ ]+")  # words as they are said: no digits, no symbols


class DomainError(ValueError):
    """One line that names the file, the intent and what is wrong there."""


@dataclass(frozen=True)
class Intent:
    """One thing that a caller may want. `answer` is None where it depends on slots or on what was said before."""

    name: str
    theme: str
    training: tuple[str, ...]
    held_out: tuple[str, ...]
    answer: str | None
    topic: str | None  # "You asked about …"; None: not a question


@dataclass(frozen=True)
class Manners:
    """What callers say around a sentence."""

    openers: tuple[str, ...]
    closers: tuple[str, ...]
    fillers: tuple[str, ...]  # hesitations
    backchannels: tuple[str, ...]
    impatient: tuple[str, ...]  # to an agent that is silent


@dataclass(frozen=True)
class Domain:
    intents: Mapping[str, Intent]
    training_manners: Manners
    held_out_manners: Manners

    def phrasings(self, intent: str, *, held_out: bool) -> tuple[str, ...]:
        found = self.intents[intent]
        return found.held_out if held_out else found.training

    def manners(self, *, held_out: bool) -> Manners:
        return self.held_out_manners if held_out else self.training_manners


@cache
def load() -> Domain:
    """The domain that ships with the package."""
    return read(FOLDER)


def read(folder: Path) -> Domain:
    """The domain in `folder`: training/THEME.toml and held_out/THEME.toml, the same themes and intents in both.

    Raises DomainError.
    """
    intents: dict[str, Intent] = {}
    themes = [path.stem for path in sorted((folder / "training").glob("*.toml")) if path.stem != MANNERS]
    if not themes:
        raise DomainError(f"{folder / 'training'}: there are no phrasings")
    for theme in themes:
        for intent in _read_theme(folder, theme):
            if intent.name in intents:
                raise DomainError(f"{theme}.toml: {intent.name} is in {intents[intent.name].theme}.toml too")
            intents[intent.name] = intent
    _refuse_repeated(intents.values())
    return Domain(
        intents,
        _read_manners(folder / "training" / f"{MANNERS}.toml"),
        _read_manners(folder / "held_out" / f"{MANNERS}.toml"),
    )


def held_out_sha256(folder: Path = FOLDER) -> str:
    """SHA-256 over the held-out files' bytes, in the order of their names: `cat held_out/*.toml | sha256sum`."""
    digest = hashlib.sha256()
    for path in sorted((folder / "held_out").glob("*.toml")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


@cache
def operators_sentences(*, held_out: bool = False) -> tuple[str, ...]:
    """What operators anywhere may have an agent say; held out is what training never says. Raises DomainError."""
    path = HELD_OUT_OPERATORS if held_out else OPERATORS
    sentences = tuple(path.read_text(encoding="utf-8").splitlines())
    for sentence in sentences:
        if not _PHRASING.fullmatch(sentence):
            raise DomainError(f"{path}: {sentence!r} is not in plain words")
    return sentences


def _read_theme(folder: Path, theme: str) -> list[Intent]:
    training_path, held_out_path = (folder / part / f"{theme}.toml" for part in ("training", "held_out"))
    training, held_out = _parse(training_path), _parse(held_out_path)
    if only := sorted(set(training) ^ set(held_out)):
        raise DomainError(f"{theme}.toml: {only[0]} is in only one of training and held_out")
    intents = []
    for name, table in training.items():
        if not isinstance(table, dict) or "phrasings" not in table:
            raise DomainError(f"{training_path}: {name} has no phrasings")
        if unknown := sorted(set(table) - {"phrasings", "answer", "topic"}):
            raise DomainError(f"{training_path}: {name} has an unknown key {unknown[0]}")
        intents.append(Intent(
            name, theme,
            _phrasings(training_path, name, table["phrasings"], SMALLEST_TRAINING),
            _phrasings(held_out_path, name, held_out[name], SMALLEST_HELD_OUT),
            table.get("answer"), table.get("topic"),
        ))  # fmt: skip
    return intents


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DomainError(f"{path}: there is no such file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DomainError(f"{path}: {error}") from None


def _phrasings(path: Path, intent: str, block: object, smallest: int) -> tuple[str, ...]:
    """A block of lines, one phrasing each."""
    if not isinstance(block, str):
        raise DomainError(f"{path}: the phrasings of {intent} must be one block of lines")
    found = tuple(line for line in block.splitlines() if line)
    for phrasing in found:
        if not _PHRASING.fullmatch(phrasing) or phrasing != " ".join(phrasing.split()):
            raise DomainError(f"{path}: {intent}: {phrasing!r} is not in plain words")
        if unknown := [form for form in forms_in(phrasing) if form not in FORMS]:
            raise DomainError(f"{path}: {intent}: {phrasing!r} has an unknown slot {unknown[0]}")
    if len(found) < smallest:
        raise DomainError(f"{path}: {intent} has {len(found)} phrasings, it needs {smallest}")
    return found


def _refuse_repeated(intents: Iterable[Intent]) -> None:
    seen: dict[str, str] = {}
    for intent in intents:
        for phrasing in intent.training + intent.held_out:
            key = " ".join(phrasing.lower().replace(",", "").split())
            if key in seen:
                raise DomainError(f"{intent.theme}.toml: {intent.name}: {phrasing!r} is in {seen[key]} already")
            seen[key] = intent.name


def _read_manners(path: Path) -> Manners:
    table = _parse(path)
    names = [field.name for field in fields(Manners)]
    if wrong := sorted(set(table) ^ set(names)):
        raise DomainError(f"{path}: {wrong[0]} must be one of {', '.join(names)}, and none may be missing")
    for name, said in table.items():
        if not isinstance(said, list) or not said:
            raise DomainError(f"{path}: {name} must be a list of at least one")
        for words in said:
            if not isinstance(words, str) or not _PHRASING.fullmatch(words):
                raise DomainError(f"{path}: {name}: {words!r} is not in plain words")
    return Manners(**{name: tuple(table[name]) for name in names})
