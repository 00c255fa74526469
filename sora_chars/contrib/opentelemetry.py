"""Traces and metrics of a session, by OpenTelemetry (extra `otel`).

    session = CharacterSession(Kie(), ledger="characters.db", observers=[OpenTelemetry()])

Each request becomes one span when it ends. The process that records the end makes it, so
a request whose process was killed has its span too, and no span is open for minutes. It
starts when the key was registered, and its parent is the span in which the request was
registered: its `traceparent` is kept in the entry's `meta`.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, Any

import attrs
from opentelemetry import metrics, trace
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from yarl import URL

from sora_chars import events

from .opentelemetry_genai import genai_attributes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from opentelemetry.context import Context
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation
    from opentelemetry.trace import TracerProvider
    from opentelemetry.util.types import AttributeValue

_SCOPE = "sora_chars"
_MAX_EXCHANGES = 10_000  # requests whose exchanges are remembered until they end
_MAX_IN_FLIGHT = 100_000  # requests whose states are remembered
_IN_FLIGHT = {"sending", "running"}
_ERROR_STATUS = 400
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)  # of HTTP, by its convention
_MINUTES = (1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600)  # seconds
_POLLS = (1, 2, 3, 5, 8, 13, 21, 34, 55)

_propagator = TraceContextTextMapPropagator()


@attrs.define(eq=False)
class _Exchanges:
    """The last create and the last poll of a request, as far as this process made them."""

    create: events.Answered | None = None
    poll: events.Answered | None = None


class OpenTelemetry:
    """An observer that makes spans and metrics of events.

    One instance may observe several sessions.

    Args:
        tracer_provider: Where spans go. Defaults to the global one.
        meter_provider: Where measurements go. Defaults to the global one.
    """

    def __init__(
        self, *, tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None
    ) -> None:
        self._tracer = trace.get_tracer(_SCOPE, tracer_provider=tracer_provider)
        self._instruments = _Instruments(metrics.get_meter(_SCOPE, meter_provider=meter_provider))
        self._exchanges: OrderedDict[str, _Exchanges] = OrderedDict()

    def __call__(self, event: events.Event) -> None:
        """Take note of an event."""
        self._instruments.record(event)
        if isinstance(event, events.Answered):
            self._remember(event)
        elif isinstance(event, events.Ended):
            self._end(event)

    def request_meta(self) -> Mapping[str, Any]:
        """Return the `traceparent` of the current span, which the entry of a new request keeps."""
        carrier: dict[str, str] = {}
        _propagator.inject(carrier)
        return carrier

    def _remember(self, event: events.Answered) -> None:
        if event.key is None or event.request == "other":
            return
        known = self._exchanges.setdefault(event.key, _Exchanges())
        if event.request == "create":
            known.create = event
        else:
            known.poll = event
        if len(self._exchanges) > _MAX_EXCHANGES:
            self._exchanges.popitem(last=False)

    def _end(self, event: events.Ended) -> None:
        """Make the span of a request that has ended, and those of its create and its last poll."""
        span = self._tracer.start_span(
            f"create {event.kind}",
            context=_parent_of(event),
            kind=SpanKind.INTERNAL,
            attributes=_task_attributes(event),
            start_time=_nanoseconds(event.created_at),
        )
        if event.state != "succeeded":
            span.set_status(Status(StatusCode.ERROR, str((event.error or {}).get("message", ""))))
        known = self._exchanges.pop(str(event.key), _Exchanges())
        for exchange in (known.create, known.poll):
            if exchange:
                self._add_exchange(exchange, trace.set_span_in_context(span))
        span.end(_nanoseconds(event.at))

    def _add_exchange(self, event: events.Answered, context: Context) -> None:
        span = self._tracer.start_span(
            event.method,
            context=context,
            kind=SpanKind.CLIENT,
            attributes={**_http_attributes(event), "url.full": event.url, **_resend(event)},
            start_time=_nanoseconds(event.at - event.seconds),
        )
        if event.error or (event.status or 0) >= _ERROR_STATUS:
            span.set_status(Status(StatusCode.ERROR))
        span.end(_nanoseconds(event.at))


def _parent_of(event: events.Ended) -> Context | None:
    """Return the context in which the request was registered; None for the present one, its caller's.

    The user may have given `meta` of any kind, so only texts are read.
    """
    carrier = {name: event.meta[name] for name in _propagator.fields if isinstance(event.meta.get(name), str)}
    return _propagator.extract(carrier) if "traceparent" in carrier else None


def _task_attributes(event: events.Ended) -> dict[str, AttributeValue]:
    facts: dict[str, AttributeValue | None] = {
        "sora_chars.key": event.key,
        "sora_chars.provider": event.provider,
        "sora_chars.state": event.state,
        "sora_chars.task_id": event.task_id,
        "sora_chars.credits": event.credits,
        "sora_chars.polls": event.polls,
        "sora_chars.woken_by": event.woken_by,
        "sora_chars.detection_lag": event.lag,
        "error.type": None if event.state == "succeeded" else _error_type(event),
        **genai_attributes(event),
    }
    return {name: value for name, value in facts.items() if value is not None}


def _error_type(event: events.Ended) -> str:
    error = event.error or {}
    return str(error.get("type") or error.get("code") or event.state)


def _http_attributes(event: events.Answered) -> dict[str, AttributeValue]:
    """Return the stable attributes of an HTTP client, which have a bounded number of values."""
    url = URL(event.url)
    found: dict[str, AttributeValue] = {
        "http.request.method": event.method,
        "server.address": url.host or "",
        "server.port": url.port or 0,  # yarl knows the default ports
    }
    if event.status is not None:
        found["http.response.status_code"] = event.status
    if event.error or (event.status or 0) >= _ERROR_STATUS:
        found["error.type"] = event.error or str(event.status)
    return found


def _resend(event: events.Answered) -> dict[str, AttributeValue]:
    return {"http.request.resend_count": event.resend} if event.resend else {}


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


class _Instruments:
    """The metrics, and the states of the requests of this process that are in flight."""

    def __init__(self, meter: metrics.Meter) -> None:
        def histogram(name: str, unit: str, description: str, buckets: Iterable[float]) -> metrics.Histogram:
            return meter.create_histogram(
                name, unit, description, explicit_bucket_boundaries_advisory=[*map(float, buckets)]
            )

        self.http = histogram("http.client.request.duration", "s", "HTTP exchanges with providers.", _SECONDS)
        self.duration = histogram("sora_chars.task.duration", "s", "From registering a request to its end.", _MINUTES)
        self.queue_wait = histogram("sora_chars.task.queue_wait", "s", "Waits for a place in the limits.", _MINUTES)
        self.lag = histogram(
            "sora_chars.task.detection_lag", "s", "From an end at the provider to its record.", _MINUTES
        )
        self.polls = histogram("sora_chars.task.polls", "{poll}", "Polls of a task in its last process.", _POLLS)
        self.ledger = histogram("sora_chars.ledger.duration", "s", "Writes to the ledger.", _SECONDS)
        self.credits = meter.create_counter("sora_chars.task.credits", "{credit}", "What tasks have cost.")
        self.unknown = meter.create_counter("sora_chars.task.unknown", "{request}", "Requests of unknown outcome.")
        self.rate_limited = meter.create_counter("sora_chars.rate_limited", "{response}", "Responses 429.")
        self.cooldown = meter.create_counter("sora_chars.cooldown.duration", "s", "Pauses after responses 429.")
        self.callbacks = meter.create_counter("sora_chars.callbacks", "{callback}", "Callbacks, by their answer.")
        self.ledger_errors = meter.create_counter("sora_chars.ledger.errors", "{error}", "Failed uses of the ledger.")
        meter.create_observable_up_down_counter(
            "sora_chars.task.in_flight", [self._in_flight], "{task}", "Requests that are being sent, and running tasks."
        )
        self._states: dict[str, tuple[str, str]] = {}  # provider and state, by key
        self._providers: set[str] = set()  # those whose counters exist

    def record(self, event: events.Event) -> None:
        """Add an event to the metrics."""
        where: dict[str, AttributeValue] = {"sora_chars.provider": event.provider or ""}
        match event:
            case events.Answered():
                self.http.record(event.seconds, _http_attributes(event))
            case events.Sent():
                self.queue_wait.record(event.waited, where)
            case events.Cooldown():
                self.rate_limited.add(1, where | {"sora_chars.request": event.request})
                self.cooldown.add(event.seconds, where)
            case events.Recorded():
                self._move(event)
                self.ledger.record(event.seconds or 0.0, {"sora_chars.state": event.state})
            case events.InDoubt():
                self.unknown.add(1, where)
            case events.CallbackReceived():
                self.callbacks.add(1, where | {"http.response.status_code": event.status})
            case events.LedgerFailed():
                self.ledger_errors.add(1)
            case events.Ended():
                self._end(event, where)
            case _:
                pass

    def _end(self, event: events.Ended, where: Mapping[str, AttributeValue]) -> None:
        self.duration.record(event.duration, {**where, "sora_chars.state": event.state})
        if event.lag is not None:
            self.lag.record(event.lag, {**where, "sora_chars.woken_by": event.woken_by or ""})
        if event.polls is not None:
            self.polls.record(event.polls, where)
        if event.credits:
            self.credits.add(event.credits, where)

    def _move(self, event: events.Recorded) -> None:
        key = str(event.key)
        provider = event.provider or ""
        if provider not in self._providers:  # a series that begins above 0 shows no increase
            self._providers.add(provider)
            self.unknown.add(0, {"sora_chars.provider": provider})
        if event.state in _IN_FLIGHT:
            self._states[key] = provider, event.state
            if len(self._states) > _MAX_IN_FLIGHT:  # other processes have ended the oldest
                del self._states[next(iter(self._states))]
        else:
            self._states.pop(key, None)

    def _in_flight(self, _: CallbackOptions) -> Iterable[Observation]:
        """Count the requests in flight; called by the exporter's thread."""
        counts = Counter(self._states.copy().values())
        return [
            metrics.Observation(count, {"sora_chars.provider": provider, "sora_chars.state": state})
            for (provider, state), count in counts.items()
        ]
