"""`tandem webhook …`, against a real Postgres, the web role that sends, and a program that is told."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest
from redis.asyncio import Redis
from web_role import SECRET, serving
from webhook_receiver import receiving

from calls.audit import Audit
from calls.events import CallReceived, Envelope
from calls.settings import Settings
from calls.store import Store
from calls.webhooks import signed
from tandem.errors import UserError
from tandem.webhook_commands import (
    add_webhook,
    list_deliveries,
    list_webhooks,
    remove_webhook,
    replay_delivery,
    show_delivery,
)

EVENT = Envelope("call-1", "b", 1, 1, datetime(2026, 11, 30, 9, 0, tzinfo=UTC), CallReceived(
    "sip", "inbound", "sip:ann@example.org", "sip:agent@here", "ref", "b", "agent"))
URL = "https://hooks.example/tandem"


@pytest.fixture
def settings(database_url: str) -> Settings:
    return Settings(database_url=database_url, secret=SECRET.decode())


def _printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


async def test_a_program_is_told_and_told_again_by_the_command_line(
        settings: Settings, redis_url: str, redis: Redis, store: Store, database_url: str,
        capsys: pytest.CaptureFixture[str]) -> None:
    fails = b"HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n"
    async with (serving(redis_url, database_url, webhook_networks="127.0.0.0/8"), receiving(fails) as receiver,
                asyncio.timeout(30)):
        await asyncio.to_thread(add_webhook, settings, receiver.url, ("call.received",), "ledger")
        [line] = _printed(capsys)
        id, secret = line.split()
        await store.apply([EVENT])
        first = await receiver.next()
        each = {name: first.headers[f"webhook-{name}"] for name in ("id", "timestamp", "signature")}
        at = datetime.fromtimestamp(int(each["timestamp"]), UTC)
        assert signed(each["id"], at, first.body.decode(), (secret,))["webhook-signature"] == each["signature"]
        while not (lines := _printed(capsys)):
            await asyncio.to_thread(list_deliveries, settings, id, "failed", 20)
        [line] = lines
        assert "1 try" in line
        assert line.endswith("call.received    call-1")
        number = int(line.split()[0])

        await asyncio.to_thread(replay_delivery, settings, id, number)
        assert (await receiver.next()).headers["webhook-id"] == first.headers["webhook-id"]
        while not _printed(capsys):
            await asyncio.to_thread(list_deliveries, settings, id, "delivered", 20)
        await asyncio.to_thread(show_delivery, settings, id, number)
        told, *tried, body = _printed(capsys)
        assert "delivered" in told
        assert [line.split()[2] for line in tried] == ["410", "204"]
        assert body == first.body.decode()

        await asyncio.to_thread(list_webhooks, settings)
        [line] = _printed(capsys)
        assert line.startswith(id)
        assert line.endswith(f"on  {receiver.url}  call.received  (ledger)")
        assert secret not in line
        await asyncio.to_thread(remove_webhook, settings, id)
        await asyncio.to_thread(list_webhooks, settings)
        assert _printed(capsys) == []
    entries = await Audit(store).newest()
    assert [(entry.action, entry.subject) for entry in reversed(entries)] == [
        ("webhook made", id), ("delivery sent again", id), ("webhook removed", id)]
    assert all(entry.who.endswith("(command line)") for entry in entries)


@pytest.mark.usefixtures("store")
def test_what_isnt_there_or_isnt_meant_is_told_in_one_line(settings: Settings, database_url: str) -> None:
    for work, said in (
            (lambda: add_webhook(settings, "ftp://hooks.example", ("call.ended",), ""), "url: "),
            (lambda: add_webhook(settings, "https://ann:x@hooks.example", ("call.ended",), ""), "Url: has neither"),
            (lambda: add_webhook(settings, URL, ("call.everything",), ""), "events.0: .*call.ended"),
            (lambda: add_webhook(settings, URL, (), ""), "events: "),
            (lambda: remove_webhook(settings, "none"), "There is no such webhook"),
            (lambda: list_deliveries(settings, "none", None, 20), "There is no such webhook"),
            (lambda: show_delivery(settings, "none", 1), "There is no such delivery"),
            (lambda: replay_delivery(settings, "none", 1), "There is no such delivery"),
            (lambda: list_webhooks(Settings(database_url=database_url)), "TANDEM_SECRET: webhooks' secrets")):
        with pytest.raises(UserError, match=said) as refused:
            work()
        assert "\n" not in str(refused.value)
