"""Rules of retention in Postgres, and the part of their work that is SQL's: what is due, what is redacted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Integer, String, bindparam, cast, delete, desc, func, insert, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from calls.retention import CARD, MARGIN_S, RETENTION, Found, Pattern, Retention, card_numbers
from calls.store import Refused, Store
from calls.tables import (
    Call,
    CallControl,
    LineEvent,
    Recording,
    Redaction,
    RetentionVersion,
    Utterance,
    WebhookDelivery,
    Word,
)

FRAME_S = 0.08  # of a call's clock
SETTLED = timedelta(seconds=60)  # after its end, when a call's words are all there
UNENDED = timedelta(days=1)  # after which a call without an end counts as over
MOST_PLACES = 200  # of a pattern, in one utterance
STATEMENT_MS = 5000  # lest one call holds up the others
KEPT_VERSIONS = 100

Span = tuple[float, float]


class RetentionRefused(ValueError):
    """One line that says what is wrong with the rules."""


@dataclass(frozen=True)
class Version:
    """Rules as they were saved; version 0, none at all, before."""

    number: int
    at: datetime | None
    by: str
    rules: Retention


@dataclass(frozen=True)
class Redacted:
    """What was found in a call: how often, by name."""

    call: str
    found: Mapping[str, int]


class RetentionStore:
    """Methods raise StoreError."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def newest(self) -> Version:
        query = (select(RetentionVersion.version, RetentionVersion.at, RetentionVersion.by, RetentionVersion.rules)
                 .order_by(desc(RetentionVersion.version)).limit(1))
        async with self._store.transaction() as connection:
            row = (await connection.execute(query)).first()
        return Version(row[0], row[1], row[2], RETENTION.validate_python(row[3])) if row else Version(
            0, None, "", Retention())

    async def save(self, rules: Retention, by: str) -> Version:
        """Raises RetentionRefused for an expression that Postgres can't read."""
        for pattern in rules.patterns:
            try:
                async with self._store.transaction() as connection:
                    await connection.execute(select(text("'' ~* :regex")).params(regex=pattern.regex))
            except Refused as refused:
                raise RetentionRefused(f"patterns: {pattern.name}: {str(refused).rpartition(': ')[2]}") from None
        at, document = datetime.now(UTC), RETENTION.dump_python(rules, mode="json")
        async with self._store.transaction() as connection:
            await connection.execute(text("LOCK TABLE retention_versions IN EXCLUSIVE MODE"))
            number = (await connection.execute(select(
                func.coalesce(func.max(RetentionVersion.version), 0) + 1))).scalar_one()
            await connection.execute(insert(RetentionVersion).values(version=number, at=at, by=by, rules=document))
            await connection.execute(delete(RetentionVersion).where(RetentionVersion.version <= number - KEPT_VERSIONS))
        return Version(number, at, by, rules)

    # by age

    async def old_calls(self, days: int, limit: int) -> tuple[str, ...]:
        """Calls that were over before, the oldest first."""
        before = datetime.now(UTC) - timedelta(days=days)
        query = (select(Call.id).where(Call.received_at < before, _over(before))
                 .order_by(Call.received_at).limit(limit))
        async with self._store.transaction() as connection:
            return tuple((await connection.execute(query)).scalars())

    async def old_recordings(self, days: int, limit: int) -> dict[str, str]:
        """Calls whose recordings were kept before, and where they are."""
        before = datetime.now(UTC) - timedelta(days=days)
        query = (select(Recording.call_id, Recording.url).where(Recording.kept_at < before)
                 .order_by(Recording.kept_at).limit(limit))
        async with self._store.transaction() as connection:
            return {row[0]: row[1] for row in await connection.execute(query)}

    async def forget_recordings(self, calls: Iterable[str]) -> None:
        """Their files are gone."""
        async with self._store.transaction() as connection:
            await connection.execute(delete(Recording).where(Recording.call_id.in_(list(calls))))

    # by what was said

    async def to_redact(self, version: int, limit: int) -> tuple[str, ...]:
        """Calls that these rules haven't seen."""
        over = Call.ended_at < datetime.now(UTC) - SETTLED
        query = (select(Call.id).where(over, func.coalesce(Call.redaction_version, 0) < version)
                 .order_by(desc(Call.ended_at)).limit(limit))
        async with self._store.transaction() as connection:
            return tuple((await connection.execute(query)).scalars())

    async def redact(self, call: str, version: Version, *, dry_run: bool = False) -> Redacted:
        """Puts names in the place of what the rules find in a call's words, keys and operators' sentences; its sound is
        left to be silenced."""
        async with self._store.transaction() as connection:
            await connection.execute(text(f"SET LOCAL statement_timeout = {STATEMENT_MS}"))
            if (await connection.execute(select(Call.id).where(Call.id == call).with_for_update())).first() is None:
                return Redacted(call, {})
            work = _Redaction(connection, call, version.rules)
            found, spans = await work.run(dry_run)
            if not dry_run:
                await connection.execute(update(Call).where(Call.id == call).values(redaction_version=version.number))
                if found:
                    row = upsert(Redaction).values(call_id=call, at=datetime.now(UTC), found=sum(found.values()),
                                                   spans=[list(span) for span in spans], silenced_at=None)
                    await connection.execute(row.on_conflict_do_update(index_elements=[Redaction.call_id], set_={
                        "at": row.excluded.at, "found": Redaction.found + row.excluded.found, "silenced_at": None,
                        "spans": Redaction.spans.op("||")(row.excluded.spans)}))
        return Redacted(call, found)

    async def to_silence(self, limit: int) -> tuple[tuple[str, str, str, tuple[Span, ...]], ...]:
        """Calls whose recordings still have the sound of what was redacted: where they are, codecs, which seconds."""
        query = (select(Recording.call_id, Recording.url, Recording.codec, Redaction.spans).join(
            Redaction, Redaction.call_id == Recording.call_id)
            .where(or_(Redaction.silenced_at.is_(None), Redaction.silenced_at < Recording.kept_at))
            .order_by(Redaction.at).limit(limit))
        async with self._store.transaction() as connection:
            return tuple((row[0], row[1], row[2], tuple((float(a), float(b)) for a, b in row[3]))
                         for row in await connection.execute(query))

    async def silenced(self, call: str, bytes: int) -> None:
        async with self._store.transaction() as connection:
            await connection.execute(update(Redaction).where(Redaction.call_id == call)
                                     .values(silenced_at=datetime.now(UTC)))
            await connection.execute(update(Recording).where(Recording.call_id == call).values(bytes=bytes))

    async def without_token_logs(self, calls: Sequence[str]) -> set[str]:
        """Those of the calls in which something was redacted: their token logs could be made to sound again."""
        query = select(Redaction.call_id).where(Redaction.call_id.in_(calls))
        async with self._store.transaction() as connection:
            return set((await connection.execute(query)).scalars())


