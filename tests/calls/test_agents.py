"""Agents, numbers, and whom a call reaches."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calls.agents import Agent, Configuration, Number, settings_agents, version_0
from calls.rules import Rule
from calls.settings import Settings
from calls.wire import Persona, SamplingSettings

SETTINGS = Settings(model="some/moshiko", rules=(Rule("answered", "hold"),))
SHOP = Agent(name="shop", model="nano", greeting="Hello.", public_key="pk_0123456789abcdefABCDEF")
NIGHT = Agent(name="night", model="nano")


def _reached(called: str, **numbers: str) -> str:
    given = tuple(Number(pattern, agent) for pattern, agent in numbers.items())
    return Configuration(agents=(SHOP, NIGHT), numbers=given).over(SETTINGS).called(called).name


def test_version_0_is_the_default_agent_for_everybody_and_the_echo() -> None:
    first = version_0(SETTINGS)
    assert first.version == 0
    for called in ("agent", "+491234", "", "echo1"):
        assert first.called(called) == Agent(name="agent", model="moshiko", rules=SETTINGS.rules)
    assert first.called("echo").model == "echo"


@pytest.mark.parametrize("changed", [{"voice": "../secret"}, {"voice": ".hidden"}, {"role": "a" * 4001}])
def test_a_voice_is_a_name_and_a_role_has_a_bound(changed: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=next(iter(changed))):
        Agent(name="front", model="nano", **changed)
    assert Agent(name="front", model="nano", role="A waiter.", voice="NATF2").persona == Persona("A waiter.", "NATF2")


def test_recording_that_the_settings_turn_off_is_off_in_version_0() -> None:
    assert not any(agent.recorded for agent in settings_agents(Settings(recording="off")))


def test_what_operators_made_comes_over_the_settings_agent_of_its_name() -> None:
    changed = Agent(name="agent", model="other")
    found = Configuration(version=3, agents=(changed, SHOP)).over(SETTINGS)
    assert found.called("nobody") == changed
    assert [agent.name for agent in found.agents] == ["agent", "echo", "shop"]
    assert found.version == 3


def test_an_exact_number_comes_before_patterns_and_of_those_the_one_that_says_most() -> None:
    numbers = {"+49*": "night", "+4930*": "shop", "+493012345": "echo"}
    assert _reached("+493012345", **numbers) == "echo"
    assert _reached("+4930999", **numbers) == "shop"
    assert _reached("+4989", **numbers) == "night"
    assert _reached("+33", **numbers) == "agent"


@pytest.mark.parametrize(("pattern", "called", "matches"), [
    ("10?", "105", True), ("10?", "1055", False), ("10?", "10", False), ("*", "", True),
    ("sales*", "SALES-berlin", True),
    ("+49 30".replace(" ", ""), "+49-(30)", True), ("a.b", "aXb", False), ("ann.smith", "ann.smith", True),
])
def test_a_pattern_stands_for_what_it_looks_like(pattern: str, called: str, matches: bool) -> None:
    assert (_reached(called, **{pattern: "shop"}) == "shop") is matches


def test_a_name_is_called_like_a_number_and_a_number_of_that_name_comes_first() -> None:
    assert _reached("night") == "night"
    assert _reached("night", night="shop") == "shop"


def test_a_number_whose_agent_is_gone_reaches_the_default_one() -> None:
    assert _reached("100", **{"100": "gone"}) == "agent"


def test_a_website_names_an_agent_by_name_by_number_or_by_its_public_key() -> None:
    found = Configuration(agents=(SHOP, NIGHT), numbers=(Number("100", "shop"),)).over(SETTINGS)
    for wanted in ("shop", "100", SHOP.public_key):
        assert found.named(wanted) == SHOP
    for wanted in ("", "nobody", "pk_" + "x" * 22, "1" * 10_000):
        assert found.named(wanted) is None


@given(st.text(max_size=120))
def test_whatever_is_called_somebody_answers(called: str) -> None:
    assert _reached(called, **{"+49*": "night", "?": "shop"}) in {"agent", "echo", "shop", "night"}


def test_greeting_and_limits_are_rules_around_its_own() -> None:
    agent = Agent(name="x", model="m", greeting="Hello.", rules=(Rule("caller_spoke", "speak"),),
                  longest_call_s=600, longest_silence_s=30)
    assert agent.in_calls == (
        Rule("answered", "say", "Hello."), Rule("caller_spoke", "speak"), Rule("silence", "hang_up", after_s=30),
        Rule("time", "hang_up", after_s=600))


@pytest.mark.parametrize(("wrong", "said"), [
    ({"name": "a b"}, "name"), ({"greeting": "  "}, "give the text"), ({"longest_call_s": 0}, "longest_call_s"),
    ({"sampling": {"text_top_k": -1}}, "text_top_k"), ({"colour": "red"}, "colour"), ({"model": ""}, "model"),
])
def test_what_cant_be_meant_is_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Agent(**({"name": "x", "model": "m"} | wrong))  # type: ignore[arg-type]


@pytest.mark.parametrize("pattern", ["", "a b", "a/b", "a@b", "x" * 101, "*1*1*"])
def test_a_pattern_that_no_caller_could_match_or_that_takes_long_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=re.escape("pattern") if pattern == "*1*1*" else "String should"):
        Number(pattern, "shop")


def test_a_snapshot_reads_as_it_was_written() -> None:
    agent = Agent(name="x", model="m", rules=(Rule("words", "say", "hm", words=("a",)),),
                  sampling=SamplingSettings(seed=2**62, pad_bias=1.5), recorded=False)
    wrote = Configuration(version=7, agents=(agent,), numbers=(Number("1", "x"),))
    assert Configuration.model_validate_json(wrote.model_dump_json()) == wrote
