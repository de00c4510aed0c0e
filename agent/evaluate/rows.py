"""What is measured, a row each: who calls, in which words, what they do, and what shall come of it.

The axes are chosen apart: the caller's voice (of training, of other speakers, of another family of synthesis), the
phrasings, the values of a booking. What a row doesn't hold out is as in training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal

import numpy as np

from agent.evaluate.caller import EARLY_S, FRAME_S, HeardWord, Said, ScriptedCaller
from agent.evaluate.judging import Track, means, same_words
from agent.evaluate.plans import Booking, Plan, Planner
from agent.train.acoustics import Band, Condition, Shares, draw_condition, heard
from agent.train.domain.reader import Domain
from agent.train.speech import Samples, Speech
from agent.train.voices import Split, Talker, draw_caller

Kind = Literal[
    "questions", "booking", "interruption", "backchannel", "speak", "hold", "held", "silence"
]
# What one trial of each kind shows: a name, and what it is called in the table.
MEASURES: Mapping[Kind, Mapping[str, str]] = {
    "questions": {"exact": "right answer, word for word", "meant": "right answer by its meaning"},
    "booking": {"slots": "all slots right in the read-back"},
    "interruption": {"quiet": "quiet within 0.6 s", "exact": "then answers the new question",
                     "meant": "… by its meaning"},
    "backchannel": {"whole": "says an answer to its end", "exact": "says the right answer to its end"},
    "speak": {"begins": "speech begins within 5 frames"},
    "hold": {"quiet": "silence in the sound, by its level", "unheard": "silence in the sound, by the recogniser"},
    "held": {"exact": "then answers the question", "meant": "… by its meaning", "quiet": "silent until then"},
    "silence": {"quiet": "says nothing unasked"},
}
TRIALS_A_CALL: Mapping[Kind, int] = {"questions": 3, "speak": 3, "hold": 2, "held": 2}  # the others: one
QUIET_AFTER_S = 0.6  # an interrupted agent may go on for so long
SHORTEST_QUIET_S = 0.4  # and must be quiet for so long then
SPEAK_FRAMES = 5  # within which forced speech begins

# A caller's line without noise and loss, more or less loud: what is measured is the voice, the words and the band.
QUIET_LINE = Shares(noise=0, babble=0, echo=0, reverb=0, loss=0, coloured=0, gain_db=(-8.0, -2.0, 2.0))

SpeakText = Callable[[str, Talker], Speech]


@dataclass(frozen=True)
class Row:
    """`wanted`: the share that each measure shall reach, where one is asked for."""

    key: str
    title: str
    kind: Kind
    split: Split = "held_out_voices"
    held_out_phrasings: bool = False
    held_out_slots: bool = False
    evenly: bool = False  # of training's phrasings, the rare ones are said as often as the common ones
    wanted: Mapping[str, float] = field(default_factory=dict)

    @property
    def forces(self) -> bool:
        """It needs a hand on the text stream, which no phone has."""
        return self.kind in ("speak", "hold", "held")


ROWS: Mapping[str, Row] = {row.key: row for row in (
    Row("voices", "held-out voices of known families", "questions", wanted={"exact": 0.95}),
    Row("evenly", "held-out voices, rare phrasings as often as common ones", "questions", evenly=True),
    Row("phrasings", "held-out phrasings, held-out voices", "questions", held_out_phrasings=True,
        wanted={"exact": 0.85}),
    Row("phrasings-only", "held-out phrasings, training voices", "questions", "training", held_out_phrasings=True),
    Row("training", "nothing held out", "questions", "training"),
    Row("family", "held-out family of synthesis", "questions", "held_out_family", wanted={"exact": 0.70}),
    Row("booking", "booking, held-out combinations", "booking", held_out_slots=True, wanted={"slots": 0.80}),
    Row("interruption", "interrupted", "interruption", wanted={"quiet": 0.90, "exact": 0.85}),
    Row("backchannel", "back-channel into the answer", "backchannel", wanted={"whole": 0.90}),
    Row("speak", "forced EPAD in silence", "speak", wanted={"begins": 0.98}),
    Row("hold", "forced PAD while asked", "hold", wanted={"quiet": 0.98, "unheard": 0.98}),
    Row("held", "asked, held, released", "held", wanted={"exact": 0.80}),
    Row("silence", "long silence", "silence"),
)}


@dataclass(frozen=True)
class Lengths:
    """Seconds that a caller of ours may choose."""

    held_s: float = 8.0
    silence_s: float = 60.0


@dataclass
class Dialogue:
    """One caller's call, before and after it took place."""

    row: Row
    number: int
    seed: int
    plan: Plan
    caller: ScriptedCaller
    talker: Talker
    condition: Condition
    heard: Track | None = None  # what the caller heard, from its frame 0 on
    lag_s: float = 0.0  # from a text token's step to the begin of its sound at the caller's ear


