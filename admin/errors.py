"""What routes raise, as answers: one shape for programs, a page for people."""

from __future__ import annotations

import contextlib
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse, Response
from starlette.exceptions import HTTPException

from admin.messages import as_json
from admin.pages import is_navigation, page
from admin.service import NotAllowed
from admin.sign_in import SignIn, SignInFirst
from calls.routing import RoutingUnavailable
from calls.store import Refused, StoreError

ROUTER = {404: ("not_found", "There is nothing here."), 405: ("bad_request", "It can't be asked so: see Allow.")}
UNAVAILABLE = "This can't be had just now."


def answer_errors(app: FastAPI, sign_in: SignIn) -> None:
    @app.exception_handler(NotAllowed)
    async def not_allowed(request: Request, refused: NotAllowed) -> Response:
        headers = {} if refused.retry_after_s is None else {"Retry-After": str(max(1, round(refused.retry_after_s)))}
        if is_navigation(request):
            return await shown(request, refused, headers)
        if refused.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return as_json({"error": refused.code, "message": str(refused)}, refused.status, headers)

    async def shown(request: Request, refused: NotAllowed, headers: dict[str, str]) -> Response:
        """A page: within the frame for somebody signed in, with a way to sign in for others."""
        visitor = None
        if refused.status != 503:  # what is away would be looked for once more
            with contextlib.suppress(SignInFirst, StoreError):
                visitor = await sign_in.visitor(request)
        title = "Not found" if refused.status == 404 else "This didn't work"
        return page("error.html", refused.status, headers, visitor=visitor, title=title, said=str(refused),
                    login=login_to(request) if request.method == "GET" else "/login")

    @app.exception_handler(SignInFirst)
    async def sign_in_first(request: Request, _: SignInFirst) -> Response:
        if is_navigation(request) and request.method == "GET":
            return RedirectResponse(login_to(request), 303, {"Cache-Control": "no-store"})
        return as_json({"error": "unauthorized", "message": "Sign in first."}, 401)

    async def away(request: Request, _: Exception) -> Response:
        return await not_allowed(request, NotAllowed(503, "unavailable", UNAVAILABLE, retry_after_s=5))

    for kind in (StoreError, RoutingUnavailable):
        app.add_exception_handler(kind, away)

    @app.exception_handler(Refused)
    async def cant_be_kept(request: Request, _: Refused) -> Response:
        return await not_allowed(request, NotAllowed(422, "bad_request", "The request holds what can't be kept."))

    @app.exception_handler(HTTPException)
    async def by_router(request: Request, error: HTTPException) -> Response:
        code, message = ROUTER.get(error.status_code, ("bad_request", str(error.detail)))
        answer = await not_allowed(request, NotAllowed(error.status_code, code, message))
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"][1:])) or "request"
        return await not_allowed(request, NotAllowed(422, "bad_request", f"{where}: {first['msg']}."))


def login_to(request: Request) -> str:
    """The sign-in, which leads back here."""
    there = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return f"/login?next={quote(there, safe='')}"
