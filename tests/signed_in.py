"""An operator at a browser without scripts: cookies, forms, no redirect followed by itself."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import urlencode

PASSWORD = "correct horse battery"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    data: bytes

    @property
    def text(self) -> str:
        return self.data.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.data)

    @property
    def form_token(self) -> str:
        found = re.search(r'(?:name="form_token" value|name="form-token" content)="(\w+)"', self.text)
        assert found, self.text
        return found[1]


@dataclass
class Browser:
    port: int
    cookies: dict[str, str] = field(default_factory=dict)
    set_cookies: list[str] = field(default_factory=list)  # as they came

    async def get(self, path: str, **headers: str) -> Answer:
        return await self._ask("GET", path, None, {"Accept": "text/html"} | _names(headers))

    async def post(self, path: str, form: dict[str, Any] | None = None, **headers: str) -> Answer:
        return await self._ask("POST", path, urlencode(form or {}, doseq=True).encode(), {
            "Accept": "text/html", "Content-Type": "application/x-www-form-urlencoded"} | _names(headers))

    async def send(self, path: str, body: object, **headers: str) -> Answer:
        """As a script does."""
        return await self._ask("POST", path, json.dumps(body).encode(), _names(headers))

    async def signs_in(self, name: str, password: str = PASSWORD, there: str = "/admin", **headers: str) -> Answer:
        token = (await self.get("/login", **headers)).form_token
        return await self.post("/login", {"form_token": token, "name": name, "password": password, "next": there},
                               **headers)

    async def _ask(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Answer:
        if self.cookies:
            headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())

        def answer() -> Answer:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
            try:
                connection.request(method, path, body, headers)
                came = connection.getresponse()
                self._keep(came.headers.get_all("set-cookie") or [])
                return Answer(came.status, {name.lower(): value for name, value in came.headers.items()}, came.read())
            finally:
                connection.close()

        return await asyncio.to_thread(answer)

    def _keep(self, lines: list[str]) -> None:
        self.set_cookies += lines
        for line in lines:
            for name, morsel in SimpleCookie(line).items():
                if morsel["max-age"] == "0":
                    self.cookies.pop(name, None)
                else:
                    self.cookies[name] = morsel.value


def _names(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}
