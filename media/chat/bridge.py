"""One process that Moshi's own clients connect to, until it is told to end. Nobody gets in without the key."""

from __future__ import annotations

import logging
import uuid
from dataclasses import replace
from http import HTTPStatus
from typing import ClassVar

from redis.asyncio import Redis
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.http11 import Request, Response

from calls.agents import DEFAULT_AGENT
from calls.events import CallEnded, CallReceived, EndReason, Transport
from calls.settings import Settings, SettingsError
from media.bridge import CallBridge
from media.chat import protocol
from media.chat.call import ChatCall
from media.chat.protocol import Asked, BadRequest, read_request

log = logging.getLogger(__name__)

OPEN_TIMEOUT_S = 5.0
ALIVE_S = 10.0  # between two WebSocket pings, and for the answer
MORE_CONNECTIONS = 16  # than chats: those that shake hands or are turned away
FULL = "all chats of this process are taken"


class ChatBridge(CallBridge):
    """`run` serves chats until `stop`."""

    protocol: ClassVar[Transport] = "chat"

    def __init__(self, settings: Settings, redis: Redis, secret: bytes, key: str) -> None:
        super().__init__(settings, redis, secret)
        self._key = key
        self.port = 0  # once it listens

    @property
    def capacity(self) -> int:
        return self._settings.chat_calls

    async def run(self) -> None:
        """Raises SettingsError when it can't listen."""
        await self.follow_configuration()
        async with await self._listen() as server:
            self.port = next(iter(server.sockets)).getsockname()[1]
            log.info("chats of Moshi clients on ws://%s:%d%s, %d at a time", self._settings.chat_host, self.port,
                     protocol.PATH, self.capacity)
            await self.run_until_stopped()

    async def _listen(self) -> Server:
        host, port = self._settings.chat_host, self._settings.chat_port
        try:
            return await serve(
                self._handle, host, port, process_request=self._let_in, compression=None, max_size=protocol.MAX_BYTES,
                open_timeout=OPEN_TIMEOUT_S, ping_interval=ALIVE_S, ping_timeout=ALIVE_S, server_header=None)
        except OSError as error:
            raise SettingsError(f"TANDEM_CHAT_PORT: can't listen on {host}:{port}: {error.strerror}") from None

    def _let_in(self, connection: ServerConnection, request: Request) -> Response | None:
        """Before the WebSocket handshake."""
        asked = _asked(request)
        if asked.path != protocol.PATH:
            return connection.respond(HTTPStatus.NOT_FOUND, f"Moshi clients connect to {protocol.PATH}\n")
        if not asked.has(self._key):
            return connection.respond(HTTPStatus.UNAUTHORIZED, "this needs the key of the setting chat_key\n")
        if self._closing or len(connection.server.connections) > self.capacity + MORE_CONNECTIONS:
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "no new chats here now\n")
        name = asked.agent or DEFAULT_AGENT
        agent = self._configuration.now.by_name.get(name)
        if agent is None:
            return connection.respond(HTTPStatus.NOT_FOUND, "there is no such agent\n")
        try:
            asked.sampling(agent.sampling)
        except BadRequest as bad:
            return connection.respond(HTTPStatus.BAD_REQUEST, f"{bad}\n")
        if len(self._calls) >= self.capacity:
            self._note_busy(self._received(connection, name))
            response = connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, f"{FULL}\n")
            response.headers["Retry-After"] = str(self._settings.retry_after_s)
            return response
        return None

    async def _handle(self, connection: ServerConnection) -> None:
        """A client that was let in."""
        assert connection.request is not None
        asked = _asked(connection.request)
        name = asked.agent or DEFAULT_AGENT
        agent = self._configuration.now.by_name.get(name)
        if agent is None or self._closing:  # since it was let in
            return
        received = self._received(connection, name)
        call = ChatCall(connection, name)
        call.session = self.new_session(received, replace(agent, sampling=asked.sampling(agent.sampling)))
        log.info("call %s from %s to %s", call.session.call, received.caller, name)
        self.carry(call, call.serve())
        await connection.wait_closed()

    def _received(self, connection: ServerConnection, agent: str) -> CallReceived:
        return CallReceived("chat", "inbound", str(connection.remote_address[0]), agent, str(connection.id), self.name,
                            agent)

    def _note_busy(self, received: CallReceived) -> None:
        """A chat that there is no room for has a row too."""
        if not self._events.full:
            call = uuid.uuid4().hex
            self._events.emit(call, 0, received)
            self._events.emit(call, 0, CallEnded(EndReason.BUSY, "local", None, FULL, 0, 0, 0, 0))


def _asked(request: Request) -> Asked:
    return read_request(request.path, request.headers.get("Authorization", ""))
