"""Spans and metrics, in the SDK's exporters in memory and in virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

import attrs
import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from sora_chars import events
from sora_chars.contrib import opentelemetry
from sora_chars.contrib.opentelemetry import OpenTelemetry
from sora_chars.errors import NoAnswerError, RequestRejectedError, SubmissionUnknownError
from sora_chars.ledger import EntryState, Ledger
from sora_chars.polling.strategies import FixedInterval
from sora_chars.session.session import CharacterSession
from tests.support.fake_providers import FakeProvider, FaultyStore

pytestmark = pytest.mark.looptime

REQUEST: dict[str, Any] = {"from_task": "origin", "clip": "1,3", "prompt": "a dog", "key": "mine"}
OTHER: dict[str, Any] = {**REQUEST, "key": "other"}


class Telemetry:
    """An observer with exporters in memory."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.reader = InMemoryMetricReader()
        self.tracers = TracerProvider(shutdown_on_exit=False)
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.meters = MeterProvider([self.reader], shutdown_on_exit=False)
        self.observer = OpenTelemetry(tracer_provider=self.tracers, meter_provider=self.meters)
        self.tracer = self.tracers.get_tracer("test")

    @property
    def spans(self) -> list[ReadableSpan]:
        """The spans that have ended, by their end."""
        return list(self.exporter.get_finished_spans())

    def span(self, name: str) -> ReadableSpan:
        """Return the only span of this name."""
        [span] = [span for span in self.spans if span.name == name]
        return span

    def metrics(self) -> dict[str, list[tuple[dict[str, Any], float]]]:
        """Return attributes and value of each point; of a histogram the sum."""
        data = self.reader.get_metrics_data()
        found: dict[str, list[tuple[dict[str, Any], float]]] = {}
        for resource in data.resource_metrics if data else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    for point in metric.data.data_points:
                        value: Any = point.sum if isinstance(point, HistogramDataPoint) else getattr(point, "value", 0)
                        found.setdefault(metric.name, []).append((dict(point.attributes or {}), value))
        return found

    def session(self, provider: FakeProvider, store: FaultyStore | None = None) -> CharacterSession:
        """Return an observed session that polls every 10 s."""
        return CharacterSession(
            provider,
            ledger=Ledger(store or FaultyStore(), clock=lambda: asyncio.get_running_loop().time()),
            polling=FixedInterval(10.0),
            observers=[self.observer],
        )


@pytest.fixture
def telemetry() -> Telemetry:
    """An observer with exporters in memory."""
    return Telemetry()


def exchange(request: str, **facts: Any) -> events.Answered:
    """Return an exchange of the key "mine" that ended at 25 s."""
    defaults: dict[str, Any] = {
        "method": "GET",
        "url": "https://api.kie.ai/x",
        "status": 200,
        "seconds": 0.5,
        "at": 25.0,
    }
    return events.Answered(key="mine", provider="fake", request=request, **(defaults | facts))


async def test_one_span_a_request(telemetry: Telemetry) -> None:
    """A request that ends is one span, from registering to the record of its end, under its caller's span."""
    async with telemetry.session(FakeProvider(end=2)) as session:
        with telemetry.tracer.start_as_current_span("order") as order:
            await session.create(**REQUEST)
    span = telemetry.span("create character")
    assert span.parent
    assert span.parent.span_id == order.get_span_context().span_id
    assert span.start_time == 0
    assert span.status.status_code is StatusCode.UNSET
    assert dict(span.attributes or {}) == {
        "sora_chars.key": "mine",
        "sora_chars.provider": "fake",
        "sora_chars.state": "succeeded",
        "sora_chars.task_id": "t1",
        "sora_chars.polls": 2,
        "sora_chars.woken_by": "poll",
    }


async def test_a_request_of_another_process(telemetry: Telemetry) -> None:
    """A process that takes a task over makes its span, under the span in which it was registered."""
    store = FaultyStore(others_live=False)
    async with telemetry.session(FakeProvider(end=100), store) as session:
        with telemetry.tracer.start_as_current_span("order") as order:
            await session.submit(**REQUEST)
    other = Telemetry()
    async with other.session(FakeProvider(), store) as session:
        with other.tracer.start_as_current_span("recovery"):
            [handle] = [handle async for handle in session.recover()]
        await handle
    assert [span.name for span in telemetry.spans] == ["order"]
    span = other.span("create character")
    assert span.parent
    assert span.parent.span_id == order.get_span_context().span_id
    assert span.context
    assert span.context.trace_id == order.get_span_context().trace_id


