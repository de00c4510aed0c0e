"""A network between two of our processes that a test can cut or slow down: a small TCP proxy on a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator

from call_peers import free_port


class SlowLine:
    """Forwards every connection to `port`. Cut, it takes what comes and says nothing, as a cable that is pulled."""

    def __init__(self, port: int) -> None:
        self.port = free_port()
        self.cut = False
        self.delay_s = 0.0  # each way
        self.to = port
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._over = asyncio.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve()))

    @contextlib.contextmanager
    def running(self) -> Iterator[SlowLine]:
        self._thread.start()
        assert self._ready.wait(10)
        try:
            yield self
        finally:
            self._loop.call_soon_threadsafe(self._over.set)
            self._thread.join(10)
            self._loop.close()

    async def _serve(self) -> None:
        self._talks: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self._ready.set()
        await self._over.wait()
        server.close()
        for task in self._talks:
            task.cancel()
        await asyncio.gather(*self._talks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._talks.add(task)
        ends = [writer]
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.to)
            ends.append(back)
            await asyncio.gather(self._forward(reader, back), self._forward(there, writer))
        except OSError:
            pass
        finally:
            for end in ends:
                end.transport.abort()
            await asyncio.gather(*(end.wait_closed() for end in ends), return_exceptions=True)
            self._talks.discard(task)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                if not self.cut:
                    self._loop.call_later(self.delay_s, self._send, writer, data)
        finally:
            if not self.cut:
                self._loop.call_later(self.delay_s, writer.close)

    @staticmethod
    def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
        if not writer.is_closing():
            writer.write(data)
