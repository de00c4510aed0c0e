"""Lists and searches over 100,000 calls in which 20 million words were said: how long the API's queries take.

The calls are made up (words by Zipf's law, as people use them), copied into a Postgres of its own, and asked as the API
asks: through calls.reports.Reports and calls.store.Store.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import psycopg

from calls.reports import CallFilter, Reports
from calls.store import Store, upgrade
from tandem.embedded import embedded_postgres

CALLS, WORDS = 100_000, 20_000_000
UTTERANCES = 20  # of a call
VOCABULARY = 30_000
ASKED = 40  # times each
WANTED_MS = 200
END = datetime(2026, 11, 30, tzinfo=UTC)
CALL_COLUMNS = ("calls (id, received_at, received_version, protocol, direction, caller, callee, reference, bridge, "
                "agent, model, worker, answered_at, codec, ended_at, end_reason, ended_by)")
UTTERANCE_COLUMNS = "utterances (id, call_id, speaker, first_k, last_k, start_s, end_s, text, final, version)"
BLOCK = 1000  # calls that are copied together


def run() -> list[str]:
    with tempfile.TemporaryDirectory() as folder, embedded_postgres(Path(folder), durable=False) as url:
        upgrade(url)
        began = time.monotonic()
        fill(url)
        filled_s = time.monotonic() - began
        return asyncio.run(_measured(url, filled_s))


def fill(url: str, calls: int = CALLS, words: int = WORDS, seed: int = 0) -> None:
    """Copies calls with their utterances and words into a database that has none."""
    random = np.random.default_rng(seed)
    lexicon = [f"w{number}" for number in range(VOCABULARY)]
    weights = 1 / np.arange(1, VOCABULARY + 1)
    shares = np.cumsum(weights / weights.sum())
    each = words // (calls * UTTERANCES)
    with psycopg.connect(url) as connection:
        for begin in range(0, calls, BLOCK):
            block = range(begin, min(begin + BLOCK, calls))
            said = np.searchsorted(shares, random.random((len(block), UTTERANCES, each)))
            _copy(connection, CALL_COLUMNS, (_call(number) for number in block))
            _copy(connection, UTTERANCE_COLUMNS, (
                _utterance(number * UTTERANCES + at, number, at, [lexicon[word] for word in line])
                for number, lines in zip(block, said, strict=True) for at, line in enumerate(lines)))
            connection.commit()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")  # each word's utterance is there
        connection.execute("""
            INSERT INTO words (utterance_id, position, text, first_k, last_k, start_s, end_s)
            SELECT id, place - 1, word, first_k + 2 * place, first_k + 2 * place + 1, start_s + 0.16 * (place - 1),
                   start_s + 0.16 * place
            FROM utterances, string_to_table(text, ' ') WITH ORDINALITY AS said (word, place)""")
        connection.execute("VACUUM ANALYZE calls, utterances, words")


def _call(number: int) -> tuple[object, ...]:
    at = END - timedelta(minutes=3 * (CALLS - number))
    return (f"call-{number:06}", at, "{1,1}", ("sip", "webrtc")[number % 5 == 0], "inbound",
            f"sip:caller{number % 5000}@example.org", "sip:agent@here", f"r{number}", "bridge",
            ("agent", "night")[number % 7 == 0], "nano", f"worker-{number % 8}", at, "PCMU",
            at + timedelta(seconds=100), "caller_hung_up", "remote")


def _utterance(id: int, call: int, at: int, words: list[str]) -> tuple[object, ...]:
    return (id, f"call-{call:06}", ("agent", "caller")[at % 2], 50 * at, 50 * at + 2 * len(words), 4.0 * at,
            4.0 * at + 0.16 * len(words), " ".join(words), True, "{1,1}")


def _copy(connection: psycopg.Connection, into: str, rows: Iterator[tuple[object, ...]]) -> None:
    with connection.cursor().copy(f"COPY {into} FROM STDIN".encode()) as copy:
        for row in rows:
            copy.write_row(row)


async def _measured(url: str, filled_s: float) -> list[str]:
    store = Store(url)
    reports = Reports(store)
    page = (await reports.calls(CallFilter(), 50))[-1].cursor
    deep = (await reports.calls(CallFilter(until=END - timedelta(days=100)), 50))[-1].cursor
    night = CallFilter(agent="night", since=END - timedelta(days=60), until=END - timedelta(days=30))
    asked: dict[str, Callable[[], Awaitable[object]]] = {
        "the newest calls": lambda: reports.calls(CallFilter(), 50),
        "the next page": lambda: reports.calls(CallFilter(), 50, page),
        "a page 50,000 calls back": lambda: reports.calls(CallFilter(), 50, deep),
        "one transport's": lambda: reports.calls(CallFilter(protocol="webrtc"), 50),
        "one agent's in a month": lambda: reports.calls(night, 50),
        "one caller's": lambda: reports.calls(CallFilter(caller="caller4711@"), 50),
        "with an end that none has": lambda: reports.calls(CallFilter(reason="busy"), 50),
        "in which somebody spoke": lambda: reports.calls(CallFilter(said=True), 50),
    }
    for name, words in (("the commonest word", "w0"), ("a common word", "w20"), ("a word of every 100th call", "w1500"),
                        ("a rare word", "w29000"), ("two words together", "w300 w400"), ("a phrase", '"w3 w7"'),
                        ("one word and not another", "w50 -w1"), ("a word that nobody said", "nothing")):
        asked[f"calls with {name}"] = lambda words=words: reports.calls(CallFilter(words=words), 50)  # type: ignore[misc]
        asked[f"utterances with {name}"] = lambda words=words: store.search(words, 50)  # type: ignore[misc]
    lines = ["| asked for | p50 ms | p95 ms | worst ms |", "|---|---|---|---|"]
    late = []
    for name, ask in asked.items():
        took = []
        for _ in range(ASKED):
            began = time.perf_counter()
            await ask()
            took.append(1000 * (time.perf_counter() - began))
        p50, p95 = np.percentile(took, [50, 95])
        lines.append(f"| {name} | {p50:.0f} | {p95:.0f} | {max(took):.0f} |")
        if p95 > WANTED_MS:
            late.append(name)
    await store.close()
    verdict = f"All within {WANTED_MS} ms (p95)." if not late else f"Over {WANTED_MS} ms (p95): {', '.join(late)}."
    return [f"{CALLS:,} calls, {WORDS:,} words, copied in {filled_s:.0f} s; {ASKED} times each, 50 rows.\n", *lines, "",
            verdict]
