"""Spans on their way to an OpenTelemetry collector, by OTLP over HTTP; nothing where TANDEM_TRACES_URL isn't set.

They wait in a bounded queue of OpenTelemetry's own and leave from its thread: a collector that is away costs the calls
nothing, and loses what the queue can't hold. OTEL_EXPORTER_OTLP_HEADERS gives a collector its credential.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from datetime import datetime

from calls.events import Envelope
from calls.settings import Settings
from calls.traces import CallSpans, Span, root_of, trace_of

SEND_EVERY_S = 1.0
SEND_WITHIN_S = 5.0
MOST_WAITING = 2048  # spans
LAST_S = 3.0  # at the end of a role, for the last spans


class Traces:
    """One process's. Called on any thread."""

    def __init__(self, url: str | None, role: str, name: str) -> None:
        self._spans = CallSpans()
        self._sender = _Sender(url, role, name) if url else None

    @classmethod
    def of(cls, settings: Settings, role: str, name: str) -> Traces:
        return cls(settings.traces_url, role, name)

    def note(self, envelope: Envelope) -> None:
        """One of a call's events, in their order."""
        if self._sender is not None:
            for span in self._spans.of(envelope):
                self._sender.send(span)

    def add(self, span: Span) -> None:
        if self._sender is not None:
            self._sender.send(span)

    async def close(self) -> None:
        """Sends what waits, for at most LAST_S."""
        if self._sender is not None:
            await asyncio.to_thread(self._sender.close)


class _Sender:
    def __init__(self, url: str, role: str, name: str) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

        self._resource = Resource.create({"service.name": f"tandem-{role}", "service.instance.id": name})
        self._exporter = OTLPSpanExporter(endpoint=url, timeout=SEND_WITHIN_S)
        self._processor = BatchSpanProcessor(self._exporter, max_queue_size=MOST_WAITING,
                                             schedule_delay_millis=1000 * SEND_EVERY_S)
        self._ids = RandomIdGenerator()
        for library in ("opentelemetry", "urllib3"):  # it says at each try that the collector is away
            logging.getLogger(library).setLevel(logging.ERROR)

    def send(self, span: Span) -> None:
        from opentelemetry.sdk.trace import Event, ReadableSpan
        from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

        def context(id: int) -> SpanContext:
            return SpanContext(trace_of(span.call), id, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))

        root = context(root_of(span.call))
        self._processor.on_end(ReadableSpan(
            span.name, context=root if span.is_root else context(self._ids.generate_span_id()),
            parent=None if span.is_root else root, resource=self._resource, attributes=span.attributes,
            events=[Event(name, timestamp=_ns(at)) for name, at in span.marks],
            kind=SpanKind.SERVER if span.is_root else SpanKind.INTERNAL,
            status=Status(StatusCode.ERROR, span.fault) if span.fault else Status(StatusCode.UNSET),
            start_time=_ns(span.began), end_time=_ns(span.ended)))

    def close(self) -> None:
        # The library's own end waits as long as the collector lets it; both its threads are daemons.
        last = threading.Thread(target=self._processor.shutdown, daemon=True)
        last.start()
        last.join(LAST_S)
        self._exporter.shutdown()  # type: ignore[no-untyped-call]


def _ns(at: datetime) -> int:
    return round(at.timestamp() * 1e6) * 1000
