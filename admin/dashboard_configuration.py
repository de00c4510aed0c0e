"""The dashboard's pages of who answers calls, how they come and go, how long they are kept: agents, numbers, telephony,
retention."""

from __future__ import annotations

import json
import secrets
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import TypeAdapter

from admin.configuring import Configuring
from admin.messages import Form, parsed
from admin.retaining import Retaining
from admin.service import NotAllowed, Permission
from admin.sign_in import SignIn, Visitor
from admin.telephoning import Telephoning
from calls.agents import AGENT, NUMBER, Agent
from calls.dialling import DIAL, Dial
from calls.retention import RETENTION, Retention
from calls.rules import Rule
from calls.telephony import TELEPHONY, Telephony

FORM_BYTES = 1024 * 1024  # of a document, percent-encoded
SAMPLING = (("text_temperature", "Text temperature"), ("text_top_k", "Text top-k"),
            ("audio_temperature", "Sound temperature"), ("audio_top_k", "Sound top-k"), ("pad_bias", "PAD bias"),
            ("repetition_penalty", "Repetition penalty"))
DAYS = {"calls_days": "Calls, with all of them", "recordings_days": "Recordings", "token_logs_days": "Token logs"}
BAN_REASONS = {"flood": "too many requests", "scanner": "a scanner", "passwords": "wrong passwords",
               "unacknowledged": "calls never acknowledged", "malformed": "messages that aren't SIP"}
_ADDRESS = TypeAdapter(IPv4Address)
_RULES: TypeAdapter[tuple[Rule, ...]] = TypeAdapter(tuple[Rule, ...])


