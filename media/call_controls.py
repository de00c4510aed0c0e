"""One call's controls: those that its worker carries out, those that the bridge does itself; one result each."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime

from calls import wire
from calls.controls import ON_THE_LINE, Action, Control, Result
from calls.events import ControlTaken
from media.line import LineWork

log = logging.getLogger(__name__)

MOST_WITH_WORKER = 64
RESULTS_KEPT = 256  # for controls that are given twice
GOES_ON: Mapping[Action, str] = {"take_over": "talking"}  # what isn't done when it has begun (media/taps.py)

Reply = Callable[[Result], None]
OwnAction = Callable[[Control], str]  # carried out here: returns why it can't be, or nothing


class CallControls:
    """`send` hands a control to the worker and says whether it could; `emit` notes what became of one; `now` is the
    frame of the call's clock; `own` are the actions that the bridge carries out itself, by their names."""

    def __init__(self, *, send: Callable[[wire.Control], Awaitable[bool]], emit: Callable[[ControlTaken], None],
                 now: Callable[[], int], own: dict[str, OwnAction]) -> None:
        self._send, self._emit, self._now, self._own = send, emit, now, own
        self._given: dict[str, tuple[Control, list[Reply]]] = {}  # with the worker
        self._results: OrderedDict[str, Result] = OrderedDict()
        self._hold: Control | None = None  # that the worker carries out just now
        self._set: Control | None = None  # how tokens are drawn by now, all that was set taken together
        self._over = False
        self.transport: LineWork | None = None  # carries out what is wanted of the telephone line
        self._on_line: set[asyncio.Task[None]] = set()

    async def take(self, control: Control, reply: Reply, *, talking: bool, barred: str = "") -> None:
        """Carry a control out, unless it is `barred` for some reason; `reply` is called once, when its result is known.
        """
        if control.id in self._results:
            reply(self._results[control.id])
            return
        if control.id in self._given:
            self._given[control.id][1].append(reply)
            return
        self._given[control.id] = control, [reply]
        if not talking or self._over:
            self._finish(control.id, "refused", why="the call isn't talking")
        elif barred:
            self._finish(control.id, "refused", why=barred)
        elif control.action in self._own:
            why = self._own[control.action](control)
            self._finish(control.id, "refused" if why else GOES_ON.get(control.action, "done"), why=why)
        elif len(self._given) > MOST_WITH_WORKER:
            self._finish(control.id, "refused", why=f"{MOST_WITH_WORKER} controls have no result yet")
        elif control.action in ON_THE_LINE:
            self._start_on_line(control)
        elif not await self._send(_for_worker(control)):
            self._finish(control.id, "refused", why="the worker is lost")

    async def moved(self) -> None:
        """Another worker has the call: it holds as the one before did, and takes what has no result yet; a line that
        was being said is begun again."""
        for kept in (self._set, self._hold):
            if kept is not None:
                await self._send(_for_worker(kept))
        for control, _ in list(self._given.values()):
            if control.action not in (*self._own, *ON_THE_LINE) and not await self._send(_for_worker(control)):
                self._finish(control.id, "refused", why="the worker is lost")

    @property
    def idle(self) -> bool:
        """Nothing is with the worker that it hasn't finished."""
        return all(control.action in (*self._own, *ON_THE_LINE) for control, _ in self._given.values())

    def came(self, outcome: wire.Outcome) -> None:
        """The worker says what became of one; what it says of others is ignored."""
        if outcome.id in self._given:
            control = self._given[outcome.id][0]
            if control.action == "hold" and outcome.outcome == "held":
                self._hold = control
            elif outcome.outcome in ("released", "spoke"):
                self._hold = None
            elif outcome.outcome == "set":
                self._set = _together(self._set, control)
        self._finish(outcome.id, outcome.outcome, outcome.first_k, outcome.k, outcome.why)

    def end(self) -> None:
        """The call is over: what isn't done never will be."""
        self._over = True
        for id in list(self._given):
            self._finish(id, "call_ended")
        for task in self._on_line:
            task.cancel()

    def _start_on_line(self, control: Control) -> None:
        """What may take as long as a telephone rings."""
        if self.transport is None:
            self._finish(control.id, "refused", why="the call comes by no telephone line")
            return
        task = asyncio.create_task(self._carry_out(control, self.transport))
        self._on_line.add(task)
        task.add_done_callback(self._on_line.discard)

    async def _carry_out(self, control: Control, transport: LineWork) -> None:
        try:
            done = await transport.on_line(control)
        except Exception as error:  # the task's edge
            log.exception("a %s failed", control.action)
            self._finish(control.id, "refused", why=f"{type(error).__name__}: {error}"[:200])
        else:
            self._finish(control.id, done.outcome, why=done.why)

    def _finish(self, id: str, outcome: str, first_k: int | None = None, k: int | None = None, why: str = "") -> None:
        if id not in self._given:
            return
        control, replies = self._given.pop(id)
        now = self._now()
        last = now if k is None else k
        result = Result(id, outcome, min(now if first_k is None else first_k, last), last, why)
        self._results[id] = result
        if len(self._results) > RESULTS_KEPT:
            self._results.popitem(last=False)
        self._emit(ControlTaken(
            id, control.action, control.text, control.mute, control.by,
            datetime.fromtimestamp(control.accepted_at, UTC), outcome, result.first_k, result.k, why))
        for reply in replies:
            reply(result)


def _together(before: Control | None, control: Control) -> Control:
    if before is None or before.sampling is None or control.sampling is None:
        return control
    changed = {name: value for name, value in vars(control.sampling).items() if value is not None}
    return replace(control, sampling=replace(before.sampling, **changed))


def _for_worker(control: Control) -> wire.Control:
    assert control.action in ("speak", "hold", "say", "whisper", "release", "set", "reprime")
    return wire.Control(control.id, control.action, control.text, control.mute, control.sampling)
