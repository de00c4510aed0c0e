from __future__ import annotations

from collections import Counter
from dataclasses import fields
from pathlib import Path

import pytest

from agent.train import domain as package
from agent.train.domain import reader
from agent.train.domain.reader import FOLDER, DomainError, held_out_sha256, load, operators_sentences, read

INTENTS = list(load().intents.values())


def test_the_held_out_phrasings_are_those_that_were_frozen_before_the_first_training() -> None:
    assert held_out_sha256() == (FOLDER / "held_out.sha256").read_text().strip()


def test_any_change_of_a_held_out_file_changes_the_hash(tmp_path: Path) -> None:
    (tmp_path / "held_out").mkdir()
    for path in (FOLDER / "held_out").glob("*.toml"):
        (tmp_path / "held_out" / path.name).write_bytes(path.read_bytes())
    assert held_out_sha256(tmp_path) == held_out_sha256()
    with (tmp_path / "held_out" / "place.toml").open("a") as file:
        file.write(" ")
    assert held_out_sha256(tmp_path) != held_out_sha256()


def test_there_are_sixty_intents_with_thirty_phrasings_and_eight_held_out() -> None:
    assert len(INTENTS) >= 60
    for intent in INTENTS:
        assert len(set(intent.training)) >= 30, intent.name
        assert len(set(intent.held_out)) >= 8, intent.name


def test_the_package_tells_how_many_phrasings_there_are() -> None:
    training, held_out = (sum(len(getattr(intent, part)) for intent in INTENTS) for part in ("training", "held_out"))
    assert f"{len(INTENTS)} intents, {training:,} phrasings for training" in (package.__doc__ or "")
    assert f"and {held_out:,} held out" in (package.__doc__ or "")


def test_phrasings_are_not_one_template_multiplied() -> None:
    for intent in INTENTS:
        starts = Counter(" ".join(phrasing.lower().split()[:3]) for phrasing in intent.training)
        start, count = starts.most_common(1)[0]
        assert count <= 0.25 * len(intent.training), f"{intent.name}: {count} begin with {start!r}"


def test_nothing_that_is_held_out_is_said_in_training_whatever_it_means_there() -> None:
    domain = load()

    def said(part: str) -> set[str]:
        manners = [getattr(domain, f"{part}_manners")]
        phrasings = {phrasing for intent in INTENTS for phrasing in getattr(intent, part)}
        return phrasings.union(*(getattr(each, field.name) for each in manners for field in fields(each)))

    assert not said("training") & said("held_out")


@pytest.fixture
def small_domain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(reader, "SMALLEST_TRAINING", 2)
    monkeypatch.setattr(reader, "SMALLEST_HELD_OUT", 1)
    _write(tmp_path, "training/pets", '[dogs]\nanswer = "Yes."\nphrasings = """\nmay my dog come\nare dogs ok\n"""')
    _write(tmp_path, "held_out/pets", 'dogs = """\nI have a dog\n"""')
    for part in ("training", "held_out"):
        _write(tmp_path, f"{part}/manners", (FOLDER / part / "manners.toml").read_text())
    return tmp_path


def _write(folder: Path, name: str, text: str) -> None:
    path = folder / f"{name}.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)


def test_a_small_domain_is_read(small_domain: Path) -> None:
    dogs = read(small_domain).intents["dogs"]
    assert (dogs.training, dogs.held_out) == (("may my dog come", "are dogs ok"), ("I have a dog",))
    assert (dogs.theme, dogs.answer, dogs.topic) == ("pets", "Yes.", None)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("training/pets", "[dogs", r"pets\.toml: "),
        ("training/pets", '[dogs]\nanswer = "Yes."', r"dogs has no phrasings"),
        ("training/pets", '[dogs]\nphrasing = 1\nphrasings = """\na\nb\n"""', r"unknown key phrasing"),
        ("training/pets", '[dogs]\nphrasings = ["a", "b"]', r"dogs must be one block of lines"),
        ("training/pets", '[dogs]\nphrasings = """\nmay my dog come\n"""', r"dogs has 1 phrasings, it needs 2"),
        ("training/pets", '[dogs]\nphrasings = """\nat 7 pm\nb\n"""', r"dogs: 'at 7 pm' is not in plain words"),
        ("training/pets", '[dogs]\nphrasings = """\nfor {pets}\nb\n"""', r"'for \{pets\}' has an unknown slot pets"),
        ("training/pets", '[dogs]\nphrasings = """\ni have, a dog\nb\n"""', r"'I have a dog' is in dogs already"),
        ("training/pets", '[cats]\nphrasings = """\na\nb\n"""', r"cats is in only one of training and held_out"),
        ("training/more", '[dogs]\nphrasings = """\na\nb\n"""', r"more\.toml: there is no such file"),
        ("held_out/manners", 'openers = ["um"]', r"manners\.toml: backchannels must be one of openers"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(small_domain: Path, file: str, text: str, message: str) -> None:
    _write(small_domain, file, text)
    with pytest.raises(DomainError, match=message) as refused:
        read(small_domain)
    assert "\n" not in str(refused.value)


def test_an_intent_belongs_to_one_theme(small_domain: Path) -> None:
    _write(small_domain, "training/also", '[dogs]\nphrasings = """\na\nb\n"""')
    _write(small_domain, "held_out/also", 'dogs = """\nc\n"""')
    with pytest.raises(DomainError, match=r"pets\.toml: dogs is in also\.toml too"):
        read(small_domain)


def test_a_folder_without_phrasings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DomainError, match="there are no phrasings"):
        read(tmp_path)


def test_training_says_none_of_the_operators_sentences_that_are_held_out() -> None:
    ours, held_out = operators_sentences(), operators_sentences(held_out=True)
    assert len(set(ours)) == len(ours) > 200
    assert len(set(held_out)) == 20
    assert not set(ours) & set(held_out)
