"""The operator's hand over real SIP calls with nano: what is forced, what is heard of it, how soon.

A `tandem serve` of its own, four phones at once over G.711. Controls go through Redis as the API gives them. What is
heard is judged in the calls' recordings, by level and by the closed-set recogniser; a frame's sound is looked for where
the playout put it, as the words' times tell.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path
from random import Random
from typing import Any

import av
import numpy as np

from agent.evaluate.judging import Share, share_of, words_of
from agent.evaluate.recogniser import Recogniser, sentences_of
from agent.evaluate.rows import QUIET_LINE
from agent.train.acoustics import draw_condition, heard
from agent.train.callers import Caller
from agent.train.domain.reader import load, operators_sentences
from agent.train.domain.reception import State, answer
from agent.train.speech import Synthesiser
from agent.train.voices import draw_caller
from agent.train.words import WordErrors
from calls.connect import as_text, open_redis
from calls.controls import Control, Controls, NoSuchCall, Result
from calls.settings import load_settings
from calls.store import CallRow, Store, UtteranceRow
from media.audio import SAMPLE_RATE, Samples, write_wav
from sip.phone import phone
from tandem.embedded import embedded_redis, running_postgres
from tandem.own_server import serving

AT_ONCE = 4
STARTS, STARTS_A_CALL = 100, 10
HOLDS, HELD_S = 40, 10.0
LINES, LINES_A_CALL = 20, 10  # of each kind
SPEECHES = 24
FRAME_S, PIECE = 0.08, SAMPLE_RATE // 50
LOUD = 10 ** (-45 / 20)
SETTLE_S = 5.0  # until the greeting is over
_BETWEEN_S = 3.0  # a caller's two sentences
_MARGIN_S = 0.25  # of sound that was on its way when a hold began


@dataclass
class Made:
    """One call: what was given in it and what became of that, what it left."""

    call: str
    given: list[tuple[Control, Result | None]] = field(default_factory=list)
    row: CallRow | None = None
    utterances: tuple[UtteranceRow, ...] = ()
    said: Samples = field(default_factory=lambda: np.zeros(0, np.float32))  # the agent, on the call's clock

    @property
    def playout_s(self) -> float:
        """From an agent's frame to its place on the call's clock, its delay included."""
        shifts = [word.start_s - FRAME_S * word.first_k for one in self.utterances if one.speaker == "agent"
                  for word in one.words]
        return float(np.median(shifts)) if shifts else FRAME_S

    def after(self, k: int) -> float:
        """When what frame k decided is heard."""
        return FRAME_S * k + self.playout_s

    def between(self, start_s: float, end_s: float) -> Samples:
        return self.said[max(0, round(start_s * SAMPLE_RATE)):round(end_s * SAMPLE_RATE)]


def _agent_in(path: Path) -> Samples:
    """The left channel of a recording: what the caller heard."""
    parts = []
    with av.open(str(path)) as file:
        for frame in file.decode(audio=0):
            block = frame.to_ndarray()
            stereo = block if block.shape[0] == 2 else block.reshape(-1, 2).T
            parts.append(stereo[0].astype(np.float32) / np.float32(32768))
    return np.concatenate(parts)


def levels(sound: Samples) -> Samples:
    """RMS of each 20 ms."""
    whole = sound[:sound.size // PIECE * PIECE].reshape(-1, PIECE)
    return np.sqrt((whole ** 2).mean(axis=1))


Hand = Callable[[Made, "Operator"], Awaitable[None]]


class Operator:
    def __init__(self, controls: Controls) -> None:
        self._controls = controls

    async def give(self, made: Made, action: Any, text: str = "", *, mute: bool = False, wait_s: float = 20.0
                   ) -> Result | None:
        control = Control(made.call, action, text, mute, by="bench")
        await self._controls.give(control)
        result = await self._controls.result(control, wait_s)
        made.given.append((control, result))
        return result


class Line:
    """Phones that call the Tandem under test."""

    def __init__(self, redis_url: str, uri: str, data: Path) -> None:
        self._redis_url, self._uri, self._data = redis_url, uri, data

    def calls(self, hands: Sequence[tuple[Hand, Samples | None, float]]) -> list[Made]:
        """A call for each: what is done in it, what its caller plays, how long it lasts."""
        return asyncio.run(self._all(hands))

    async def _all(self, hands: Sequence[tuple[Hand, Samples | None, float]]) -> list[Made]:
        free, dialling = asyncio.Semaphore(AT_ONCE), asyncio.Lock()
        store = Store(running_postgres(self._data))
        async with open_redis(self._redis_url) as redis:
            operator = Operator(Controls(redis))

            async def running() -> set[str]:
                keys = [as_text(key) async for key in redis.scan_iter("tandem:{call *}:bridge")]
                return {match[1] for key in keys if (match := re.search(r"\{call (\w+)\}", key))}

            async def one(hand: Hand, sound: Samples | None, seconds: float) -> Made:
                async with free:
                    async with dialling:
                        before = await running()
                        talk = asyncio.create_task(self._phone(sound, seconds))
                        async with asyncio.timeout(20):
                            while not (new := await running() - before):
                                await asyncio.sleep(0.05)
                    made = Made(new.pop())
                    await asyncio.sleep(0.5)  # for the answer
                    with contextlib.suppress(NoSuchCall):  # its time was over first: what was given by then counts
                        await hand(made, operator)
                    await talk
                    await self._collect(made, store)
                    return made

            made = list(await asyncio.gather(*(one(*each) for each in hands)))
        await store.close()
        return made

    async def _phone(self, sound: Samples | None, seconds: float) -> None:
        with tempfile.TemporaryDirectory() as folder:
            play = None
            if sound is not None:
                play = Path(folder) / "play.wav"
                write_wav(play, sound)
            await phone(self._uri, play=play, codec="pcmu", seconds=seconds)

    async def _collect(self, made: Made, store: Store) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            made.row, kept = await store.call(made.call), await store.recording(made.call)
            if made.row is not None and made.row.ended_at is not None and kept is not None:
                made.utterances = await store.utterances(made.call)
                made.said = _agent_in(Path(kept.url))
                return
            await asyncio.sleep(0.2)
        raise RuntimeError(f"call {made.call}: its row or recording didn't come")


# --- what is done in the calls ---


async def _starts(made: Made, operator: Operator) -> None:
    await asyncio.sleep(SETTLE_S)
    for _ in range(STARTS_A_CALL):
        await operator.give(made, "hold")
        await asyncio.sleep(2.0)
        await operator.give(made, "speak")
        await asyncio.sleep(1.2)
        await operator.give(made, "hold", mute=True)
        await asyncio.sleep(1.0)
        await operator.give(made, "release")


async def _held(made: Made, operator: Operator) -> None:
    """The question is played meanwhile."""
    await asyncio.sleep(SETTLE_S)
    await operator.give(made, "hold")
    await asyncio.sleep(HELD_S)
    await operator.give(made, "release")


def _saying(lines: Sequence[str]) -> Hand:
    async def hand(made: Made, operator: Operator) -> None:
        await asyncio.sleep(SETTLE_S)
        for line in lines:
            await operator.give(made, "hold")  # so that it says nothing else meanwhile
            await operator.give(made, "say", line)
            await asyncio.sleep(1.5)

    return hand


async def _nothing(made: Made, operator: Operator) -> None:
    return


# --- what is judged ---


def _begins(made: Made, result: Result) -> bool:
    """Speech in the agent's sound within 5 frames of the forced one."""
    start_s = made.after(result.first_k)
    return bool((levels(made.between(start_s, start_s + 5 * FRAME_S)) > LOUD).any())


