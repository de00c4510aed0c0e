"""The one layer under the API and the dashboard: no way in, and no method, forgets to ask who may."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from admin.service import ROLES, SCOPES, Actor, NotAllowed, Permission, Service, key_actor
from calls.api_keys import ApiKeys, Scope
from calls.audit import Audit
from calls.controls import Control
from calls.latencies import Wanted
from calls.operators import Role
from calls.reports import CallFilter
from calls.store import Store

NEEDS = {
    "calls": Permission.SEE, "search": Permission.SEE, "call": Permission.SEE, "running": Permission.SEE,
    "follow": Permission.SEE, "transcript": Permission.SEE, "recording": Permission.SEE, "latency": Permission.SEE,
    "latencies": Permission.SEE, "fleet": Permission.SEE, "give": Permission.ACT, "erase": Permission.ERASE,
    "keys": Permission.KEYS, "make_key": Permission.KEYS,
    "revoke_key": Permission.KEYS, "operators": Permission.OPERATORS, "make_operator": Permission.OPERATORS,
    "disable_operator": Permission.OPERATORS, "audit": Permission.AUDIT,
}
GIVEN: dict[str, Any] = {
    "wanted": CallFilter(), "limit": 10, "before": None, "words": "x", "id": "none", "kind": "csv",
    "control": Control("none", "speak"), "name": "new", "scopes": (Scope.READ,), "password": "correct horse battery",
    "role": Role.VIEWER, "chosen": Wanted(),
}


async def _tried(service: Service, method: str, actor: Actor) -> int:
    """The status with which it is refused, or 200."""
    work: Callable[..., Any] = getattr(service, method)
    wants = inspect.signature(work).parameters
    try:
        doing = work(actor, **{name: GIVEN[name] for name in wants if name in GIVEN})
        if hasattr(doing, "__aenter__"):
            async with doing:
                return 200
        await doing
    except NotAllowed as refused:
        return refused.status
    return 200


@pytest.fixture
def service(redis: Redis, store: Store) -> Service:
    return Service(redis, store)


def test_the_table_has_every_method() -> None:
    assert {name for name, _ in inspect.getmembers(Service, callable) if not name.startswith("_")} == {*NEEDS, "close"}


@pytest.mark.parametrize("permissions", [frozenset(), *ROLES.values(), *(frozenset({one}) for one in Permission)])
async def test_each_method_does_what_its_permission_allows_and_nothing_without(
        service: Service, store: Store, permissions: frozenset[Permission]) -> None:
    actor = Actor("somebody", "role", permissions)
    for method, needed in NEEDS.items():
        refused = await _tried(service, method, actor) == 403
        assert refused is (needed not in permissions), method
    if not permissions:
        assert await Audit(store).newest() == ()
        assert await ApiKeys(store).all() == ()
    await service.close()


async def test_keys_may_what_their_scopes_say_and_all_scopes_say_all(service: Service, store: Store) -> None:
    for scope, permissions in SCOPES.items():
        row, _ = await ApiKeys(store).make("dialler", (scope,))
        assert key_actor(row).permissions == permissions
        assert key_actor(row).who == "dialler (key)"
        if scope is not Scope.ADMIN:
            with pytest.raises(NotAllowed, match=r"^This key has no scope admin\.$"):
                await service.operators(key_actor(row))
    assert frozenset().union(*SCOPES.values()) == set(Permission)


async def test_nobody_gives_a_key_more_than_they_may_themselves(service: Service, store: Store) -> None:
    row, _ = await ApiKeys(store).make("makes keys", (Scope.ADMIN, Scope.READ))
    made, _ = await service.make_key(key_actor(row), "reads", (Scope.READ,))
    assert made.scopes == (Scope.READ,)
    with pytest.raises(NotAllowed, match="no scope calls:erase to give"):
        await service.make_key(key_actor(row), "erases", (Scope.READ, Scope.ERASE))


def test_each_role_may_what_the_one_below_may_and_more() -> None:
    assert ROLES[Role.VIEWER] < ROLES[Role.OPERATOR] < ROLES[Role.ADMIN] == set(Permission)
