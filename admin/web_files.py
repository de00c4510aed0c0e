"""The widget and the demo page, from media/widget."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import Response

WIDGET = Path(str(files("media"))) / "widget"
PARTS = ("texts", "style", "call", "widget", "element")  # of the script, which websites get as one file
WIDGET_AGE_S = 300  # for which a browser takes the script as it has it
TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml",
         ".png": "image/png", ".txt": "text/plain"}
DEMO_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
    "Permissions-Policy": "microphone=(self)",
    "Referrer-Policy": "no-referrer",
}


def script(folder: Path = WIDGET) -> bytes:
    """tandem-call.js: its parts, one behind the other, in one scope."""
    return b"".join((folder / "tandem-call" / f"{part}.js").read_bytes() for part in PARTS)


def router(folder: Path = WIDGET) -> APIRouter:
    """GET /, /demo/…, /tandem-call.js."""
    found = APIRouter()

    @found.get("/tandem-call.js")
    async def widget(request: Request) -> Response:
        return _answer(request, script(folder), ".js", {
            "Access-Control-Allow-Origin": "*", "Cross-Origin-Resource-Policy": "cross-origin",
            "Cache-Control": f"public, max-age={WIDGET_AGE_S}"})

    @found.get("/")
    async def demo(request: Request) -> Response:
        return _file(request, folder / "demo" / "index.html", DEMO_HEADERS | {"Cache-Control": "no-cache"})

    @found.get("/demo/{name}")
    async def of_demo(request: Request, name: str) -> Response:
        return _file(request, folder / "demo" / Path(name).name, DEMO_HEADERS | {"Cache-Control": "no-cache"})

    return found


def _file(request: Request, path: Path, headers: dict[str, str]) -> Response:
    if path.suffix not in TYPES or not path.is_file():
        raise HTTPException(404)
    return _answer(request, path.read_bytes(), path.suffix, headers)


def _answer(request: Request, data: bytes, suffix: str, headers: dict[str, str]) -> Response:
    """A small file, unless the browser has it already."""
    kind = TYPES[suffix]
    tag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
    headers = headers | {"ETag": tag, "X-Content-Type-Options": "nosniff"}
    known = {each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")}
    if tag in known:
        return Response(status_code=304, headers=headers)
    charset = "; charset=utf-8" if kind.startswith("text/") else ""
    return Response(data, headers=headers | {"Content-Type": kind + charset})