class ConfigurationPages:
    """The routes' work."""

    def __init__(self, configuring: Configuring, telephoning: Telephoning, retaining: Retaining, sign_in: SignIn
                 ) -> None:
        self._configuring, self._telephoning, self._retaining = configuring, telephoning, retaining
        self._sign_in = sign_in

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/admin")
        answer: Callable[..., Awaitable[Response]]
        for path, answer in (
                ("/agents", self._agents), ("/agents/{name}", self._agent), ("/telephony", self._telephony),
                ("/retention", self._retention)):
            router.add_api_route(path, answer, methods=["GET"], response_class=Response)
        for path, answer in (
                ("/agents", self._new_agent), ("/agents/{name}", self._put_agent),
                ("/agents/{name}/public-key", self._new_public_key), ("/agents/{name}/remove", self._remove_agent),
                ("/numbers", self._put_number), ("/numbers/remove", self._remove_number),
                ("/telephony", self._save_telephony), ("/telephony/calls", self._place),
                ("/telephony/bans/lift", self._lift_ban),
                ("/retention", self._save_retention)):
            router.add_api_route(path, answer, methods=["POST"], response_class=Response)
        return router

    # agents and numbers

    async def _agents(self, request: Request) -> Response:
        return await self._agents_page(await self._sign_in.visitor(request))

    async def _agents_page(self, visitor: Visitor, refused: NotAllowed | None = None, number: tuple[str, str] = ("", "")
                           ) -> Response:
        found = await self._configuring.configuration(visitor.actor)
        return visitor.page("agents.html", "Agents", refused=refused, found=found, number=number,
                            numbers=sorted(found.numbers, key=lambda each: each.rank),
                            may=visitor.actor.may(Permission.CONFIGURE),
                            is_of_settings=self._configuring.is_of_settings)

    async def _new_agent(self, request: Request) -> Response:
        """Made with what it needs; the rest is on its page."""
        visitor, form = await self._posted(request)
        name = form.text("name").strip()
        try:
            if name in (await self._configuring.configuration(visitor.actor)).by_name:
                raise NotAllowed(409, "conflict", f"There is an agent {name} already.")
            await self._configuring.put_agent(visitor.actor, parsed(AGENT, {"name": name, "model": form.text("model")}))
        except NotAllowed as refused:
            return await self._agents_page(visitor, refused)
        return RedirectResponse(f"/admin/agents/{quote(name)}", 303)

    async def _agent(self, request: Request, name: str) -> Response:
        visitor = await self._sign_in.visitor(request)
        return self._agent_page(visitor, await self._configuring.agent(visitor.actor, name))

    def _agent_page(self, visitor: Visitor, agent: Agent, refused: NotAllowed | None = None,
                    typed: dict[str, str] | None = None) -> Response:
        """`typed`: what was sent and isn't taken, so that it can be mended."""
        return visitor.page("agent.html", agent.name, here="Agents", refused=refused, agent=agent,
                            fields=typed or _fields(agent), sampling=SAMPLING,
                            of_settings=self._configuring.is_of_settings(agent),
                            may=visitor.actor.may(Permission.CONFIGURE))

    async def _put_agent(self, request: Request, name: str) -> Response:
        visitor, form = await self._posted(request)
        agent = await self._configuring.agent(visitor.actor, name)
        try:
            await self._configuring.put_agent(visitor.actor, parsed(AGENT, _typed_agent(form, name, agent)))
        except NotAllowed as refused:
            return self._agent_page(visitor, agent, refused, {key: form.text(key) for key in _fields(agent)})
        return RedirectResponse("/admin/agents", 303)

    async def _new_public_key(self, request: Request, name: str) -> Response:
        visitor, _ = await self._posted(request)
        await self._configuring.new_public_key(visitor.actor, name)
        return RedirectResponse(f"/admin/agents/{quote(name)}", 303)

    async def _remove_agent(self, request: Request, name: str) -> Response:
        visitor, _ = await self._posted(request)
        agent = await self._configuring.agent(visitor.actor, name)
        try:
            await self._configuring.remove_agent(visitor.actor, name)
        except NotAllowed as refused:
            return self._agent_page(visitor, agent, refused)
        return RedirectResponse("/admin/agents", 303)

    async def _put_number(self, request: Request) -> Response:
        visitor, form = await self._posted(request)
        pattern, agent = form.text("pattern").strip(), form.text("agent")
        try:
            await self._configuring.put_number(visitor.actor, parsed(NUMBER, {"pattern": pattern, "agent": agent}))
        except NotAllowed as refused:
            return await self._agents_page(visitor, refused, (pattern, agent))
        return RedirectResponse("/admin/agents", 303)

    async def _remove_number(self, request: Request) -> Response:
        visitor, form = await self._posted(request)
        await self._configuring.remove_number(visitor.actor, form.text("pattern"))
        return RedirectResponse("/admin/agents", 303)

    # the telephone

    async def _telephony(self, request: Request) -> Response:
        return await self._telephony_page(await self._sign_in.visitor(request))

    async def _telephony_page(self, visitor: Visitor, refused: NotAllowed | None = None, typed: str | None = None,
                              dial: Dial | None = None) -> Response:
        actor, newest = visitor.actor, await self._telephoning.newest(visitor.actor)
        kept = json.dumps(TELEPHONY.dump_python(newest.document, mode="json"), indent=2)
        agents = (await self._configuring.configuration(actor)).agents
        return visitor.page("telephony.html", "Telephony", refused=refused, version=newest, agents=agents, dial=dial,
                            once=secrets.token_urlsafe(12),
                            document=kept if typed is None else typed, trunks=await self._telephoning.trunks(actor),
                            edges=await self._telephoning.bans(actor), ban_reasons=BAN_REASONS,
                            may=actor.may(Permission.CONFIGURE), acts=actor.may(Permission.ACT))

    async def _save_telephony(self, request: Request) -> Response:
        visitor, form = await self._posted(request)
        typed, version = form.text("document"), form.text("version")
        try:
            document: Telephony = parsed(TELEPHONY, _json(typed, "The document"))
            await self._telephoning.save(visitor.actor, document, int(version) if version.isdecimal() else None)
        except NotAllowed as refused:
            return await self._telephony_page(visitor, refused, typed)
        return RedirectResponse("/admin/telephony", 303)

    async def _place(self, request: Request) -> Response:
        """A call of ours; the live page shows it."""
        visitor, form = await self._posted(request, Permission.ACT)
        dial = None
        try:
            dial = parsed(DIAL, {"to": form.text("to").strip(), "agent": form.text("agent"), "by": visitor.actor.name})
            answer = await self._telephoning.place(visitor.actor, dial, form.text("once"))
        except NotAllowed as refused:
            return await self._telephony_page(visitor, refused, dial=dial)
        return RedirectResponse(f"/admin#{answer.call}", 303)

    async def _lift_ban(self, request: Request) -> Response:
        visitor, form = await self._posted(request)
        try:
            address: IPv4Address = parsed(_ADDRESS, form.text("address"))
            await self._telephoning.lift_ban(visitor.actor, str(address))
        except NotAllowed as refused:
            return await self._telephony_page(visitor, refused)
        return RedirectResponse("/admin/telephony#bans", 303)

    # how long calls are kept

    async def _retention(self, request: Request) -> Response:
        visitor = await self._sign_in.visitor(request)
        rules = (await self._retaining.rules(visitor.actor)).rules
        return await self._retention_page(visitor, {
            **{name: str(getattr(rules, name) or "") for name in DAYS},
            "card_numbers": "1" if rules.card_numbers else "",
            "patterns": "\n".join(f"{each.name}: {each.regex}" for each in rules.patterns)})

    async def _retention_page(self, visitor: Visitor, fields: dict[str, str], refused: NotAllowed | None = None
                              ) -> Response:
        return visitor.page("retention.html", "Retention", refused=refused, fields=fields, days=DAYS,
                            version=await self._retaining.rules(visitor.actor),
                            may=visitor.actor.may(Permission.ERASE))

    async def _save_retention(self, request: Request) -> Response:
        visitor, form = await self._posted(request, Permission.ERASE)
        lines = [line.partition(":") for line in form.text("patterns").splitlines() if line.strip()]
        try:
            rules: Retention = parsed(RETENTION, {
                **{name: form.text(name) or None for name in DAYS}, "card_numbers": form.text("card_numbers") == "1",
                "patterns": tuple({"name": name.strip(), "regex": regex.strip()} for name, _, regex in lines)})
            await self._retaining.save(visitor.actor, rules)
        except NotAllowed as refused:
            return await self._retention_page(
                visitor, {name: form.text(name) for name in (*DAYS, "card_numbers", "patterns")}, refused)
        return RedirectResponse("/admin/retention", 303)

    async def _posted(self, request: Request, needed: Permission = Permission.CONFIGURE) -> tuple[Visitor, Form]:
        visitor, form = await self._sign_in.posted(request, FORM_BYTES)
        visitor.actor.must(needed)
        return visitor, form


