"""An OpenTelemetry collector of our own: takes OTLP over HTTP, keeps the spans."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


@dataclass(frozen=True)
class Seen:
    """A span as it came."""

    name: str
    service: str
    trace: str
    id: str
    parent: str
    seconds: float
    attributes: dict[str, Any]
    is_error: bool
    status: str
    marks: tuple[str, ...]


@dataclass
class Collector:
    url: str = ""
    spans: list[Seen] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    def take(self, body: bytes) -> None:
        self.bodies.append(body)
        for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            about = {each.key: each.value.string_value for each in of_resource.resource.attributes}
            for scope in of_resource.scope_spans:
                for span in scope.spans:
                    self.spans.append(Seen(
                        span.name, about["service.name"], span.trace_id.hex(), span.span_id.hex(),
                        span.parent_span_id.hex(), (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
                        {each.key: getattr(each.value, str(each.value.WhichOneof("value")))
                         for each in span.attributes},
                        span.status.code == span.status.STATUS_CODE_ERROR, span.status.message,
                        tuple(event.name for event in span.events)))

    def wait_for(self, name: str, timeout_s: float = 20.0) -> Seen:
        """The first span of this name."""
        deadline = time.monotonic() + timeout_s
        while not (found := [span for span in self.spans if span.name == name]):
            assert time.monotonic() < deadline, [span.name for span in self.spans]
            time.sleep(0.02)
        return found[0]


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            collector.take(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector.url = f"http://127.0.0.1:{server.server_port}/v1/traces"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()
