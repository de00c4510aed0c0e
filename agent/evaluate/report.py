"""A row's trials as figures: shares with their intervals, latencies, sound against the synthesiser's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from agent.evaluate.judging import Share, percentile, same_words, share_of
from agent.evaluate.rows import MEASURES, QUIET_LINE, Dialogue, Row, Trial, said_words
from agent.train.acoustics import draw_condition, heard
from agent.train.speech import Samples

WANTED_OF_SYNTHESISER = 0.97

Recognise = Callable[[Samples], str]


@dataclass(frozen=True)
class Figure:
    """One line of the table. `value` is a share, a quotient or seconds; NaN where nothing could be judged.

    `low` and `high`: the share's 95 % interval [Wilson 1927]; None where there is none.
    """

    row: str
    measure: str
    title: str
    value: float
    n: int
    low: float | None = None
    high: float | None = None
    wanted: float | None = None
    seconds: bool = False

    def told(self) -> dict[str, Any]:
        """For a file: no NaN there."""
        return {name: None if isinstance(item, float) and math.isnan(item) else item
                for name, item in asdict(self).items()}


@dataclass(frozen=True)
class Result:
    """A row that was measured."""

    row: Row
    dialogues: Sequence[Dialogue]
    trials: Sequence[Sequence[Trial]]  # of each dialogue
    sound: tuple[Share, Share] | None = None  # answers recognised: the agent's, the synthesiser's of the same words

    def all_trials(self) -> list[Trial]:
        return [trial for trials in self.trials for trial in trials]


def figures(result: Result) -> list[Figure]:
    """The lines of a row."""
    row, trials = result.row, result.all_trials()
    lines = [
        _share_line(row.key, name, f"{row.title}: {title}", share_of(trial.verdicts.get(name) for trial in trials),
                    row.wanted.get(name))
        for name, title in MEASURES[row.kind].items()
        if any(name in trial.verdicts for trial in trials)
    ]
    latencies = [trial.latency_s for trial in trials if trial.latency_s is not None]
    if latencies:
        lines += [
            Figure(row.key, f"latency p{percent}", f"{row.title}: end of the caller's sound to the agent's, p{percent}",
                   percentile(latencies, percent), len(latencies), seconds=True)
            for percent in (50, 95)
        ]
    if result.sound is not None:
        agent, synthesiser = result.sound
        lines.append(_share_line(row.key, "sound", f"{row.title}: answer's sound recognised", agent))
        lines.append(_share_line(row.key, "synthesiser", f"{row.title}: the synthesiser's own recognised", synthesiser))
        quotient = agent.value / synthesiser.value if synthesiser.right else math.nan
        lines.append(Figure(row.key, "sound of synthesiser", f"{row.title}: sound, against the synthesiser's own",
                            quotient, agent.of, wanted=WANTED_OF_SYNTHESISER))
    return lines


def _share_line(row: str, measure: str, title: str, share: Share, wanted: float | None = None) -> Figure:
    low, high = share.interval()
    return Figure(row, measure, title, share.value, share.of, low, high, wanted)


def judged_sound(
    dialogues: Sequence[Dialogue], trials: Sequence[Sequence[Trial]], recognise: Recognise,
    synthesise: Callable[[str], Samples], *, over_phone: bool,
) -> tuple[Share, Share]:
    """Of the answers whose words are right: how many the recogniser understands, said by the agent, and said by the
    synthesiser that it has learned from. `over_phone`: the agent was heard over G.711, so the synthesiser is too;
    offline the agent's sound is taken as it leaves the model."""
    agent, synthesiser = [], []
    own: dict[str, bool] = {}
    for dialogue, its_trials in zip(dialogues, trials, strict=True):
        for trial in its_trials:
            expected = trial.said.turn.expected
            if expected is None or trial.answer is None or not trial.verdicts.get("exact"):
                continue
            agent.append(same_words(recognise(trial.answer), expected))
            if expected not in own:
                sound = synthesise(expected)
                if over_phone:
                    generator = np.random.default_rng(dialogue.seed)
                    line = replace(draw_condition(generator, band="phone", shares=QUIET_LINE), gain_db=0.0)
                    sound = heard(sound, np.zeros_like(sound), line, generator)
                own[expected] = same_words(recognise(sound), expected)
            synthesiser.append(own[expected])
    return share_of(agent), share_of(synthesiser)


def told(result: Result) -> dict[str, Any]:
    """A row for a file: its figures, and who said what when in each dialogue."""
    return {
        "row": result.row.key,
        "figures": [figure.told() for figure in figures(result)],
        "dialogues": [_told(dialogue, trials)
                      for dialogue, trials in zip(result.dialogues, result.trials, strict=True)],
    }


def _told(dialogue: Dialogue, trials: Iterable[Trial]) -> dict[str, Any]:
    caller = dialogue.caller
    return {
        "number": dialogue.number, "seed": dialogue.seed, "voice": asdict(dialogue.talker),
        "condition": asdict(dialogue.condition), "seconds": round(caller.now_s, 2),
        "caller": [
            {"text": said.turn.text, "intent": said.turn.intent, "begin_s": round(said.begin_s, 3),
             "end_s": round(said.end_s, 3)}
            for said in caller.said
        ],
        "agent": said_words(caller.words),
        "trials": [trial.told() for trial in trials],
    }
