"""`tandem bench conversation`: scripted callers against a model, offline or over SIP, and what came of it."""

from __future__ import annotations

import contextlib
import json
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from agent.engine import MoshiEngine
from agent.evaluate.offline import EvaluationError, converse
from agent.evaluate.recogniser import Recogniser, RecogniserError, sentences_of
from agent.evaluate.report import Figure, Recognise, Result, figures, judged_sound, told
from agent.evaluate.rows import ROWS, Dialogue, Lengths, Row, cast, judge
from agent.models import load_agent_model, set_threads
from agent.moshi.checkpoint import CheckpointError
from agent.moshi.text import Tokenizer, TokenizerError
from agent.train.acoustics import Band
from agent.train.domain.reader import Domain, DomainError, load
from agent.train.speech import SpeechError, Synthesiser
from agent.train.voices import AGENT
from calls.settings import Settings
from tandem.errors import UserError, told_in_one_line

Talk = Callable[[Sequence[Dialogue], Callable[[int], None]], None]  # lets dialogues take place

BANDS: dict[str, Band] = {"clean": "clean", "wide_band": "wide_band", "phone": "phone"}


@dataclass(frozen=True)
class Order:
    """What is asked for on the command line."""

    rows: tuple[str, ...]  # none: all that the way there allows
    count: int
    seed: int
    band: str
    held_s: float
    silence_s: float
    sip: bool
    uri: str | None
    text_only: bool

    @property
    def over_sip(self) -> bool:
        return self.sip or self.uri is not None


def bench_conversation(settings: Settings, order: Order, json_file: Path | None) -> None:
    """Measure the rows, print a table for all of them and, for each, the command that measures it again."""
    rows, band = _rows(order), _band(order)
    out = Console(highlight=False)
    with told_in_one_line(DomainError, RecogniserError):
        domain = load()
        recognise = None if order.text_only else Recogniser.load(domain)
    if json_file is not None:
        _write(json_file, {})  # says now, not after the calls, that it can't
    began = time.monotonic()
    results = []
    with told_in_one_line(CheckpointError, TokenizerError, SpeechError, EvaluationError), \
            Synthesiser() as synthesiser, _way(settings, order) as talk:
        for row in rows:
            dialogues = cast(row, order.count, order.seed, domain, synthesiser.speak, band=band,
                             lengths=Lengths(order.held_s, order.silence_s))
            _talk(talk, row, dialogues)
            results.append(_judged(row, dialogues, domain, recognise, synthesiser, over_phone=order.over_sip))
    out.print(_table([figure for result in results for figure in figures(result)], settings.model_name, order))
    out.print(f"took {time.monotonic() - began:.0f} s; each row again:")
    for row in rows:
        out.print(command(settings, order, row), soft_wrap=True)
    if json_file is not None:
        _write(json_file, {
            "model": settings.model, "seed": order.seed, "count": order.count, "over": _over(order),
            "rows": [{**told(result), "command": command(settings, order, result.row)} for result in results],
        })
        out.print(f"written to {json_file}")


@contextlib.contextmanager
def _way(settings: Settings, order: Order) -> Iterator[Talk]:
    """How dialogues reach the model: through an engine in this process, or by telephone."""
    if order.over_sip:
        from tandem.scripted_calls import telephone

        with telephone(settings, order.uri) as talk:
            yield talk
        return
    model = load_agent_model(settings)
    tokenizer = Tokenizer(model.tokenizer_path) if model.tokenizer_path else None
    engine = MoshiEngine(model, settings.slots)
    set_threads(engine, settings)
    yield lambda dialogues, progress: converse(engine, tokenizer, dialogues, progress)


def command(settings: Settings, order: Order, row: Row) -> str:
    """What measures this row again."""
    words = ["tandem", "bench", "conversation", "--model", settings.model, "--rows", row.key,
             "--count", str(order.count), "--seed", str(order.seed), "--slots", str(settings.slots)]
    if order.uri is not None:
        words += ["--uri", order.uri]
    elif order.sip:
        words += ["--sip"]
    else:
        words += ["--band", order.band]
    if row.kind == "held":
        words += ["--held", f"{order.held_s:g}"]
    if row.kind == "silence":
        words += ["--silence", f"{order.silence_s:g}"]
    return shlex.join([*words, "--text-only"] if order.text_only else words)


def _rows(order: Order) -> list[Row]:
    unknown = [key for key in order.rows if key not in ROWS]
    if unknown:
        raise UserError(f"--rows {unknown[0]}: give some of {', '.join(ROWS)}")
    rows = [ROWS[key] for key in order.rows] if order.rows else list(ROWS.values())
    forcing = [row.key for row in rows if row.forces]
    if order.over_sip and forcing and order.rows:
        raise UserError(f"--rows {forcing[0]}: forces the text stream, which works offline only, without --sip")
    return [row for row in rows if not (order.over_sip and row.forces)]


def _band(order: Order) -> Band:
    if order.band not in BANDS:
        raise UserError(f"--band {order.band}: give one of {', '.join(BANDS)}")
    return "clean" if order.over_sip else BANDS[order.band]  # a real call brings its own


def _over(order: Order) -> str:
    return "SIP, G.711" if order.over_sip else f"offline, {order.band}"


def _talk(talk: Talk, row: Row, dialogues: Sequence[Dialogue]) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(row.title, total=len(dialogues))
        talk(dialogues, lambda over: progress.update(task, completed=over))


def _judged(
    row: Row, dialogues: Sequence[Dialogue], domain: Domain, recognise: Recognise | None, synthesiser: Synthesiser, *,
    over_phone: bool,
) -> Result:
    sentences = sentences_of(domain)
    trials = [judge(dialogue, sentences, recognise) for dialogue in dialogues]
    sound = None
    if recognise is not None and row.kind == "questions":
        sound = judged_sound(dialogues, trials, recognise, lambda text: synthesiser.speak(text, AGENT).pcm,
                             over_phone=over_phone)
    return Result(row, dialogues, trials, sound)


def _table(lines: Sequence[Figure], model: str, order: Order) -> Table:
    table = Table(title=f"{model}, {_over(order)}, seed {order.seed}", title_justify="left", box=SIMPLE)
    for name in ("row", "what", "measured", "95 %", "n", "wanted"):
        table.add_column(name, justify="left" if name in ("row", "what") else "right", no_wrap=name != "what")
    for line in lines:
        short = line.wanted is not None and not line.value >= line.wanted
        between = "" if line.low is None or line.high is None else f"{100 * line.low:.1f} - {100 * line.high:.1f}"
        table.add_row(line.row, line.title.partition(": ")[2], _shown(line), between, str(line.n),
                      "" if line.wanted is None else f"{100 * line.wanted:.0f} %", style="yellow" if short else None)
    return table


def _shown(line: Figure) -> str:
    if np.isnan(line.value):
        return "-"
    return f"{line.value:.2f} s" if line.seconds else f"{100 * line.value:.1f} %"


def _write(path: Path, content: object) -> None:
    try:
        path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
