"""The API's document is true: whatever is asked of it, nothing breaks, and each answer is one that it tells of."""

from __future__ import annotations

import asyncio
import json
import re
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import schemathesis
from api_client import Api
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from calls.events import (
    CallAnswered,
    CallEnded,
    CallMeasured,
    CallReceived,
    ControlTaken,
    EndReason,
    Envelope,
    LineNoted,
    Measure,
    RecordingKept,
    Speaker,
    UtteranceSpoken,
    Word,
)
from calls.store import Store

AT = datetime(2026, 11, 30, 9, 0, tzinfo=UTC)
EXAMPLES = 12  # of each endpoint
ENDLESS = "/api/v1/live/events"
CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]  # 500 is none that is told of


async def document(api: Api) -> dict[str, Any]:
    request = urllib.request.Request(f"http://127.0.0.1:{api.port}/api/openapi.json",
                                     headers={"Authorization": f"Bearer {api.keys['reads']}"})

    def read() -> dict[str, Any]:
        with urllib.request.urlopen(request, timeout=10) as came:
            return dict(json.load(came))

    return await asyncio.to_thread(read)


async def known(api: Api, store: Store, folder: Path) -> dict[str, Any]:
    """Something of each kind, and the names by which paths lead to it."""
    sound = folder / "call-1.flac"
    sound.write_bytes(b"sound")
    await store.apply([Envelope("call-1", "b", 1, number, AT, event) for number, event in enumerate((
        CallReceived("sip", "outbound", "sip:ann@example.org", "sip:bob@there", "r", "b", "agent"),
        CallAnswered("PCMU"), UtteranceSpoken(Speaker.CALLER, 1, 2, (Word("hello", 1, 2, 0.1, 0.2),), True),
        ControlTaken("c", "say", "hi", False, "ann", AT, "said", 1, 2, ""), LineNoted("key", "remote", "5", "info", 3),
        CallMeasured((Measure("whole", 1, 0.5, 0.5, 0.5, None),)), RecordingKept(str(sound), "flac", 1.0, 5, 0.0, 0.0),
        CallEnded(EndReason.CALLER_HUNG_UP, "remote", 200, "", 1, 0, 0, 0)), 1)])
    await api.put("/agents/night", {"model": "nano", "greeting": "Hello."}, key="all")
    await api.put("/numbers/100", {"agent": "night"}, key="all")
    hook = (await api.ask("/webhooks", {"url": "https://127.0.0.1/", "events": ["call.ended"]}, key="all")).body["id"]
    delivery = (await api.ask(f"/webhooks/{hook}/test", {}, key="all")).body["delivery"]
    return {"call": "call-1", "kind": "vtt", "name": "night", "pattern": "100", "id": hook, "number": delivery}


@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisDeprecationWarning")  # schemathesis's own draws
async def test_whatever_is_asked_nothing_breaks_and_each_answer_is_one_that_is_told_of(
        api: Api, store: Store, tmp_path: Path) -> None:
    there = await known(api, store, tmp_path)
    told = await document(api)
    schema = schemathesis.openapi.from_dict(told)
    authorization = {"Authorization": f"Bearer {api.keys['all']}"}
    answered: dict[str, set[int]] = {}

    def ask_all() -> None:
        for result in schema.get_all_operations():
            if (operation := result.ok()).path != ENDLESS:
                _ask(operation)

    def _ask(operation: Any) -> None:
        statuses = answered.setdefault(f"{operation.method.upper()} {operation.path}", set())

        @hypothesis.settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
                             suppress_health_check=list(hypothesis.HealthCheck))
        @hypothesis.given(case=operation.as_strategy(), of_ours=st.booleans())
        def ask(case: Any, of_ours: bool) -> None:
            if of_ours and case.method != "DELETE":
                case.path_parameters |= {name: there.get(name, value) for name, value in case.path_parameters.items()}
            answer = case.call_and_validate(base_url=f"http://127.0.0.1:{api.port}", headers=authorization,
                                            checks=CHECKS)
            statuses.add(answer.status_code)
            assert answer.status_code != 503 or operation.label == "POST /api/v1/calls"  # no SIP process is there

        ask()

    await asyncio.to_thread(ask_all)
    assert set(answered) == {f"{method.upper()} {path}" for path, methods in told["paths"].items() if path != ENDLESS
                             for method in methods}
    for operation, statuses in answered.items():
        assert not operation.startswith("GET") or statuses & {200, 206, 404}, operation


async def test_the_document_is_for_who_has_a_key_and_tells_of_each_endpoint_of_the_guide(api: Api) -> None:
    told = await document(api)
    for path, methods in told["paths"].items():
        for method, operation in methods.items():
            assert operation["security"] == [{"key": []}], (method, path)
            assert {"401", "403", "422", "429", "503"} <= set(operation["responses"]), (method, path)
    guide = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    named = {(method, re.sub(r"[A-Z]{2,}|\bN\b", "{}", path).partition("?")[0])
             for method, path in re.findall(r"`(GET|PUT|POST|DELETE) (/[^ `]+)", guide)}
    there = {(method.upper(), re.sub(r"\{\w+\}", "{}", path.removeprefix("/api/v1")))
             for path, methods in told["paths"].items() for method in methods}
    by_hand = {("GET", "/calls/{}/live"), ("GET", "/calls/{}/transcript.csv")}  # a WebSocket; one of its kinds
    assert named - by_hand <= there, named - by_hand - there
    assert {path.split("/")[1] for _, path in there} == {path.split("/")[1] for _, path in named}
