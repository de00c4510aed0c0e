"""`tandem call speak`, `hold`, `say`, …: an operator's hand on a running call, from the command line."""

from __future__ import annotations

import asyncio
import getpass

from calls.connect import open_redis
from calls.controls import Control, ControlRefused, Controls, NoSuchCall, Result
from calls.routing import RoutingUnavailable
from calls.settings import Settings
from tandem.embedded import EmbeddedError, running_redis
from tandem.errors import UserError, told_in_one_line

FRAME_S = 0.08
PATIENCE_S = 60.0  # for a long line to be said


def give(settings: Settings, control: Control) -> None:
    """Give a control, and print what became of it. Raises UserError where nothing did."""
    url = redis_url(settings)
    with told_in_one_line(ControlRefused, NoSuchCall, RoutingUnavailable):
        result = asyncio.run(_given(url, control))
    if result is None:
        raise UserError(f"nothing is known of it after {PATIENCE_S:g} s")
    if result.outcome in ("refused", "unsupported", "call_ended", "failed", "busy", "no_answer"):
        raise UserError(f"{result.outcome}{f': {result.why}' if result.why else ''}")
    print(f"{result.outcome}  frames {result.first_k} to {result.k}  {FRAME_S * result.first_k:.2f} s into the call")


def redis_url(settings: Settings) -> str:
    """The settings' Redis, or that of the Tandem that runs here. Raises UserError."""
    with told_in_one_line(EmbeddedError):
        return settings.redis_url.get_secret_value() if settings.redis_url else running_redis(settings.data_dir)


def whoever_this_is() -> str:
    """Whose hand it was, as the call's timeline tells it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "command line"


async def _given(url: str, control: Control) -> Result | None:
    async with open_redis(url) as redis:
        controls = Controls(redis)
        await controls.give(control)
        return await controls.result(control, PATIENCE_S)