def _spoke_before(made: Made, result: Result) -> bool:
    return bool((levels(made.between(made.after(result.first_k) - 0.5, made.after(result.first_k))) > LOUD).any())


def _is_quiet(made: Made, start_s: float, end_s: float) -> bool:
    return not bool((levels(made.between(start_s, end_s)) > LOUD).any())


def _done(made: Sequence[Made], action: str, outcome: str, mute: bool = False) -> list[tuple[Made, int, Result]]:
    """Controls of a kind that took effect: their call, their place in it, their result."""
    return [(one, at, result) for one in made for at, (control, result) in enumerate(one.given)
            if control.action == action and control.mute == mute and result is not None and result.outcome == outcome]


def _percent(share: Share) -> str:
    low, high = share.interval()
    return f"{share.right} of {share.of} = **{100 * share.value:.0f} %** ({100 * low:.0f}-{100 * high:.0f})"


def _words(made: Made, first_k: int, last_k: int) -> tuple[str, ...]:
    return tuple(word for one in made.utterances if one.speaker == "agent" for each in one.words
                 if first_k <= each.first_k <= last_k for word in words_of(each.text))


def _lines(random: Random) -> dict[str, list[str]]:
    """What is said, by what it is."""
    known = [line for line in sentences_of(load()) if 4 <= len(words_of(line)) <= 9]
    own = random.sample(known, LINES)
    words = sorted({word for line in known for word in words_of(line)})
    orders = [" ".join(random.sample(words, random.randint(4, 7))) for _ in range(LINES)]
    others = list(operators_sentences(held_out=True))[:LINES]
    return {"sentences of its own": own, "word orders that it never saw": orders, "others' sentences": others}


