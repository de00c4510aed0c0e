"""The dashboard's pages: admin/templates, sent with a policy under which nothing runs but our own scripts."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

HERE = Path(__file__).parent
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "media-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'"),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Permissions-Policy": "microphone=(), camera=(), geolocation=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def page(template: str, status: int = 200, headers: Mapping[str, str] | None = None, **content: Any) -> Response:
    text = _TEMPLATES.get_template(template).render({"visitor": None, "here": "", "fault": ""} | content)
    return HTMLResponse(text, status, HEADERS | dict(headers or {}))


def is_navigation(request: Request) -> bool:
    """Whether somebody looks at the answer, rather than a program or a script of ours."""
    return not request.url.path.startswith(("/api/", "/metrics")) and "text/html" in request.headers.get("accept", "")


def _time(at: datetime | None) -> Markup:
    """A moment, which the viewer's browser tells in its own zone."""
    if at is None:
        return Markup("–")
    return Markup('<time datetime="{}">{}</time>').format(at.isoformat(), f"{at:%Y-%m-%d %H:%M:%S} UTC")


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def _ms(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{1000 * seconds:.{1 if 0 < seconds < 0.01 else 0}f}"


def _words(name: str | None) -> str:
    """An identifier of ours, as people read it."""
    return (name or "–").replace("_", " ")


def _party(address: str) -> Markup:
    """Whom people know by it: the part of a SIP URI that isn't the same in all of them; a narrow page breaks it before
    the host."""
    user, at, host = address.removeprefix("sip:").partition("@")
    return Markup("<span>{}<wbr>{}</span>").format(user, at + host)


_TEMPLATES = Environment(loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined,
                         trim_blocks=True, lstrip_blocks=True)
_TEMPLATES.filters |= {"time": _time, "clock": _clock, "ms": _ms, "words": _words, "party": _party}
