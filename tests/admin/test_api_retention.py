from __future__ import annotations

from api_client import Api

from calls.audit import Audit
from calls.store import Store


async def test_rules_are_read_and_changed_by_scope_and_the_audit_tells(api: Api, store: Store) -> None:
    assert (await api.ask("/retention")).body["version"] == 0
    rules = {"calls_days": 90, "card_numbers": True, "patterns": [{"name": "iban", "regex": "de\\d{20}"}]}
    assert (await api.put("/retention", rules, key="configures")).status == 403
    saved = await api.put("/retention", rules, key="erases")
    assert (saved.status, saved.body["version"], saved.body["by"]) == (200, 1, "erases (key)")
    assert (await api.ask("/retention")).body["rules"] == rules | {"recordings_days": None, "token_logs_days": None}
    for wrong, named in (({"calls_days": 0}, "calls_days"), ({"colour": "red"}, "colour"),
                         ({"patterns": [{"name": "x", "regex": "(["}]}, "Patterns: x"),
                         ({"patterns": [{"name": "x", "regex": "a"}] * 2}, "body")):
        answer = await api.put("/retention", wrong, key="erases")
        assert (answer.status, answer.body["error"]) == (422, "bad_request")
        assert answer.body["message"].startswith(named), answer.body
    assert [(entry.action, entry.subject) for entry in await Audit(store).newest()] == [
        ("retention changed", "version 1")]