def cast(
    row: Row, count: int, seed: int, domain: Domain, speak: SpeakText, *, band: Band = "phone",
    lengths: Lengths | None = None,
) -> list[Dialogue]:
    """The callers of a row, for `count` trials (a few more where calls have several); the same for the same seed."""
    lengths = lengths or Lengths()
    a_call = TRIALS_A_CALL.get(row.kind, 1)
    planner = Planner(domain, Random(f"{seed} {row.key}"), row.held_out_phrasings, row.evenly)
    dialogues = []
    for number in range(math.ceil(count / a_call)):
        generator = np.random.default_rng([seed, number, *row.key.encode()])
        talker = draw_caller(row.split, generator)
        condition = draw_condition(generator, band=band, shares=QUIET_LINE)
        plan = _plan(row, planner, min(a_call, count - number * a_call), lengths)
        voice = _Voice(speak, talker, condition, generator)
        caller = ScriptedCaller(plan, voice.line, Random(int(generator.integers(2**32))))
        dialogues.append(Dialogue(row, number, int(generator.integers(2**31)), plan, caller, talker, condition))
    return dialogues


@dataclass(frozen=True)
class _Voice:
    """A caller's voice as it reaches the agent."""

    speak: SpeakText
    talker: Talker
    condition: Condition
    generator: np.random.Generator

    def line(self, text: str) -> Samples:
        pcm = self.speak(text, self.talker).pcm
        return heard(pcm, np.zeros_like(pcm), self.condition, self.generator)


def _plan(row: Row, planner: Planner, trials: int, lengths: Lengths) -> Plan:
    if row.kind == "questions":
        return planner.questions(trials)
    if row.kind == "booking":
        return planner.booking(held_out_slots=row.held_out_slots)
    if row.kind == "interruption":
        return planner.interruption()
    if row.kind == "backchannel":
        return planner.backchannel()
    if row.kind == "speak":
        return planner.forced_starts(trials)
    if row.kind == "hold":
        return planner.held_silent(trials)
    if row.kind == "held":
        return planner.held(trials, lengths.held_s)
    return planner.silence(lengths.silence_s)


# --- what came of it ---


@dataclass(frozen=True)
class Trial:
    """One thing that was tried. `verdicts` by the names of MEASURES; None: nothing to judge, such as an interruption
    of an answer that was over already."""

    said: Said
    heard: str  # the agent's words in answer
    verdicts: Mapping[str, bool | None]
    latency_s: float | None = None  # end of the caller's sound to the begin of the agent's
    answer: Samples | None = None  # the agent's sound in answer

    def told(self) -> dict[str, Any]:
        """For a file."""
        turn = self.said.turn
        return {
            "said": turn.text, "intent": turn.intent, "expected": turn.expected, "heard": self.heard,
            "begin_s": round(self.said.begin_s, 3), "end_s": round(self.said.end_s, 3),
            "held_s": self.said.held_s, "forced_k": self.said.forced_k,
            "latency_s": None if self.latency_s is None else round(self.latency_s, 3), **self.verdicts,
        }


def judge(
    dialogue: Dialogue, sentences: Sequence[str], recognise: Callable[[Samples], str] | None = None,
) -> list[Trial]:
    """The trials of a call that is over. `sentences` are all answers there are; `recognise` hears what is said in a
    sound, "" where nothing is: without it that isn't judged."""
    assert dialogue.heard is not None, "the call has to take place first"
    return list(_trials(dialogue, _Call(dialogue.caller, dialogue.heard, dialogue.lag_s), sentences, recognise))


