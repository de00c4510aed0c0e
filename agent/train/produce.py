"""Scripts -> a folder of calls: in parallel, resumable, each call a function of its script, its number and the seed."""

from __future__ import annotations

import hashlib
import json
import wave
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from agent.train.acoustics import Band, Shares, draw_condition
from agent.train.dataset import DatasetError, Entry, read_made, write_call, write_list
from agent.train.render import render
from agent.train.script import Script
from agent.train.speech import Speech, SpeechError, Synthesiser
from agent.train.voices import AGENT, Split, Talker, draw_caller
from agent.train.workers import end_with_parent

LIST = "calls.jsonl"
_VERSION = 4  # of how calls are made: with another one, calls made before are not taken for the same
_AT_ONCE = 8  # calls that a process makes with one synthesiser

_agents: dict[str, Speech] = {}  # what the agent says in this process: often the same
_AGENTS_SENTENCES = 500

Progress = Callable[[int, int], None]  # calls made, calls in all


@dataclass(frozen=True)
class Recipe:
    """How calls of a dataset are made from their scripts."""

    seed: int
    split: Split = "training"
    band: Band | None = None  # of all callers; None: drawn
    shares: Shares = field(default_factory=Shares)  # of the conditions of their lines


@dataclass(frozen=True)
class _Job:
    number: int
    script: Script
    path: Path
    recipe: Recipe

    @property
    def digest(self) -> str:
        what = json.dumps([_VERSION, self.number, asdict(self.script), asdict(self.recipe)], sort_keys=True)
        return hashlib.sha256(what.encode()).hexdigest()


def make_calls(
    folder: Path, scripts: Sequence[Script], recipe: Recipe, *, workers: int = 1, progress: Progress | None = None,
) -> Path:
    """Make the call of each script and the list of all, whose path is returned. Calls that are there already are kept.

    Raises DatasetError if the folder holds calls made otherwise, or if a script makes no call; what was made by then
    stays, and the next try goes on from there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [_Job(number, script, folder / f"{number:06d}.wav", recipe) for number, script in enumerate(scripts)]
    missing = [job for job in jobs if not _is_made(job)]
    made = len(jobs) - len(missing)
    if progress is not None:
        progress(made, len(jobs))
    for count in _made(missing, workers):
        made += count
        if progress is not None:
            progress(made, len(jobs))
    write_list(folder / LIST, [Entry(job.path, _duration_s(job.path)) for job in jobs])
    return folder / LIST


def _is_made(job: _Job) -> bool:
    if not (job.path.is_file() and job.path.with_suffix(".json").is_file()):
        return False
    if read_made(job.path).get("digest") != job.digest:
        raise DatasetError(f"{job.path}: was made from another script, seed or recipe; choose an empty folder")
    return True


def _made(jobs: list[_Job], workers: int) -> Iterator[int]:
    """Make all calls; yields how many are new each time some are."""
    parts = [jobs[at:at + _AT_ONCE] for at in range(0, len(jobs), _AT_ONCE)]
    if workers <= 1 or len(parts) <= 1:
        for part in parts:
            yield _make(part)
        return
    # Processes start anew rather than by fork: the parent may have threads.
    spawn = get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(parts)), mp_context=spawn, initializer=end_with_parent) as pool:
        tasks = [pool.submit(_make, part) for part in parts]
        try:
            for task in as_completed(tasks):
                yield task.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _make(jobs: Sequence[_Job]) -> int:
    with Synthesiser() as synthesiser:

        def speak(text: str, talker: Talker) -> Speech:
            if talker != AGENT:
                return synthesiser.speak(text, talker)
            if text not in _agents:
                if len(_agents) == _AGENTS_SENTENCES:
                    _agents.pop(next(iter(_agents)))
                _agents[text] = synthesiser.speak(text, talker)
            return _agents[text]

        for job in jobs:
            generator = np.random.default_rng([job.recipe.seed, job.number])
            caller = draw_caller(job.recipe.split, generator)
            condition = draw_condition(generator, band=job.recipe.band, shares=job.recipe.shares)
            try:
                call = render(job.script, speak, caller, condition, generator)
            except (SpeechError, ValueError) as error:
                raise DatasetError(f"{job.path.name}, script {job.script.name}: {error}") from None
            write_call(job.path, call, {
                "script": job.script.name, "digest": job.digest,
                "caller": asdict(caller), "condition": asdict(condition),
            })
    return len(jobs)


def _duration_s(path: Path) -> float:
    with wave.open(str(path), "rb") as reader:
        return reader.getnframes() / reader.getframerate()