def _recogniser(lines: Sequence[str]) -> Recogniser:
    """One that knows these lines, each as a whole."""
    choices = " | ".join(" ".join(words_of(line)) for line in lines)
    return Recogniser.of(f"#JSGF V1.0;\ngrammar lines;\npublic <said> = {choices};")


@dataclass(frozen=True)
class Asked:
    text: str
    sound: Samples
    words: tuple[tuple[str, float], ...]  # with their begins, in seconds
    expected: str


def _questions(count: int, seed: int) -> list[Asked]:
    """Training's phrasings in held-out voices, over a quiet line."""
    asked, domain = [], load()
    with Synthesiser() as synthesiser:
        for number in range(count):
            generator = np.random.default_rng([seed, number])
            turn = Caller(domain, Random(f"{seed} {number}"), held_out=False).question()
            talker = draw_caller("held_out_voices", generator)
            speech = synthesiser.speak(turn.text, talker)
            pcm = speech.pcm
            words = tuple((text, begin_s) for text, begin_s, _ in speech.words)
            line = heard(pcm, np.zeros_like(pcm), draw_condition(generator, band="clean", shares=QUIET_LINE), generator)
            asked.append(Asked(turn.text, line, words, answer(State(), turn.heard, domain.intents)[0]))
    return asked


def _quiet(seconds: float) -> Samples:
    return np.zeros(round(seconds * SAMPLE_RATE), np.float32)


