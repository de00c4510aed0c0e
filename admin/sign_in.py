"""Signing in and out, and who is signed in: the session's cookie, and the token that each form of ours shows with it.

A form's token is made from the cookie with the role's secret, so it proves that the form is ours and of this browser.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, RedirectResponse, Response

from admin.access import Access
from admin.messages import BODY_BYTES, Form, address_of, read_form
from admin.pages import HERE, page
from admin.service import Actor, NotAllowed
from calls.operators import SESSION_S, OperatorRow

COOKIE = "tandem_session"
LOGIN_COOKIE = "tandem_login"  # of a browser in which nobody is signed in yet
LOGIN_PAGE_S = 3600
HOME = "/admin"
TICKET_S = 300  # from the password to the second factor's code
_CONTEXT, _TICKET = b"tandem form 1:", b"tandem ticket 1:"


class SignInFirst(Exception):
    """Nobody is signed in in this browser."""


@dataclass(frozen=True)
class Visitor:
    """An operator at their browser."""

    actor: Actor
    token: str
    form_token: str

    def check(self, form_token: str) -> None:
        """Raises NotAllowed for what another page has sent."""
        if not hmac.compare_digest(form_token.encode(), self.form_token.encode()):
            raise NotAllowed(403, "forbidden", "This page is too old, or not ours. Load it again.")

    def page(self, template: str, title: str, *, here: str = "", refused: NotAllowed | None = None,
             headers: Mapping[str, str] | None = None, **content: Any) -> Response:
        """A page for them; `here` is where they are in the menu, `refused` why what they did wasn't done."""
        return page(template, refused.status if refused else 200, headers, visitor=self, title=title,
                    here=here or title, fault=str(refused or ""), **content)


class SignIn:
    """Methods raise NotAllowed, StoreError and RoutingUnavailable."""

    def __init__(self, access: Access, secret: bytes) -> None:
        self._access, self._secret = access, secret

    async def visitor(self, request: Request) -> Visitor:
        """Who is at this browser; raises SignInFirst."""
        token = request.cookies.get(COOKIE, "")
        actor = await self._access.by_session(token)
        if actor is None:
            raise SignInFirst
        return Visitor(actor, token, self._form_token(token))

    async def posted(self, request: Request, most: int = BODY_BYTES) -> tuple[Visitor, Form]:
        """A form of ours, of so many bytes, and who has sent it; raises SignInFirst."""
        visitor, form = await self.visitor(request), await read_form(request, most)
        visitor.check(form.text("form_token"))
        return visitor, form

    async def by_script(self, request: Request) -> Visitor:
        """Who a script of ours asks for something that has effects; raises SignInFirst."""
        visitor = await self.visitor(request)
        visitor.check(request.headers.get("x-form-token", ""))
        return visitor

    def router(self) -> APIRouter:
        router = APIRouter()

        @router.get("/login")
        async def login(request: Request) -> Response:
            return self._form(request, request.query_params.get("next", HOME))

        @router.post("/login")
        async def enter(request: Request) -> Response:
            form = await read_form(request)
            known = self._form_token(request.cookies.get(LOGIN_COOKIE, ""))
            there, name = form.text("next"), form.text("name")
            if not hmac.compare_digest(form.text("form_token").encode(), known.encode()):
                return self._form(request, there, "This page was too old. Please try again.", name, 403)
            try:
                operator = await self._access.known(name, form.text("password"), address_of(request))
            except NotAllowed as refused:
                return self._form(request, there, str(refused), name, refused.status)
            if operator.second_factor:
                return self._code_form(there, known, self._ticket(known, operator.name))
            return await self._enter(request, operator, there)

        @router.post("/login/code")
        async def show_code(request: Request) -> Response:
            form = await read_form(request)
            known = self._form_token(request.cookies.get(LOGIN_COOKIE, ""))
            there, ticket = form.text("next"), form.text("ticket")
            name = self._named(known, ticket)
            if name is None or not hmac.compare_digest(form.text("form_token").encode(), known.encode()):
                return self._form(request, there, "That took too long. Please begin again.", status=403)
            try:
                operator = await self._access.check_code(name, form.text("code"), address_of(request))
            except NotAllowed as refused:
                return self._code_form(there, known, ticket, str(refused), refused.status)
            return await self._enter(request, operator, there)

        @router.post("/logout")
        async def leave(request: Request) -> Response:
            visitor, _ = await self.posted(request)
            await self._access.sign_out(visitor.token)
            answer = RedirectResponse("/login", 303, {"Cache-Control": "no-store"})
            answer.delete_cookie(COOKIE, "/")
            return answer

        @router.get("/login/dashboard.css")
        async def style() -> Response:
            return FileResponse(HERE / "assets" / "dashboard.css", media_type="text/css", headers={
                "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"})

        return router

    def _form(self, request: Request, there: str, fault: str = "", name: str = "", status: int = 200) -> Response:
        nonce = request.cookies.get(LOGIN_COOKIE) or secrets.token_urlsafe(32)
        answer = page("login.html", status, title="Sign in", fault=fault, name=name, next=_ours(there),
                      form_token=self._form_token(nonce))
        self._set(answer, request, LOGIN_COOKIE, nonce, "/login", LOGIN_PAGE_S)
        return answer

    def _code_form(self, there: str, form_token: str, ticket: str, fault: str = "", status: int = 200) -> Response:
        return page("code.html", status, title="Sign in", fault=fault, next=_ours(there), form_token=form_token,
                    ticket=ticket)

    async def _enter(self, request: Request, operator: OperatorRow, there: str) -> Response:
        token = await self._access.sign_in(operator, address_of(request), request.headers.get("user-agent", ""))
        answer = RedirectResponse(_ours(there), 303, {"Cache-Control": "no-store"})
        answer.delete_cookie(LOGIN_COOKIE, "/login")
        self._set(answer, request, COOKIE, token, "/", round(SESSION_S))
        return answer

    def _ticket(self, form_token: str, name: str) -> str:
        """That whoever has this login page has shown this operator's password."""
        said = f"{round(time.time()) + TICKET_S}:{name}"
        return f"{self._ticket_seal(form_token, said)}:{said}"

    def _named(self, form_token: str, ticket: str) -> str | None:
        """Whose password was shown on this login page, not long ago."""
        seal, _, said = ticket.partition(":")
        if not hmac.compare_digest(seal.encode(errors="replace"), self._ticket_seal(form_token, said).encode()):
            return None
        until, _, name = said.partition(":")
        return name if time.time() < int(until) else None

    def _ticket_seal(self, form_token: str, said: str) -> str:
        return hmac.new(self._secret, _TICKET + f"{form_token}:{said}".encode(errors="replace"),
                        hashlib.sha256).hexdigest()

    def _set(self, answer: Response, request: Request, name: str, value: str, path: str, seconds: int) -> None:
        answer.set_cookie(name, value, seconds, path=path, secure=request.url.scheme == "https", httponly=True,
                          samesite="strict")

    def _form_token(self, cookie: str) -> str:
        return hmac.new(self._secret, _CONTEXT + cookie.encode(errors="replace"), hashlib.sha256).hexdigest()


def _ours(path: str) -> str:
    """A page of the dashboard, whatever was asked for: nobody is led elsewhere."""
    plain = path == HOME or path.startswith((f"{HOME}/", f"{HOME}?"))
    return path if plain and path.isprintable() and "\\" not in path and "//" not in path else HOME