class _Redaction:
    """One call's, within a transaction."""

    def __init__(self, connection: AsyncConnection, call: str, rules: Retention) -> None:
        self._connection, self._call, self._rules = connection, call, rules
        self._found: dict[str, int] = defaultdict(int)
        self._spans: list[Span] = []

    async def run(self, dry_run: bool) -> tuple[dict[str, int], list[Span]]:
        words = (await self._connection.execute(
            select(Utterance.id, Utterance.speaker, Word.position, Word.text, Word.last_k, Word.start_s, Word.end_s)
            .join(Word, Word.utterance_id == Utterance.id).where(Utterance.call_id == self._call)
            .order_by(Utterance.speaker, Word.start_s, Utterance.first_k, Word.position))).all()
        marked: dict[tuple[int, int], str] = {}
        for speaker in {row.speaker for row in words}:
            side = [row for row in words if row.speaker == speaker]
            if self._rules.card_numbers:
                self._mark(side, card_numbers([row.text for row in side]), marked)
        by_utterance: dict[int, list[Any]] = defaultdict(list)
        for row in words:
            by_utterance[row.id].append(row)
        for pattern in self._rules.patterns:
            for id, places in (await self._places(pattern)).items():
                self._mark(by_utterance[id], _words_at(by_utterance[id], places, pattern.name), marked)
        if not dry_run:
            for id in {id for id, _ in marked}:
                await self._rewrite(id, by_utterance[id], marked)
        await self._keys(dry_run)
        await self._controls(dry_run)
        if self._found and not dry_run:
            await self._connection.execute(delete(WebhookDelivery).where(
                WebhookDelivery.call_id == self._call, WebhookDelivery.type == "call.utterance"))
        return dict(self._found), self._spans

    def _mark(self, words: Sequence[Any], found: Iterable[Found], marked: dict[tuple[int, int], str]) -> None:
        for one in found:
            self._found[one.name] += 1
            self._spans.append((max(0.0, words[one.first].start_s - MARGIN_S), words[one.last].end_s + MARGIN_S))
            for row in words[one.first:one.last + 1]:
                marked.setdefault((row.id, row.position), one.name)

    async def _places(self, pattern: Pattern) -> dict[int, list[tuple[int, int]]]:
        """Of a pattern, in each utterance: the first character and the one after the last."""
        query = text("""
            SELECT u.id, m.start - 1, m.stop - 1 FROM utterances u CROSS JOIN LATERAL (
                SELECT regexp_instr(u.text, :regex, 1, n, 0, 'i') AS start,
                       regexp_instr(u.text, :regex, 1, n, 1, 'i') AS stop
                FROM generate_series(1, least(regexp_count(u.text, :regex, 1, 'i'), :most)) AS n) m
            WHERE u.call_id = :call AND u.text ~* :regex AND m.stop > m.start""").bindparams(
                bindparam("regex", type_=String), bindparam("most", type_=Integer))
        places: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for id, start, stop in await self._connection.execute(
                query, {"regex": pattern.regex, "call": self._call, "most": MOST_PLACES}):
            places[id].append((start, stop))
        return places

    async def _rewrite(self, id: int, words: Sequence[Any], marked: Mapping[tuple[int, int], str]) -> None:
        """A name in place of each run of words."""
        told: list[str] = []
        before = ""
        keeper = -1
        for row in words:
            name = marked.get((id, row.position), "")
            at = (Word.utterance_id == id) & (Word.position == row.position)
            if name and name == before:
                await self._connection.execute(delete(Word).where(at))
                await self._connection.execute(update(Word).where(
                    Word.utterance_id == id, Word.position == keeper).values(last_k=row.last_k, end_s=row.end_s))
            elif name:
                keeper = row.position
                await self._connection.execute(update(Word).where(at).values(text=f"[{name}]"))
                told.append(f"[{name}]")
            else:
                told.append(row.text)
            before = name
        await self._connection.execute(update(Utterance).where(Utterance.id == id).values(text=" ".join(told)))

    async def _keys(self, dry_run: bool) -> None:
        """A card's number by the telephone's keys."""
        if not self._rules.card_numbers:
            return
        pressed = (await self._connection.execute(
            select(LineEvent.source, LineEvent.fence, LineEvent.sequence, LineEvent.text, LineEvent.k)
            .where(LineEvent.call_id == self._call, LineEvent.what == "key").order_by(LineEvent.at, LineEvent.sequence))
            ).all()
        for one in card_numbers([row.text.strip("#*") or "dash" for row in pressed]):
            self._found[CARD] += 1
            run = pressed[one.first:one.last + 1]
            self._spans.append((max(0.0, FRAME_S * run[0].k - MARGIN_S), FRAME_S * (run[-1].k + 1) + MARGIN_S))
            for row in run if not dry_run else ():
                await self._connection.execute(update(LineEvent).where(
                    LineEvent.call_id == self._call, LineEvent.source == row.source, LineEvent.fence == row.fence,
                    LineEvent.sequence == row.sequence).values(text="x"))

    async def _controls(self, dry_run: bool) -> None:
        """What operators had the agent say, and typed."""
        rows = (await self._connection.execute(select(CallControl.id, CallControl.text).where(
            CallControl.call_id == self._call, CallControl.text != ""))).all()
        for id, said in rows:
            after = said
            if self._rules.card_numbers:
                after = _without(after.split(), card_numbers(after.split()))
            for pattern in self._rules.patterns:
                after = str((await self._connection.execute(select(func.regexp_replace(
                    cast(after, String), pattern.regex, f"[{pattern.name}]", "gi")))).scalar_one())
            if after == said:
                continue
            self._found["control"] += 1
            if not dry_run:
                await self._connection.execute(update(CallControl).where(
                    CallControl.call_id == self._call, CallControl.id == id).values(text=after))


def _over(before: datetime) -> Any:
    return or_(Call.ended_at < before, Call.ended_at.is_(None) & (Call.received_at < before - UNENDED))


def _words_at(words: Sequence[Any], places: Iterable[tuple[int, int]], name: str) -> Iterable[Found]:
    """Which words characters of an utterance's text belong to: it is its words with spaces between them."""
    begins, at = [], 0
    for row in words:
        begins.append((at, at + len(row.text)))
        at += len(row.text) + 1
    for start, stop in places:
        touched = [number for number, (first, last) in enumerate(begins) if first < stop and start < last]
        if touched:
            yield Found(touched[0], touched[-1], name)


def _without(words: Sequence[str], found: Iterable[Found]) -> str:
    kept = list(words)
    for one in found:
        kept[one.first:one.last + 1] = [f"[{one.name}]", *[""] * (one.last - one.first)]
    return " ".join(word for word in kept if word)