def run() -> list[str]:
    random = Random(5)
    lines, questions = _lines(random), _questions(HOLDS, 6)
    speeches = _questions(2 * SPEECHES, 7)
    with tempfile.TemporaryDirectory(prefix="tandem-bench-") as name, embedded_redis(Path(name) / "ours") as redis_url:
        settings = load_settings(model="nano", slots=AT_ONCE)
        with serving(settings, Path(name), redis_url) as ours:
            line = Line(redis_url, f"sip:agent@127.0.0.1:{ours.sip_port}", Path(name) / "data")
            starts = line.calls([(_starts, None, SETTLE_S + 6 * STARTS_A_CALL)] * (STARTS // STARTS_A_CALL))
            held = line.calls([
                (_held, np.concatenate([_quiet(SETTLE_S + 2), one.sound]), SETTLE_S + HELD_S + 8) for one in questions])
            said = line.calls([(_saying(kind[at:at + LINES_A_CALL]), None, SETTLE_S + 10 * LINES_A_CALL)
                               for kind in lines.values() for at in range(0, len(kind), LINES_A_CALL)])
            spoken = line.calls([
                (_nothing, np.concatenate([_quiet(SETTLE_S), first.sound, _quiet(_BETWEEN_S), second.sound]), 18.0)
                for first, second in zip(speeches[::2], speeches[1::2], strict=True)])
    return [*_told_starts(starts), *_told_held(held, questions), *_told_said(said, lines),
            *_told_soon([*starts, *held, *said]), *_told_heard(spoken, speeches)]


def _told_starts(starts: list[Made]) -> list[str]:
    begun = [_begins(made, result) for made, _, result in _done(starts, "speak", "spoke")
             if not _spoke_before(made, result)]
    muted = [_is_quiet(made, made.after(result.first_k) + FRAME_S, made.after(result.first_k) + 0.9)
             for made, _, result in _done(starts, "hold", "held", mute=True)]
    return ["| what | measured | wanted |", "|---|---|---|",
            f"| `speak` in silence: speech within 5 frames | {_percent(share_of(begun))} | 98 % |",
            f"| `hold --mute` in its speech: silent from the second frame on | {_percent(share_of(muted))} | always |"]


def _told_held(held: list[Made], questions: list[Asked]) -> list[str]:
    quiet, answered = [], []
    for made, asked in zip(held, questions, strict=True):
        found = _done([made], "hold", "held"), _done([made], "release", "released")
        if not all(found):
            continue
        begin, end = found[0][0][2].first_k, found[1][0][2].first_k
        quiet.append(_is_quiet(made, made.after(begin) + _MARGIN_S, made.after(end)))
        answered.append(_words(made, end, end + 100)[:len(words_of(asked.expected))] == words_of(asked.expected))
    return [f"| `hold` for {HELD_S:g} s while asked: silence in the sound | {_percent(share_of(quiet))} | 98 % |",
            f"| then, released: answers the question, word for word | {_percent(share_of(answered))} | 80 % |"]


def _told_said(said: list[Made], lines: dict[str, list[str]]) -> list[str]:
    every = [line for kind in lines.values() for line in kind]
    recognise, rows = _recogniser(every), []
    for name, kind in lines.items():
        in_order, in_sound = [], []
        for made, control, result in ((one, *given) for one in said for given in one.given):
            if control.action != "say" or control.text not in kind:
                continue
            done = result is not None and result.outcome == "said"
            in_order.append(done and _words(made, result.first_k, result.k) == words_of(control.text))
            sound = made.between(made.after(result.first_k) - 0.1, made.after(result.k) + 0.8) if done else _quiet(1)
            in_sound.append(words_of(recognise(sound)) == words_of(control.text))
        rows += [f"| `say`, {name}: words in order in the text | {_percent(share_of(in_order))} | 100 % |",
                 f"| … recognised in the sound, among the {len(every)} lines | {_percent(share_of(in_sound))} | |"]
    return rows


def _told_soon(made: list[Made]) -> list[str]:
    """From the acceptance of a control to the end of the frame that it counts from, when that frame steps."""
    soon = [one.row.answered_at.timestamp() + FRAME_S * (result.first_k + 1) - control.accepted_at
            for one in made for control, result in one.given
            if result is not None and result.outcome in ("spoke", "held", "released")
            and one.row is not None and one.row.answered_at is not None]
    p50, p95 = 1000 * np.percentile(soon, (50, 95))
    return [f"| acceptance to the frame it counts from, {len(soon)} controls, p50 / p95 | **{p50:.0f} / {p95:.0f} ms** "
            "| 100 / 100 ms |"]


def _told_heard(spoken: list[Made], speeches: list[Asked]) -> list[str]:
    errors, late = WordErrors(), []
    for made, first, second in zip(spoken, speeches[::2], speeches[1::2], strict=True):
        kept = [word for one in made.utterances if one.speaker == "caller" for word in one.words]
        errors += WordErrors.of(f"{first.text} {second.text}", " ".join(word.text for word in kept))
        second_s = SETTLE_S + first.sound.size / SAMPLE_RATE + _BETWEEN_S
        said = [(text, begin_s + at_s) for one, at_s in ((first, SETTLE_S), (second, second_s))
                for text, begin_s in one.words]
        same = SequenceMatcher(None, [text.lower() for text, _ in said], [word.text.lower() for word in kept],
                               autojunk=False).get_matching_blocks()
        late += [kept[block.b + at].start_s - said[block.a + at][1] for block in same for at in range(block.size)]
    p5, p50, p95 = 1000 * np.percentile(late, (5, 50, 95))
    near = share_of(abs(each) <= 0.16 for each in late)
    return [f"| the caller's words as kept, held-out voices, {errors.words} words: word error rate "
            f"| **{100 * errors.rate:.0f} %** | |",
            f"| their times against the script's, {len(late)} words found: p5 / p50 / p95 | {p5:.0f} / {p50:.0f} / "
            f"{p95:.0f} ms | |",
            f"| … within 160 ms | {_percent(near)} | all |"]
