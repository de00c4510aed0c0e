from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from agent.train.speech import Synthesiser
from agent.train.voices import AGENT, CALLERS, SPLITS, Manner, Split, Talker, Voice, draw_caller


@pytest.mark.parametrize(("one", "other"), list(combinations(SPLITS, 2)))
def test_no_voice_stands_on_both_sides(one: Split, other: Split) -> None:
    assert not set(CALLERS[one]) & set(CALLERS[other])


@pytest.mark.parametrize("held_out", ["held_out_voices", "held_out_family"])
def test_training_never_hears_a_held_out_speaker_not_even_in_another_synthesis(held_out: Split) -> None:
    heard = {voice.speaker for voice in CALLERS["training"]}
    assert not heard & {voice.speaker for voice in CALLERS[held_out]}


def test_the_held_out_family_is_held_out_everywhere() -> None:
    families = {split: {voice.family for voice in CALLERS[split]} for split in SPLITS}
    assert families["held_out_family"] == {"festival"}
    assert families["held_out_voices"] == {"espeak", "flite"}
    assert families["training"] == {"espeak", "flite", "pico"}


def test_no_caller_has_the_agents_voice() -> None:
    assert AGENT.voice.speaker not in {voice.speaker for split in SPLITS for voice in CALLERS[split]}


def test_a_recorded_person_is_one_speaker_in_every_family() -> None:
    assert Voice("flite", "slt").speaker == Voice("festival", "cmu_us_slt_arctic_hts").speaker
    assert Voice("flite", "kal16").speaker == Voice("festival", "kal_diphone").speaker
    assert Voice("espeak", "gmw/en+m1").speaker == Voice("espeak", "gmw/en-US+m1").speaker


@pytest.mark.parametrize("split", SPLITS)
def test_callers_are_drawn_from_their_split_alone_and_from_much_of_it(split: Split) -> None:
    generator = np.random.default_rng(5)
    drawn = Counter(draw_caller(split, generator).voice for _ in range(1500))
    assert set(drawn) <= set(CALLERS[split])
    assert {voice.speaker for voice in drawn} == {voice.speaker for voice in CALLERS[split]}


def test_a_seed_always_draws_the_same_caller() -> None:
    first, again, other = (draw_caller("training", np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first == again != other


def test_only_trainings_callers_have_moved_formants() -> None:
    generator = np.random.default_rng(2)
    drawn = {split: [draw_caller(split, generator).manner.formants for _ in range(60)] for split in SPLITS}
    assert min(drawn["training"]) < 0.95 < 1.05 < max(drawn["training"])
    assert {*drawn["held_out_voices"], *drawn["held_out_family"]} == {1.0}


def test_trainings_recorded_men_are_heard_as_women_too() -> None:
    generator = np.random.default_rng(3)
    drawn = [draw_caller("training", generator) for _ in range(600)]
    manners = [talker.manner for talker in drawn if talker.voice.family == "flite"]
    assert len(manners) > 100
    women = [manner for manner in manners if manner.formants > 1.14]
    assert len(women) > 0.2 * len(manners)
    assert min(manner.semitones for manner in women) > 0
    assert max(manner.semitones for manner in women) > 7


@pytest.mark.parametrize(("fields", "complaint"), [
    ({"rate": 3.0}, "rate is 0.5 to 2, not 3.0"), ({"semitones": -13.0}, "semitones are -12 to 12, not -13.0"),
    ({"melody": 2.5}, "melody is 0 to 2, not 2.5"), ({"formants": 1.5}, "formants are 0.8 to 1.25 times the voice's"),
])
def test_an_impossible_manner_is_refused(fields: dict[str, float], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Manner(**fields)


def test_this_machines_espeak_has_all_accents_and_variants_and_they_differ() -> None:
    voices = [voice for split in SPLITS for voice in CALLERS[split] if voice.family == "espeak"]
    accents = {voice.name.partition("+")[0]: voice for voice in voices}.values()
    variants = {voice.speaker: voice for voice in voices}.values()
    with Synthesiser() as synthesiser:
        for some in (accents, variants):
            sounds = {synthesiser.speak("can I bring my dog", Talker(voice)).pcm.tobytes() for voice in some}
            assert len(sounds) == len(some)
