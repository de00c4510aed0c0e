"""Parts of the browser's tests: a website of its own origin, a TURN server, a Chromium with a WAV as its microphone."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import http.server
import json
import signal
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit

import numpy as np
from playwright.async_api import Browser, BrowserContext, Page, async_playwright
from served import Served

from media.audio import SAMPLE_RATE, Samples

CHROMIUM = "/usr/bin/chromium"
TURN_SECRET = "shared by Tandem and its TURN server"
CHAT_KEY = "shown by Moshi clients"
SITE_SECRET = "shared by the closed site and Tandem"
LONGEST_S = 30  # for anything that a page is waited for
GREETING_S = 4.2  # for which the microphone listens before it asks
WAV_S = 9.0  # after which it asks again

# What the tests must see: the widget's events, and its peer connections, which it keeps to itself.
WATCH = """
window.events = [];
window.peers = [];
for (const type of ['state', 'words', 'level', 'error']) {
  addEventListener(`tandem-${type}`, ({ detail }) => events.push({ type, ...detail }));
}
window.RTCPeerConnection = class extends RTCPeerConnection {
  constructor(...given) { super(...given); peers.push(this); }
};
"""

# Both sides of the newest connection as the page has them, side by side: what the microphone said, what was heard.
RECORD = """
(rate) => {
  const peer = peers.at(-1), context = new AudioContext({ sampleRate: rate });
  const both = context.createChannelMerger(2), recorder = context.createScriptProcessor(4096, 2, 1), pieces = [];
  [peer.getSenders()[0], peer.getReceivers()[0]].forEach(({ track }, channel) => {
    context.createMediaStreamSource(new MediaStream([track])).connect(both, 0, channel);
  });
  recorder.onaudioprocess = ({ inputBuffer }) => {
    const piece = new Int16Array(2 * inputBuffer.length);
    for (const channel of [0, 1]) {
      inputBuffer.getChannelData(channel).forEach((sample, at) => { piece[2 * at + channel] = 32767 * sample; });
    }
    pieces.push(new Uint8Array(piece.buffer));
  };
  both.connect(recorder).connect(context.destination);
  window.recorded = async () => {
    await context.close();
    return pieces.map((piece) => btoa(String.fromCharCode(...piece)));
  };
}
"""


def site_token(key: str, secret: str, **claims: object) -> str:
    """What a closed site's backend makes for each visitor; docs/widget.md shows it so."""
    def part(content: bytes) -> str:
        return base64.urlsafe_b64encode(content).rstrip(b"=").decode()

    whole = {"iss": key, "exp": int(time.time()) + 300, "jti": str(uuid.uuid4())} | claims
    signed = f'{part(json.dumps({"alg": "HS256", "typ": "JWT"}).encode())}.{part(json.dumps(whole).encode())}'
    return f"{signed}.{part(hmac.digest(secret.encode(), signed.encode(), hashlib.sha256))}"


class Website:
    """Pages that embed the widget, on another origin than Tandem's, with a Content-Security-Policy as strict as can be.

    /?agent=echo&mode=inline is a page with these attributes; /blocked one that may not use the microphone.
    """

    def __init__(self, tandem: str) -> None:
        self._tandem = tandem
        website = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                url = urlsplit(self.path)
                if url.path == "/token":
                    self._answer("application/json", json.dumps({"token": site_token("closed", SITE_SECRET)}))
                elif url.path in ("/", "/blocked"):
                    self._answer("text/html", website.html(dict(parse_qsl(url.query, keep_blank_values=True))), {
                        "Content-Security-Policy":
                            f"default-src 'none'; script-src {tandem}; connect-src 'self' {tandem}; "
                            "require-trusted-types-for 'script'",
                        "Permissions-Policy": "microphone=()" if url.path == "/blocked" else "microphone=(self)"})
                else:
                    self._answer("image/svg+xml", '<svg xmlns="http://www.w3.org/2000/svg"/>')

            def _answer(self, kind: str, body: str, headers: dict[str, str] | None = None) -> None:
                self.send_response(200)
                for name, value in {"Content-Type": f"{kind}; charset=utf-8", "Connection": "close",
                                    **(headers or {})}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self.origin = f"http://127.0.0.1:{self.port}"

    @contextlib.contextmanager
    def running(self) -> Iterator[Website]:
        thread = threading.Thread(target=self._server.serve_forever)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()

    def html(self, attributes: dict[str, str]) -> str:
        given = "".join(f' {name}="{escape(value)}"' for name, value in attributes.items())
        return ('<!doctype html><html lang="en"><title>A shop</title>'
                '<meta name="viewport" content="width=device-width">'
                f'<script type="module" src="{self._tandem}/tandem-call.js"></script>'
                f"<main><h1>A shop</h1><p>We sell things.</p><tandem-call{given}></tandem-call></main></html>")


