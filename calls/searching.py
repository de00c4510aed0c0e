"""Words that were said, and parts of addresses, searched for; words by the index where they are rare, call by call from
the newest where they aren't.

The index finds all utterances with a word, however many; calls in their order find the first page of a common word
soon. Which is faster Postgres could weigh itself, but it takes the reading of what lies in memory for dearer than it
is; so its estimate of how many there are decides here (bench/search.py measures it).
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import and_, func, text
from sqlalchemy.ext.asyncio import AsyncConnection

from calls.store_writes import clean
from calls.tables import Utterance

TRIGRAM = 3  # migrations/versions/0014_addresses.py
RARE = 8000  # utterances, as Postgres estimates them
_ESTIMATE = text("EXPLAIN (FORMAT JSON) SELECT 1 FROM utterances "
                 "WHERE tsv @@ websearch_to_tsquery('simple', CAST(:words AS text))")


def has(words: str, tsv: Any = Utterance.tsv) -> Any:
    """The condition that an utterance has these words (quotes, `or` and `-` as in web searches)."""
    return tsv.op("@@")(func.websearch_to_tsquery("simple", clean(words)))


def has_part(column: Any, part: str) -> Any:
    """The condition that an address has this part, whatever the case of its letters; from TRIGRAM characters on by an
    index. Not by LIKE: Postgres would take the part for rarer than the index's own figures say."""
    given = clean(part)
    there = func.strpos(func.lower(column), func.lower(given)) > 0
    return there if len(given) < TRIGRAM else and_(func.trigrams(column).op("@>")(func.trigrams(given)), there)


async def is_rare(connection: AsyncConnection, words: str) -> bool:
    """Whether the index is the way."""
    plan = (await connection.execute(_ESTIMATE, {"words": clean(words)})).scalar_one()
    return bool(plan[0]["Plan"]["Plan Rows"] <= RARE)
