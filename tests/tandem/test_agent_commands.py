"""Agents and numbers by the command line: kept, published, in the audit, refused in one line."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from redis.asyncio import Redis
from typer.testing import CliRunner

from calls.audit import Audit
from calls.configuration import published
from calls.store import Store
from tandem.cli import app
from tandem.errors import UserError


@pytest.fixture
def environment(redis_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TANDEM_REDIS_URL", redis_url)
    monkeypatch.setenv("TANDEM_DATABASE_URL", database_url)


async def _tandem(*arguments: str, said: str | None = None) -> str:
    result = await asyncio.to_thread(CliRunner().invoke, app, arguments, said, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.usefixtures("environment")
async def test_an_agent_is_made_changed_in_part_shown_and_removed_and_bridges_get_each_version(
        redis: Redis, store: Store, tmp_path: Path) -> None:
    rules = tmp_path / "rules.json"
    rules.write_text(json.dumps([{"when": "silence", "after_s": 20, "do": "say", "text": "Are you there?"}]))
    await _tandem("agent", "set", "night", "--model", "nano", "--longest-call", "600", "--rules", str(rules))
    await _tandem("agent", "set", "night", "--greeting", "Good evening.", "--text-temperature", "0.5", "--not-recorded")
    night = (await published(redis)).by_name["night"]
    assert (night.model, night.greeting, night.longest_call_s, night.recorded, night.sampling.text_temperature) == (
        "nano", "Good evening.", 600, False, 0.5)
    assert night.rules[0].text == "Are you there?"
    await _tandem("agent", "set", "night", "--longest-call", "0")
    assert (await published(redis)).by_name["night"].longest_call_s is None
    shown = await _tandem("agent", "show", "night")
    assert json.loads(shown)["greeting"] == "Good evening."
    await _tandem("agent", "put", "copy", "-", said=shown)
    assert (await published(redis)).by_name["copy"].rules == night.rules
    listed = (await _tandem("agent", "list")).splitlines()
    assert [line.split()[0] for line in listed] == ["agent", "copy", "echo", "night"]
    await _tandem("agent", "remove", "copy")
    assert "copy" not in (await published(redis)).by_name
    entries = await Audit(store).newest()
    assert entries[0].who.endswith("(command line)")
    assert [entry.action for entry in entries] == [
        "agent removed", "agent made", "agent changed", "agent changed", "agent made"]


@pytest.mark.usefixtures("environment", "store")
async def test_numbers_are_listed_as_they_are_tried(redis: Redis) -> None:
    await _tandem("number", "set", "+49*", "echo")
    await _tandem("number", "set", "+4930", "agent")
    assert [line.split() for line in (await _tandem("number", "list")).splitlines()] == [
        ["+4930", "agent"], ["+49*", "echo"]]
    await _tandem("number", "remove", "+4930")
    assert [number.pattern for number in (await published(redis)).numbers] == ["+49*"]


@pytest.mark.usefixtures("environment", "redis", "store")
@pytest.mark.parametrize(("arguments", "said"), [
    (("agent", "set", "night"), "give --model"), (("agent", "set", "a b", "--model", "nano"), "name: "),
    (("agent", "show", "night"), "no such agent"), (("agent", "remove", "agent"), "the settings' own"),
    (("agent", "put", "night", "nowhere.json"), "nowhere.json"), (("number", "set", "1", "night"), "no agent night"),
    (("number", "set", "a b", "agent"), "pattern: "), (("number", "remove", "1"), "no such number"),
])
async def test_what_cant_be_done_is_told_in_one_line(arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError, match=said) as refused:
        await _tandem(*arguments)
    assert "\n" not in str(refused.value)
