"""Keys, operators and the audit over the API."""

from __future__ import annotations

from api_client import Api

from calls.operators import Operators
from calls.store import Store

PASSWORD = "correct horse battery"


async def test_a_key_is_made_serves_and_is_revoked(api: Api) -> None:
    made = await api.ask("/keys", {"name": "reader", "scopes": ["calls:read"]}, key="all")
    assert (made.status, made.body["scopes"]) == (201, ["calls:read"])
    assert (await api.ask("/calls", key=made.body["key"])).status == 200
    listed = (await api.ask("/keys", key="all")).body["keys"]
    assert [(key["name"], key["revoked_at"]) for key in listed if key["id"] == made.body["id"]] == [("reader", None)]
    assert made.body["key"] not in str(listed)
    assert (await api.delete(f"/keys/{made.body['id']}", key="all")).status == 204
    assert (await api.ask("/calls", key=made.body["key"])).status == 401
    assert (await api.delete(f"/keys/{made.body['id']}", key="all")).status == 404


async def test_an_operator_is_made_and_disabled(api: Api, store: Store) -> None:
    made = await api.ask("/operators", {"name": "ann", "password": PASSWORD, "role": "viewer"}, key="all")
    assert (made.status, made.body) == (201, {"name": "ann", "role": "viewer"})
    assert await Operators(store).known("ann", PASSWORD) is not None
    assert [one["name"] for one in (await api.ask("/operators", key="all")).body["operators"]] == ["ann"]
    assert (await api.delete("/operators/ann", key="all")).status == 204
    assert await Operators(store).known("ann", PASSWORD) is None


REFUSED: list[tuple[str, dict[str, object], str]] = [
    ("/keys", {"name": "x", "scopes": ["all"]}, "scopes.0"), ("/keys", {"name": "x", "scopes": []}, "scopes"),
    ("/keys", {"scopes": ["admin"]}, "name"),
    ("/operators", {"name": "ann", "password": "short", "role": "viewer"}, "password"),
    ("/operators", {"name": "ann", "password": PASSWORD, "role": "king"}, "role"),
    ("/operators", {"name": " ann", "password": PASSWORD, "role": "viewer"}, "An operator's name"),
]


async def test_what_cant_be_made_is_named(api: Api) -> None:
    for path, body, named in REFUSED:
        answer = await api.ask(path, body, key="all")
        assert (answer.status, answer.body["error"]) == (422, "bad_request"), body
        assert answer.body["message"].startswith(named)


async def test_the_audit_is_read_page_by_page(api: Api) -> None:
    for name in ("a", "b", "c"):
        await api.ask("/keys", {"name": name, "scopes": ["calls:read"]}, key="all")
    first = (await api.ask("/audit?limit=2", key="all")).body
    rest = (await api.ask(f"/audit?limit=2&cursor={first['next']}", key="all")).body
    assert [entry["detail"] for page in (first, rest) for entry in page["entries"]] == [
        "c: calls:read", "b: calls:read", "a: calls:read"]
    assert rest["next"] is None


async def test_without_the_scope_nothing_of_it_is_told_or_done(api: Api, store: Store) -> None:
    for path in ("/keys", "/operators", "/audit"):
        for key in ("both", "configures", "erases"):
            assert (await api.ask(path, key=key)).status == 403
    eve = {"name": "eve", "password": PASSWORD, "role": "admin"}
    assert (await api.ask("/operators", eve, key="both")).status == 403
    assert (await api.delete("/operators/ann", key="both")).status == 403
    assert await Operators(store).all() == ()
