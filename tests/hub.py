"""A server on loopback that speaks as much of the Hugging Face hub's protocol as its client needs to fetch files."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c0ffee" + "0" * 34
OLD_COMMIT = "0dd" + "0" * 37


@dataclass
class Hub:
    """Repositories are folders below `root`: owner/name/…; `old` holds what revision `v1` has instead."""

    root: Path
    url: str = ""
    token: str | None = None  # that opens gated repositories
    gated: tuple[str, ...] = ()
    cut_after: int | None = None  # bytes of a file, once; then it answers 500 until `mend`
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, Range
    _broken: bool = False

    def mend(self) -> None:
        self.cut_after, self._broken = None, False


@contextmanager
def running_hub(root: Path) -> Iterator[Hub]:
    hub = Hub(root)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            if "/resolve/" not in self.path:  # whatever else the client is curious about
                return self._refuse(404, "")
            hub.asked.append((self.command, self.path, self.headers.get("Range")))
            owner, name, _, revision, file = self.path.lstrip("/").split("/", 4)
            repository = f"{owner}/{name}"
            if not (hub.root / repository).is_dir():
                return self._refuse(401, "RepoNotFound")
            if repository in hub.gated and self.headers.get("Authorization") != f"Bearer {hub.token}":
                return self._refuse(401, "GatedRepo")
            folders = {"main": hub.root / repository, COMMIT: hub.root / repository,
                       "v1": hub.root / "old" / name, OLD_COMMIT: hub.root / "old" / name}
            if revision not in folders:
                return self._refuse(404, "RevisionNotFound")
            path = folders[revision] / file
            if not path.is_file():
                return self._refuse(404, "EntryNotFound")
            if body and hub._broken:
                return self._refuse(500, "")
            data = path.read_bytes()
            first = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
            self.send_response(206 if first else 200)
            self.send_header("X-Repo-Commit", OLD_COMMIT if revision in ("v1", OLD_COMMIT) else COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("Content-Length", str(len(data) - first))
            if first:
                self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            if body and hub.cut_after is not None and len(data) > hub.cut_after:
                hub._broken, self.close_connection = True, True
                self.wfile.write(data[first:hub.cut_after])
                return None
            if body:
                self.wfile.write(data[first:])
            return None

        def _refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