async def test_a_registered_request_keeps_its_trace(telemetry: Telemetry) -> None:
    """`register` keeps the `traceparent` of its caller beside the caller's own facts."""
    async with telemetry.session(FakeProvider()) as session:
        with telemetry.tracer.start_as_current_span("order") as order:
            entry = await session.register(**REQUEST, meta={"order": 17})
        plain = await session.register(**OTHER)
    context = order.get_span_context()
    kept = f"00-{trace.format_trace_id(context.trace_id)}-{trace.format_span_id(context.span_id)}-"
    assert entry.meta.keys() == {"order", "traceparent"}
    assert entry.meta["traceparent"].startswith(kept)
    assert plain.meta == {}


async def test_a_rejected_request(telemetry: Telemetry) -> None:
    """A request that was rejected is a span with an error."""
    async with telemetry.session(FakeProvider(fault=RequestRejectedError("no cats", provider="fake"))) as session:
        with pytest.raises(RequestRejectedError):
            await session.create(**REQUEST)
    span = telemetry.span("create character")
    assert span.status.status_code is StatusCode.ERROR
    assert "no cats" in str(span.status.description)
    assert (span.attributes or {})["error.type"] == "RequestRejectedError"
    assert span.parent is None


def end(**facts: Any) -> events.Ended:
    """Return the end of the request "mine" at 30 s."""
    defaults: dict[str, Any] = {"kind": "character", "state": "succeeded", "task_id": "t1", "created_at": 1.0}
    return events.Ended(key="mine", provider="fake", duration=29.0, at=30.0, **(defaults | facts))


def test_the_create_and_the_last_poll_are_children(telemetry: Telemetry) -> None:
    """The last create and the last poll are HTTP spans within the span of the request, with the stable names."""
    telemetry.observer(exchange("create", method="POST", status=429, at=2.0))
    telemetry.observer(exchange("create", method="POST", url="http://127.0.0.1:8080/jobs", resend=1, at=4.0))
    telemetry.observer(exchange("poll", at=10.0))
    telemetry.observer(exchange("poll", status=None, error="ServerDisconnectedError", seconds=2.0))
    telemetry.observer(exchange("other", at=26.0))
    telemetry.observer(end())
    create, poll, task = (telemetry.span(name) for name in ("POST", "GET", "create character"))
    assert task.context
    assert {span.parent.span_id for span in (create, poll) if span.parent} == {task.context.span_id}
    assert create.kind is SpanKind.CLIENT
    assert dict(create.attributes or {}) == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "http.request.resend_count": 1,
        "server.address": "127.0.0.1",
        "server.port": 8080,
        "url.full": "http://127.0.0.1:8080/jobs",
    }
    assert (create.start_time, create.end_time) == (3_500_000_000, 4_000_000_000)
    assert create.status.status_code is StatusCode.UNSET
    assert (poll.attributes or {})["error.type"] == "ServerDisconnectedError"
    assert poll.status.status_code is StatusCode.ERROR
    assert (poll.start_time, poll.end_time) == (23_000_000_000, 25_000_000_000)
    assert (task.start_time, task.end_time) == (1_000_000_000, 30_000_000_000)