@dataclass(frozen=True)
class _Call:
    """A call that is over, by its turns."""

    caller: ScriptedCaller
    track: Track
    lag_s: float

    def until(self, said: Said) -> float:
        """When the caller's next turn that isn't a back-channel begins."""
        later = (other.begin_s for other in self.caller.said if other.begin_s > said.begin_s and other.turn.answered)
        return min(later, default=self.track.duration_s)

    def words(self, said: Said) -> str:
        """The agent's words between this turn's end and the next turn's begin."""
        begin_s, end_s = said.end_s - EARLY_S, self.until(said)
        return " ".join(word.text for word in self.caller.words if begin_s <= word.begin_s < end_s)

    def latency_s(self, said: Said) -> float | None:
        begins_s = self.track.speech_begins(said.end_s - EARLY_S, self.until(said))
        return None if begins_s is None else begins_s - said.end_s

    def answer(self, said: Said) -> Samples:
        return self.track.between(said.end_s - EARLY_S, self.until(said))


def _trials(
    dialogue: Dialogue, call: _Call, sentences: Sequence[str], recognise: Callable[[Samples], str] | None,
) -> Iterator[Trial]:
    kind, all_said = dialogue.row.kind, call.caller.said
    if kind == "booking":
        assert isinstance(dialogue.plan, Booking)
        last = all_said[-1]
        heard_all = " ".join(word.text for word in call.caller.words)
        yield Trial(last, heard_all, {"slots": dialogue.plan.read_back == dialogue.plan.wanted})
        return
    for place, said in enumerate(all_said):
        turn, text = said.turn, call.words(said)
        answered = {
            "exact": same_words(text, turn.expected), "meant": means(text, turn.expected, sentences),
        } if turn.expected is not None else {}
        if kind == "questions" and answered:
            yield Trial(said, text, answered, call.latency_s(said), call.answer(said))
        elif kind == "interruption" and turn.into_s is not None:
            if said.while_speaking:
                quiet = call.track.is_quiet(said.begin_s + QUIET_AFTER_S, _quiet_until(said))
                yield Trial(said, text, {"quiet": quiet, **answered}, call.latency_s(said))
            else:
                yield Trial(said, text, dict.fromkeys(("quiet", "exact", "meant")))
        elif kind == "backchannel" and not turn.answered:
            asked = all_said[place - 1]
            whole, expected = call.words(asked), asked.turn.expected or ""
            yield Trial(said, whole, {
                "whole": any(same_words(whole, sentence) for sentence in (expected, *sentences)),
                "exact": same_words(whole, expected),
            } if said.while_speaking else {"whole": None, "exact": None})
        elif kind == "speak" and said.forced_k is not None:
            yield Trial(said, text, {"begins": None if said.while_speaking else _begins(call, said.forced_k)})
        elif kind == "hold" and said.held_s is not None:
            begin_s, end_s = said.held_s[0] + call.lag_s, said.held_s[1] + call.lag_s - FRAME_S
            unheard = None if recognise is None else not recognise(call.track.between(begin_s, end_s))
            yield Trial(said, text, {"quiet": call.track.is_quiet(begin_s, end_s), "unheard": unheard})
        elif kind == "held" and said.held_s is not None:
            begin_s, end_s = said.held_s[0] + call.lag_s, said.held_s[1] + call.lag_s - FRAME_S
            yield Trial(said, text, {**answered, "quiet": call.track.is_quiet(begin_s, end_s)})
        elif kind == "silence" and turn.stays:
            quiet = not text and call.track.is_quiet(said.begin_s, said.begin_s + turn.listen_s)
            yield Trial(said, text, {"quiet": quiet})


def _quiet_until(said: Said) -> float:
    """An interrupted agent is quiet as long as the caller speaks."""
    return max(said.end_s, said.begin_s + QUIET_AFTER_S + SHORTEST_QUIET_S)


def _begins(call: _Call, forced_k: int) -> bool:
    """Whether speech begins in the agent's frames k + 1 to k + 5, k being that of the forced token; a caller hears the
    agent's frame one frame later than its number."""
    return call.track.speech_begins(
        (forced_k + 1) * FRAME_S, (forced_k + SPEAK_FRAMES + 2) * FRAME_S) is not None


def said_words(words: Iterable[HeardWord]) -> list[list[Any]]:
    """For a file."""
    return [[word.text, round(word.begin_s, 3), round(word.end_s, 3)] for word in words]
