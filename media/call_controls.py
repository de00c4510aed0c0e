"""One call's controls: those that its worker carries out, those that the bridge does itself; one result each."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from calls import wire
from calls.controls import Control, Result
from calls.events import ControlTaken

MOST_WITH_WORKER = 64
RESULTS_KEPT = 256  # for controls that are given twice

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
        self._over = False

    async def take(self, control: Control, reply: Reply, *, talking: bool) -> None:
        """Carry a control out; `reply` is called once, when its result is known."""
        if control.id in self._results:
            reply(self._results[control.id])
            return
        if control.id in self._given:
            self._given[control.id][1].append(reply)
            return
        self._given[control.id] = control, [reply]
        if not talking or self._over:
            self._finish(control.id, "refused", why="the call isn't talking")
        elif control.action in self._own:
            why = self._own[control.action](control)
            self._finish(control.id, "refused" if why else "done", why=why)
        elif len(self._given) > MOST_WITH_WORKER:
            self._finish(control.id, "refused", why=f"{MOST_WITH_WORKER} controls have no result yet")
        elif not await self._send(_for_worker(control)):
            self._finish(control.id, "refused", why="the worker is lost")

    async def moved(self) -> None:
        """Another worker has the call: it holds as the one before did, and takes what has no result yet; a line that
        was being said is begun again."""
        if self._hold is not None:
            await self._send(_for_worker(self._hold))
        for control, _ in list(self._given.values()):
            if control.action not in self._own and not await self._send(_for_worker(control)):
                self._finish(control.id, "refused", why="the worker is lost")

    def came(self, outcome: wire.Outcome) -> None:
        """The worker says what became of one; what it says of others is ignored."""
        if outcome.id in self._given:
            control = self._given[outcome.id][0]
            if control.action == "hold" and outcome.outcome == "held":
                self._hold = control
            elif outcome.outcome in ("released", "spoke"):
                self._hold = None
        self._finish(outcome.id, outcome.outcome, outcome.first_k, outcome.k, outcome.why)

    def end(self) -> None:
        """The call is over: what isn't done never will be."""
        self._over = True
        for id in list(self._given):
            self._finish(id, "call_ended")

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


def _for_worker(control: Control) -> wire.Control:
    assert control.action in ("speak", "hold", "say", "whisper", "release", "set")
    return wire.Control(control.id, control.action, control.text, control.mute, control.sampling)