class Turn:
    """A coturn on loopback, which can be stopped, or killed and started again, as networks are."""

    def __init__(self, port: int, folder: Path) -> None:
        self.port = port
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self._folder / "turn.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["turnserver", "-n", "--listening-ip", "127.0.0.1", "--relay-ip", "127.0.0.1", "-p", str(self.port),
                 "--use-auth-secret", f"--static-auth-secret={TURN_SECRET}", "--realm", "tandem",
                 "--allow-loopback-peers", "--no-tls", "--no-dtls", "--no-cli", "--log-file", "stdout",
                 "--pidfile", str(self._folder / "turn.pid"), "--userdb", str(self._folder / "turn.db")],
                stdout=log, stderr=subprocess.STDOUT, cwd=self._folder)
        deadline = time.monotonic() + 10
        while True:  # its TCP door opens with the others
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            assert time.monotonic() < deadline, (self._folder / "turn.log").read_text()
            time.sleep(0.05)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)


@dataclass(frozen=True)
class Web:
    """A Tandem with one slot of an agent that answers, a TURN server, and a website whose origin it knows."""

    tandem: Served
    website: Website
    turn: Turn
    chat_port: int

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.tandem.web_port}"


@contextlib.asynccontextmanager
async def chromium(*arguments: str) -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=[
            "--allow-loopback-in-peer-connection", *arguments])
        try:
            yield browser
        finally:
            await browser.close()


def with_microphone(wav: Path) -> Sequence[str]:
    """Chromium's arguments; the WAV is said again and again, from its beginning at each call's."""
    return ("--use-fake-device-for-media-stream", f"--use-file-for-fake-audio-capture={wav}")


@dataclass
class Visitor:
    """A page with a `<tandem-call>`, and somebody who looks at it."""

    page: Page
    complaints: list[str]  # of the browser: scripts' errors, what a policy forbids

    async def presses(self, name: str, *, exact: bool = False) -> None:
        await self.page.get_by_role("button", name=name, exact=exact).click(timeout=1000 * LONGEST_S)

    async def calls(self) -> None:
        """Start, agree, and be connected."""
        await self.presses("Start talking")
        await self.presses("Agree and start")
        await self.reaches("talking")

    async def reaches(self, state: str) -> None:
        await self.page.wait_for_function(
            "(state) => document.querySelector('tandem-call').state === state", arg=state, timeout=1000 * LONGEST_S)

    async def reads(self, text: str) -> None:
        """The status line."""
        await self.page.get_by_role("status").filter(has_text=text).wait_for(timeout=1000 * LONGEST_S)

    async def events(self, kind: str) -> list[dict[str, object]]:
        found: list[dict[str, object]] = await self.page.evaluate(
            "(kind) => events.filter(({ type }) => type === kind)", kind)
        return found

    async def states(self) -> list[object]:
        return [event["state"] for event in await self.events("state")]

    async def stats(self) -> dict[str, float]:
        figures: dict[str, float] = await self.page.evaluate("document.querySelector('tandem-call').stats()")
        return figures

    async def hears(self, seconds: float) -> tuple[Samples, Samples]:
        """What the page's microphone says and what its ear hears in the meantime."""
        await self.page.evaluate(RECORD, SAMPLE_RATE)
        await asyncio.sleep(seconds)
        pieces = await self.page.evaluate("recorded()")
        both = np.frombuffer(b"".join(map(base64.b64decode, pieces)), "<i2").reshape(-1, 2).astype(np.float32) / 32767
        return both[:, 0], both[:, 1]


@contextlib.asynccontextmanager
async def visiting(
    browser: Browser, url: str, *, allowed: bool = True, **options: object,
) -> AsyncIterator[Visitor]:
    """A page in a browser profile of its own; `allowed` says what its user says when asked for the microphone."""
    context = await browser.new_context(**options)  # type: ignore[arg-type]
    await _microphone(browser, context, url, "granted" if allowed else "denied")
    await context.add_init_script(WATCH)
    page = await context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    try:
        await page.goto(url)
        yield Visitor(page, complaints)
    except Exception as error:
        seen = await page.evaluate(
            "events.filter(({ type }) => type !== 'level').map((event) => JSON.stringify(event))")
        error.add_note("\n".join([url, *seen, *complaints]))
        raise
    finally:
        await context.close()


async def _microphone(browser: Browser, context: BrowserContext, url: str, setting: str) -> None:
    parts = urlsplit(url)
    origin = f"{parts.scheme}://{parts.netloc}"
    if setting == "granted":
        await context.grant_permissions(["microphone"], origin=origin)
        return
    page = await context.new_page()
    session = await context.new_cdp_session(page)
    target = await session.send("Target.getTargetInfo")
    await session.detach()
    whole = await browser.new_browser_cdp_session()
    await whole.send("Browser.setPermission", {
        "permission": {"name": "microphone"}, "setting": setting, "origin": origin,
        "browserContextId": target["targetInfo"]["browserContextId"]})
    await whole.detach()
    await page.close()


def page_of(origin: str, path: str = "/", **attributes: str) -> str:
    return f"{origin}{path}?{urlencode({name.replace('_', '-'): value for name, value in attributes.items()})}"
