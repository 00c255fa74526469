"""The table of fault kinds, and which active fault hits a request."""

from __future__ import annotations

import json
import random
import re

import pytest

from sora_chars.testing.emulator.callbacks import wrong_token
from sora_chars.testing.emulator.faults import KINDS, TARGETS, Fault, FaultRegistry, parse_header
from sora_chars.testing.emulator.responses import kkiai_error


@pytest.fixture
def registry() -> FaultRegistry:
    """A registry without faults."""
    return FaultRegistry(random.Random(0))


def add(
    registry: FaultRegistry, kind: str, *, on: str | None = None, times: int | None = 1, rate: float = 1.0
) -> Fault:
    """Add a fault with its default settings."""
    return registry.add(kind, on=on, times=times, rate=rate, settings={})


@pytest.mark.parametrize("kind", KINDS)
def test_kind_applies_to_all_its_targets(registry: FaultRegistry, kind: str) -> None:
    """Each kind names known targets, has an effect, and can be added with its defaults."""
    row = KINDS[kind]
    assert set(row.targets) <= set(TARGETS)
    assert row.respond or row.send or row.change_task or row.plan
    assert add(registry, kind).on == row.targets[0]
    assert [add(registry, kind, on=target).on for target in row.targets] == list(row.targets)


def test_setting_with_choices(registry: FaultRegistry) -> None:
    """A setting with choices defaults to the first, accepts each of them and rejects others."""
    assert add(registry, "not_visible").text("form") == "422"
    for form in ("422", "404", "null"):
        assert registry.add("not_visible", on=None, times=1, rate=1.0, settings={"form": form}).text("form") == form
    with pytest.raises(ValueError, match="not_visible has no setting form='500'"):
        registry.add("not_visible", on=None, times=1, rate=1.0, settings={"form": "500"})


@pytest.mark.parametrize(
    ("kind", "on", "settings", "message"),
    [
        ("nonsense", None, {}, "unknown fault 'nonsense'; known faults: ark_error, asset_fail, "),
        ("stuck", "poll", {}, "stuck does not apply to on='poll'; valid values: create"),
        ("stuck", None, {"seconds": 1.0}, "stuck has no setting seconds=1.0; its settings: {}"),
        ("delay", None, {"seconds": "1"}, "delay has no setting seconds='1'"),
        ("status", None, {"code": 1.5}, "status has no setting code=1.5"),
    ],
)
def test_rejects_unknown_faults(
    registry: FaultRegistry, kind: str, on: str | None, settings: dict[str, object], message: str
) -> None:
    """An unknown kind, target or setting is an error that lists the known ones."""
    with pytest.raises(ValueError, match=re.escape(message)):
        registry.add(kind, on=on, times=1, rate=1.0, settings=settings)


@pytest.mark.parametrize(
    ("times", "rate", "message"),
    [
        (0, 1.0, "times must be at least 1 or None, got 0"),
        (1, -0.1, "rate must be from 0 to 1, got -0.1"),
        (1, 1.1, "rate must be from 0 to 1, got 1.1"),
    ],
)
def test_rejects_wrong_times_and_rates(registry: FaultRegistry, times: int, rate: float, message: str) -> None:
    """Zero times and rates outside 0 to 1 are errors."""
    with pytest.raises(ValueError, match=re.escape(message)):
        add(registry, "stuck", times=times, rate=rate)


def test_fault_hits_as_often_as_specified(registry: FaultRegistry) -> None:
    """A fault counts its hits and ends after `times` of them; then the next fault applies."""
    first = add(registry, "body_429", on="create", times=2)
    second = add(registry, "http_500", on="any", times=None)
    assert [registry.pick("create", None) for _ in range(4)] == [first, first, second, second]
    assert (first.hits, second.hits, registry.active) == (2, 2, [second])
    second.remove()
    second.remove()
    assert registry.pick("create", None) is None


def test_fault_hits_only_its_target(registry: FaultRegistry) -> None:
    """A fault for one endpoint does not hit others."""
    add(registry, "http_500", on="upload")
    assert registry.pick("create", None) is None
    assert registry.pick("upload", None) is not None


def test_rate_is_repeatable(registry: FaultRegistry) -> None:
    """A rate hits about its share of the requests, the same ones with the same seed."""

    def hits(faults: FaultRegistry) -> list[bool]:
        add(faults, "http_500", on="any", times=None, rate=0.25)
        return [faults.pick("poll", None) is not None for _ in range(400)]

    first = hits(registry)
    assert 60 < sum(first) < 140
    assert first == hits(FaultRegistry(random.Random(0)))


def test_task_faults_apply_together(registry: FaultRegistry) -> None:
    """All faults that change a new task apply to the same task, without the response faults."""
    for kind in ("stuck", "fail_task", "http_500", "double_callback"):
        add(registry, kind)
    assert [fault.kind for fault in registry.take("create")] == ["stuck", "fail_task"]
    assert [fault.kind for fault in registry.take("callback")] == ["double_callback"]
    assert [fault.kind for fault in registry.active] == ["http_500"]


def test_header_defines_a_fault() -> None:
    """A header names a fault and its settings; numbers are parsed, the rest is text."""
    fault = parse_header("status; code=455;message=closed for lunch ; status=503")
    assert (fault.kind, fault.settings) == ("status", {"status": 503, "code": 455, "message": "closed for lunch"})
    assert parse_header("delay; seconds=0.5").number("seconds") == 0.5
    assert parse_header("fail_task; code=400").text("code") == "400"
    for text, message in (
        ("x", "unknown fault 'x'"),
        ("x; y=1", "unknown fault 'x'"),
        ("delay; seconds=long", "seconds='long'"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_header(text)


def test_error_shapes_of_kkiai() -> None:
    """Each numbered shape is the one of the contract."""
    replies = {
        shape: kkiai_error(shape, 500, message="broken", type="new_api_error", code="bad") for shape in range(1, 8)
    }
    detail = {"message": "broken", "type": "new_api_error", "param": "", "code": "bad"}
    assert json.loads(replies[1].body) == json.loads(replies[6].body) == {"error": detail}
    assert json.loads(replies[2].body) == {"code": "bad", "message": "broken", "data": None}
    assert json.loads(replies[3].body) == {"error": "broken"}
    assert json.loads(replies[4].body) == {"description": "broken", "type": "new_api_error", "code": "bad"}
    assert replies[5].content_type.startswith("text/html")
    assert replies[7].body == b"broken"
    assert [replies[shape].status for shape in range(1, 8)] == [500, 500, 500, 500, 200, 200, 500]


def test_wrong_token_replaces_the_right_one() -> None:
    """A forged URL differs only in its token."""
    assert wrong_token("http://host:1/kie/abcdefghijklmnop?x=1") == "http://host:1/kie/ponmlkjihgfedcba?x=1"