def _fields(agent: Agent) -> dict[str, str]:
    """Its settings as people read and write them."""
    plain: dict[str, Any] = AGENT.dump_python(agent, mode="json")
    rules = [{key: value for key, value in rule.items() if value not in (None, "", False, []) and (key, value) != (
        "times", 1)} for rule in plain["rules"]]
    lines = ",\n".join(f"  {json.dumps(rule, ensure_ascii=False)}" for rule in rules)
    numbers = {name: plain[name] for name in ("longest_call_s", "longest_silence_s")} | {
        name: plain["sampling"][name] for name, _ in SAMPLING}
    return {"model": agent.model, "greeting": agent.greeting, "recorded": "1" if agent.recorded else "",
            "rules": f"[\n{lines}\n]" if rules else ""} | {
        name: "" if value is None else f"{value:g}" for name, value in numbers.items()}


def _typed_agent(form: Form, name: str, before: Agent) -> dict[str, Any]:
    """As `AGENT` takes it; the seed and the public key stay. Raises NotAllowed."""
    rules = form.text("rules").strip()
    return {"name": name, "model": form.text("model"), "greeting": form.text("greeting").strip(),
            "recorded": form.text("recorded") == "1", "public_key": before.public_key,
            "rules": parsed(_RULES, _json(rules, "The rules")) if rules else (),
            "longest_call_s": form.text("longest_call_s") or None,
            "longest_silence_s": form.text("longest_silence_s") or None,
            "sampling": {"seed": before.sampling.seed} | {key: form.text(key) or None for key, _ in SAMPLING}}


def _json(text: str, what: str) -> Any:
    """Raises NotAllowed."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as wrong:
        raise NotAllowed(422, "bad_request",
                         f"{what} isn't JSON: line {wrong.lineno}, column {wrong.colno}: {wrong.msg}.") from None
    except RecursionError:
        raise NotAllowed(422, "bad_request", f"{what} is too deep.") from None
