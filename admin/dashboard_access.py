"""The dashboard's pages about who may: the operator's own account, and for admins keys, operators, audit."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import segno
from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from markupsafe import Markup

from admin.accounts import Accounts
from admin.messages import Form
from admin.service import NotAllowed, Permission, Service
from admin.sign_in import SignIn, Visitor
from calls import totp
from calls.api_keys import KeyRow, Scope
from calls.operators import LONGEST, SHORTEST, Role, session_id

ROWS = 50  # of a page
ACCOUNT = "/admin/account"


class AccessPages:
    """The routes' work."""

    def __init__(self, service: Service, accounts: Accounts, sign_in: SignIn) -> None:
        self._service, self._accounts, self._sign_in = service, accounts, sign_in

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/admin")
        answer: Callable[..., Awaitable[Response]]
        for path, answer in (("/keys", self._keys), ("/operators", self._operators), ("/audit", self._audit),
                             ("/account", self._account)):
            router.add_api_route(path, answer, methods=["GET"], response_class=Response)
        for path, answer in (
                ("/keys", self._make_key), ("/keys/revoke", self._revoke_key), ("/operators", self._make_operator),
                ("/operators/disable", self._disable_operator),
                ("/operators/second-factor/reset", self._reset_second_factor),
                ("/account/password", self._change_password), ("/account/sessions/end", self._end_sessions),
                ("/account/second-factor", self._begin_second_factor),
                ("/account/second-factor/confirm", self._confirm_second_factor),
                ("/account/second-factor/remove", self._remove_second_factor),
                ("/account/recovery-codes", self._new_recovery_codes)):
            router.add_api_route(path, answer, methods=["POST"], response_class=Response)
        return router

    # one's own

    async def _account(self, request: Request) -> Response:
        return await self._account_page(await self._sign_in.visitor(request))

    async def _change_password(self, request: Request) -> Response:
        visitor, form = await self._sign_in.posted(request)
        try:
            if form.text("new") != form.text("again"):
                raise NotAllowed(422, "bad_request", "The new password isn't the same twice.")
            await self._accounts.change_password(visitor.actor, form.text("current"), form.text("new"), visitor.token)
        except NotAllowed as refused:
            return await self._account_page(visitor, refused)
        return await self._account_page(visitor, done="Your password is changed; you are signed in only here.")

    async def _end_sessions(self, request: Request) -> Response:
        visitor, form = await self._sign_in.posted(request)
        await self._accounts.end_sessions(visitor.actor, id=form.text("session"), token=visitor.token)
        return RedirectResponse(ACCOUNT, 303)

    async def _begin_second_factor(self, request: Request) -> Response:
        visitor, form = await self._sign_in.posted(request)
        try:
            secret = await self._accounts.begin_second_factor(visitor.actor, form.text("password"))
        except NotAllowed as refused:
            return await self._account_page(visitor, refused)
        return _enrolment(visitor, secret)

    async def _confirm_second_factor(self, request: Request) -> Response:
        visitor, form = await self._sign_in.posted(request)
        try:
            codes = await self._accounts.confirm_second_factor(visitor.actor, form.text("code"))
        except NotAllowed as refused:
            secret = await self._accounts.begun_second_factor(visitor.actor)
            return await self._account_page(visitor, refused) if secret is None else \
                _enrolment(visitor, secret, refused)
        return await self._account_page(visitor, codes=codes)

    async def _remove_second_factor(self, request: Request) -> Response:
        visitor, form = await self._sign_in.posted(request)
        try:
            await self._accounts.remove_second_factor(visitor.actor, form.text("password"))
        except NotAllowed as refused:
            return await self._account_page(visitor, refused)
        return await self._account_page(visitor, done="Your second factor is off.")

    async def _new_recovery_codes(self, request: Request) -> Response:
        visitor, form = await self._sign_in.posted(request)
        try:
            codes = await self._accounts.new_recovery_codes(visitor.actor, form.text("password"))
        except NotAllowed as refused:
            return await self._account_page(visitor, refused)
        return await self._account_page(visitor, codes=codes)

    async def _account_page(self, visitor: Visitor, refused: NotAllowed | None = None, done: str = "",
                            codes: tuple[str, ...] = ()) -> Response:
        return visitor.page("account.html", "Account", refused=refused, done=done, codes=codes,
                            account=await self._accounts.account(visitor.actor), this=session_id(visitor.token),
                            shortest=SHORTEST, longest=LONGEST)

    # who may

    async def _keys(self, request: Request) -> Response:
        return await self._keys_page(await self._sign_in.visitor(request))

    async def _make_key(self, request: Request) -> Response:
        visitor, form = await self._sign_in.posted(request)
        scopes = tuple(scope for scope in Scope if scope.value in form.all("scope"))
        try:
            made = await self._service.make_key(visitor.actor, form.text("name").strip(), scopes)
        except NotAllowed as refused:
            return await self._keys_page(visitor, refused)
        return await self._keys_page(visitor, made=made)

    async def _revoke_key(self, request: Request) -> Response:
        visitor, form = await self._sign_in.posted(request)
        await self._service.revoke_key(visitor.actor, form.text("id"))
        return RedirectResponse("/admin/keys", 303)

    async def _keys_page(self, visitor: Visitor, refused: NotAllowed | None = None,
                         made: tuple[KeyRow, str] | None = None) -> Response:
        return visitor.page("keys.html", "Keys", refused=refused, keys=await self._service.keys(visitor.actor),
                     scopes=tuple(Scope), made=made)

    async def _operators(self, request: Request) -> Response:
        return await self._operators_page(await self._sign_in.visitor(request))

    async def _make_operator(self, request: Request) -> Response:
        visitor, form = await self._sign_in.posted(request)
        visitor.actor.must(Permission.OPERATORS)
        role = _role(form)
        try:
            await self._service.make_operator(visitor.actor, form.text("name").strip(), form.text("password"), role)
        except NotAllowed as refused:
            return await self._operators_page(visitor, refused, form.text("name"))
        return RedirectResponse("/admin/operators", 303)

    async def _disable_operator(self, request: Request) -> Response:
        visitor, form = await self._sign_in.posted(request)
        visitor.actor.must(Permission.OPERATORS)
        try:
            await self._service.disable_operator(visitor.actor, form.text("name"))
        except NotAllowed as refused:
            return await self._operators_page(visitor, refused)
        return RedirectResponse("/admin/operators", 303)

    async def _reset_second_factor(self, request: Request) -> Response:
        visitor, form = await self._sign_in.posted(request)
        await self._accounts.reset_second_factor(visitor.actor, form.text("name"))
        return RedirectResponse("/admin/operators", 303)

    async def _operators_page(self, visitor: Visitor, refused: NotAllowed | None = None, name: str = "") -> Response:
        return visitor.page("operators.html", "Operators", refused=refused, name=name, roles=tuple(Role),
                     operators=await self._service.operators(visitor.actor), shortest=SHORTEST, longest=LONGEST)

    async def _audit(self, request: Request) -> Response:
        visitor, before = await self._sign_in.visitor(request), request.query_params.get("before", "")
        entries = await self._service.audit(visitor.actor, ROWS, _number(before))
        return visitor.page("audit.html", "Audit", entries=entries, paged=bool(before),
                     older=entries[-1].id if len(entries) == ROWS else None)


def _enrolment(visitor: Visitor, secret: str, refused: NotAllowed | None = None) -> Response:
    """What a phone scans, or a person types."""
    drawn = segno.make(totp.address(secret, visitor.actor.name), error="m").svg_inline(
        border=4, dark="#000", light="#fff", omitsize=True, svgclass="qr", lineclass=None)
    grouped = " ".join(secret[at:at + 4] for at in range(0, len(secret), 4))
    return visitor.page("second_factor.html", "Your second factor", here="Account", refused=refused,
                        drawn=Markup(drawn), secret=grouped)  # noqa: S704 - drawn by us, the name's letters as dots


def _role(form: Form) -> Role:
    try:
        return Role(form.text("role"))
    except ValueError:
        raise NotAllowed(422, "bad_request", f"role: give one of {', '.join(Role)}.") from None


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() and len(text) < 18 else None
