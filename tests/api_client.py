"""A program that uses the API over HTTP and WebSocket."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from websockets.asyncio.client import ClientConnection, connect


@dataclass
class Answer:
    status: int
    body: Any
    headers: dict[str, str]


@dataclass
class Api:
    port: int
    keys: dict[str, str]

    async def ask(self, path: str, body: object = None, *, key: str | None = "both", raw: bytes | None = None,
                  range: str | None = None, method: str | None = None, headers: Mapping[str, str] | None = None
                  ) -> Answer:
        """`key`: one of `keys`, or the key itself."""
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/api/v1{path}", data, method=method)
        if key is not None:
            request.add_header("Authorization", f"Bearer {self.keys.get(key, key)}")
        for name, value in (headers or {}).items():
            request.add_header(name, value)
        if range is not None:
            request.add_header("Range", range)

        def answer() -> Answer:
            try:
                with urllib.request.urlopen(request, timeout=10) as came:
                    return _answer(came.status, came)
            except urllib.error.HTTPError as refused:
                with refused:
                    return _answer(refused.code, refused)

        return await asyncio.to_thread(answer)

    async def put(self, path: str, body: object, *, key: str = "configures", headers: Mapping[str, str] | None = None
                  ) -> Answer:
        return await self.ask(path, body, key=key, method="PUT", headers=headers)

    async def delete(self, path: str, *, key: str = "configures") -> Answer:
        return await self.ask(path, key=key, method="DELETE")

    @asynccontextmanager
    async def events(self, path: str, *, key: str) -> AsyncIterator[AsyncIterator[str]]:
        """The data of server-sent events, as they come."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(f"GET /api/v1{path} HTTP/1.0\r\nAuthorization: Bearer {self.keys[key]}\r\n\r\n".encode())

        async def data() -> AsyncIterator[str]:
            while line := (await reader.readline()).decode():
                if line.startswith("data: "):
                    yield line.removeprefix("data: ")

        try:
            yield data()
        finally:
            writer.close()

    @asynccontextmanager
    async def live(self, key: str | None = "both", call: str = "call-1", query: str = ""
                   ) -> AsyncIterator[ClientConnection]:
        headers = {} if key is None else {"Authorization": f"Bearer {self.keys.get(key, key)}"}
        url = f"ws://127.0.0.1:{self.port}/api/v1/calls/{call}/live{query}"
        async with connect(url, additional_headers=headers, proxy=None) as socket:
            yield socket


def _answer(status: int, came: Any) -> Answer:
    data, kind = came.read(), came.headers.get_content_type()
    body = json.loads(data) if kind == "application/json" else data.decode() if "audio" not in kind else data
    return Answer(status, body or data, dict(came.headers))