def test_remembers_a_bounded_number_of_exchanges(telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exchanges of requests that never end here are forgotten, the oldest first."""
    monkeypatch.setattr(opentelemetry, "_MAX_EXCHANGES", 1)
    telemetry.observer(exchange("poll"))
    telemetry.observer(attrs.evolve(exchange("poll"), key=None))
    telemetry.observer(attrs.evolve(exchange("poll"), key="other"))
    telemetry.observer(end())
    assert [span.name for span in telemetry.spans] == ["create character"]


@pytest.mark.parametrize("value", [5, None, ["00"], {}, "garbage", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
def test_a_request_whose_meta_has_no_trace(telemetry: Telemetry, value: object) -> None:
    """Names of the trace context in the user's own facts, with other values, cost no span."""
    telemetry.observer(attrs.evolve(end(), meta={"traceparent": value, "tracestate": value}))
    valid = f"00-{'a' * 32}-{'b' * 16}-01"
    telemetry.observer(attrs.evolve(end(), meta={"traceparent": valid, "tracestate": value}))
    root, child = telemetry.spans
    assert root.parent is None
    assert child.parent
    assert child.parent.span_id == int("b" * 16, 16)


def test_the_conventions_for_generative_ai_are_opted_in(telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their names are still in development, so they are added only where the standard variable names them."""
    telemetry.observer(end())
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "http, gen_ai_latest_experimental")
    telemetry.observer(end())
    before, after = (dict(span.attributes or {}) for span in telemetry.spans)
    assert after.items() - before.items() == {
        ("gen_ai.operation.name", "create_character"),
        ("gen_ai.provider.name", "fake"),
        ("gen_ai.response.id", "t1"),
    }


async def test_metrics_of_a_request(telemetry: Telemetry) -> None:
    """Duration, queue wait, polls, credits, lag and the writes of the ledger are measured, and what is in flight."""
    provider = FakeProvider(end=100)
    async with telemetry.session(provider) as session:
        handle = await session.submit(**REQUEST)
        running = telemetry.metrics()
        await asyncio.sleep(15)
        provider.seen = provider.snapshot(credits=2.5, created_at=20.0, completed_at=36.0)
        await handle
    assert running["sora_chars.task.in_flight"] == [({"sora_chars.provider": "fake", "sora_chars.state": "running"}, 1)]
    found = telemetry.metrics()
    assert "sora_chars.task.in_flight" not in found
    where = {"sora_chars.provider": "fake"}
    assert found["sora_chars.task.duration"] == [(where | {"sora_chars.state": "succeeded"}, 40.0)]
    assert found["sora_chars.task.unknown"] == [(where, 0)]  # so that the first one is an increase
    assert found["sora_chars.task.queue_wait"] == [(where, 10.0)]
    assert found["sora_chars.task.polls"] == [(where, 2)]
    assert found["sora_chars.task.credits"] == [(where, 2.5)]
    assert found["sora_chars.task.detection_lag"] == [(where | {"sora_chars.woken_by": "poll"}, 4.0)]
    assert [point["sora_chars.state"] for point, _ in found["sora_chars.ledger.duration"]] == [
        "sending",
        "running",
        "succeeded",
    ]


async def test_metrics_of_trouble(telemetry: Telemetry) -> None:
    """Unknown outcomes, failures of the ledger, 429s, pauses and callbacks are counted."""
    store = FaultyStore()
    async with telemetry.session(FakeProvider(fault=NoAnswerError("reset")), store) as session:
        with pytest.raises(SubmissionUnknownError):
            await session.create(**REQUEST)
        store.full = {EntryState.PENDING}
        with pytest.raises(Exception, match="disk is full"):
            await session.register(**OTHER)
    for request in ("create", "poll", "poll"):
        telemetry.observer(events.Cooldown(provider="fake", request=request, seconds=1.5))
    for status in (200, 200, 401):
        telemetry.observer(events.CallbackReceived(provider="fake", status=status))
    telemetry.observer(events.LedgerFailed(error="The disk fails."))
    telemetry.observer(exchange("other", status=503))
    found = telemetry.metrics()
    where = {"sora_chars.provider": "fake"}
    assert found["sora_chars.task.unknown"] == [(where, 1)]
    assert found["sora_chars.rate_limited"] == [
        (where | {"sora_chars.request": "create"}, 1),
        (where | {"sora_chars.request": "poll"}, 2),
    ]
    assert found["sora_chars.cooldown.duration"] == [(where, 4.5)]
    assert found["sora_chars.callbacks"] == [
        (where | {"http.response.status_code": 200}, 2),
        (where | {"http.response.status_code": 401}, 1),
    ]
    assert found["sora_chars.ledger.errors"] == [({}, 2)]
    assert found["http.client.request.duration"] == [
        (
            {
                "http.request.method": "GET",
                "http.response.status_code": 503,
                "server.address": "api.kie.ai",
                "server.port": 443,
                "error.type": "503",
            },
            0.5,
        )
    ]


def test_remembers_a_bounded_number_of_states(telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that other processes end are forgotten, the oldest first."""
    monkeypatch.setattr(opentelemetry, "_MAX_IN_FLIGHT", 2)
    for number in range(5):
        telemetry.observer(
            events.Recorded(key=f"k-{number}", provider="fake", before="pending", state="sending", version=2)
        )
    assert telemetry.metrics()["sora_chars.task.in_flight"] == [
        ({"sora_chars.provider": "fake", "sora_chars.state": "sending"}, 2)
    ]
