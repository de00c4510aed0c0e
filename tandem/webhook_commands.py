"""`tandem webhook …`: who is told what happens in calls, by the same layer as the API."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TypeVar

from pydantic import TypeAdapter

from admin.service import Actor, NotAllowed
from admin.webhooking import Webhooking
from calls.settings import Settings
from calls.webhooks import Delivery, State, WebhookSettings
from tandem.agent_commands import meant, this_user
from tandem.call_commands import open_store
from tandem.errors import told_in_one_line
from tandem.serve import sealing_secret

_SETTINGS: TypeAdapter[WebhookSettings] = TypeAdapter(WebhookSettings)

Told = TypeVar("Told")


def add_webhook(settings: Settings, url: str, events: tuple[str, ...], description: str) -> None:
    """Make one, and print its id and the secret with which what it is told is signed; that can't be had again."""
    wanted = meant(_SETTINGS, {"url": url, "events": events, "description": description})
    made, secret = _done(settings, lambda webhooking, actor: webhooking.make(actor, wanted))
    print(f"{made.id}  {secret}")


def list_webhooks(settings: Settings) -> None:
    """A line each, the newest last."""
    for one in _done(settings, lambda webhooking, actor: webhooking.webhooks(actor)):
        state = "on" if one.enabled else f"off: {one.disabled_why}"
        told = f"  ({one.description})" if one.description else ""
        print(f"{one.id}  {one.created_at:%Y-%m-%d}  {state}  {one.url}  {','.join(one.events)}{told}")


def remove_webhook(settings: Settings, id: str) -> None:
    _done(settings, lambda webhooking, actor: webhooking.remove(actor, id))


def list_deliveries(settings: Settings, id: str, state: State | None, limit: int) -> None:
    """What it was told in the last 30 days and is to be told, a line each, the newest first."""
    found, _ = _done(settings, lambda webhooking, actor: webhooking.deliveries(actor, id, state, limit, None))
    for one in found:
        print(_line(one))


def show_delivery(settings: Settings, id: str, number: int) -> None:
    """How it was tried, and what was sent."""
    delivery, body, attempts = _done(settings, lambda webhooking, actor: webhooking.delivery(actor, id, number))
    print(_line(delivery))
    for one in attempts:
        print(f"  {_time(one.at)}  {one.status or '-'}  {one.seconds:.3f} s  {one.error}".rstrip())
    print(body)


def replay_delivery(settings: Settings, id: str, number: int) -> None:
    """The web role sends it again."""
    _done(settings, lambda webhooking, actor: webhooking.replay(actor, id, number))


def _line(one: Delivery) -> str:
    again = f"  again {_time(one.next_at)}" if one.state == "pending" and one.next_at and one.attempts else ""
    tries = f"{one.attempts} {'try' if one.attempts == 1 else 'tries'}"
    return f"{one.id:8}  {_time(one.created_at)}  {one.state:9}  {tries:8}  {one.type:15}  {one.call or '-'}{again}"


def _time(at: datetime) -> str:
    return f"{at.astimezone():%Y-%m-%d %H:%M:%S}"


def _done(settings: Settings, work: Callable[[Webhooking, Actor], Awaitable[Told]]) -> Told:
    """What the webhooks' layer says. Raises UserError."""
    secret = sealing_secret(settings, "webhooks' secrets").encode()

    async def run() -> Told:
        async with open_store(settings) as store:
            return await work(Webhooking(store, secret, settings.networks_of_webhooks), this_user())

    with told_in_one_line(NotAllowed):
        return asyncio.run(run())
