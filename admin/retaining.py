"""How long calls are kept and what is redacted in them, as operators and programs have it.

A part of the layer of admin/service.py: each method asks for an Actor and checks it first; changes go into the audit.
"""

from __future__ import annotations

import json

from admin.service import Actor, NotAllowed, Permission
from calls.audit import Audit
from calls.retention import RETENTION, Retention
from calls.retention_store import RetentionRefused, RetentionStore, Version
from calls.store import Store


class Retaining:
    """Methods raise NotAllowed and StoreError."""

    def __init__(self, store: Store) -> None:
        self._rules, self._audit = RetentionStore(store), Audit(store)

    async def rules(self, actor: Actor) -> Version:
        actor.must(Permission.SEE)
        return await self._rules.newest()

    async def save(self, actor: Actor, rules: Retention) -> Version:
        """In place of those before; the persister carries them out from its next minute on."""
        actor.must(Permission.ERASE)
        try:
            saved = await self._rules.save(rules, actor.who)
        except RetentionRefused as refused:
            said = str(refused)
            raise NotAllowed(422, "bad_request", f"{said[:1].upper()}{said[1:]}.") from None
        await self._audit.note(actor.who, "retention changed", f"version {saved.number}",
                               json.dumps(RETENTION.dump_python(rules, mode="json")))
        return saved
