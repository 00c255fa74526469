"""The table of faults, and which of the active ones strike."""

from __future__ import annotations

import json
import random
import re

import pytest

from sora_chars.testing.emulator.callbacks import wrong_token
from sora_chars.testing.emulator.faults import KINDS, PLACES, Fault, FaultBox, from_header
from sora_chars.testing.emulator.responses import kkiai_error


@pytest.fixture
def box() -> FaultBox:
    """No faults yet."""
    return FaultBox(random.Random(0))


def add(box: FaultBox, kind: str, *, on: str | None = None, times: int | None = 1, rate: float = 1.0) -> Fault:
    """Add a fault with the settings it comes with."""
    return box.add(kind, on=on, times=times, rate=rate, settings={})


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_can_be_added_everywhere_it_says(box: FaultBox, kind: str) -> None:
    """Each row names known places, acts in at least one way, and can be added with its own settings."""
    row = KINDS[kind]
    assert set(row.places) <= set(PLACES)
    assert row.answer or row.send or row.mark or row.plan
    assert add(box, kind).on == row.places[0]
    assert [add(box, kind, on=place).on for place in row.places] == list(row.places)


def test_a_setting_with_choices_takes_each_and_no_other(box: FaultBox) -> None:
    """A setting that lists its choices defaults to the first, takes each of them and refuses the rest."""
    assert add(box, "not_visible").text("form") == "422"
    for form in ("422", "404", "null"):
        assert box.add("not_visible", on=None, times=1, rate=1.0, settings={"form": form}).text("form") == form
    with pytest.raises(ValueError, match="not_visible has no setting form='500'"):
        box.add("not_visible", on=None, times=1, rate=1.0, settings={"form": "500"})


@pytest.mark.parametrize(
    ("kind", "on", "settings", "message"),
    [
        ("nonsense", None, {}, "no fault 'nonsense'; there are: body_429, body_500, "),
        ("stuck", "poll", {}, "stuck cannot strike on 'poll'; it can on: create"),
        ("stuck", None, {"seconds": 1.0}, "stuck has no setting seconds=1.0; its settings: {}"),
        ("delay", None, {"seconds": "1"}, "delay has no setting seconds='1'"),
        ("status", None, {"code": 1.5}, "status has no setting code=1.5"),
    ],
)
def test_an_unknown_fault_is_refused(
    box: FaultBox, kind: str, on: str | None, settings: dict[str, object], message: str
) -> None:
    """A kind, a place or a setting that does not exist is an error that lists what does."""
    with pytest.raises(ValueError, match=re.escape(message)):
        box.add(kind, on=on, times=1, rate=1.0, settings=settings)


@pytest.mark.parametrize(("times", "rate"), [(0, 1.0), (1, -0.1), (1, 1.1)])
def test_a_fault_that_could_never_be_right_is_refused(box: FaultBox, times: int, rate: float) -> None:
    """Zero times and rates outside 0 to 1 are errors."""
    with pytest.raises(ValueError, match="rate is 0 to 1 and times at least 1"):
        add(box, "stuck", times=times, rate=rate)


def test_a_fault_strikes_as_often_as_told(box: FaultBox) -> None:
    """A fault is spent after its times, counts its hits, and the next one takes its turn."""
    first = add(box, "body_429", on="create", times=2)
    second = add(box, "http_500", on="any", times=None)
    assert [box.pick("create", None) for _ in range(4)] == [first, first, second, second]
    assert (first.hits, second.hits, box.active) == (2, 2, [second])
    second.remove()
    second.remove()
    assert box.pick("create", None) is None


def test_a_fault_strikes_only_at_its_place(box: FaultBox) -> None:
    """A fault for one place leaves the others alone."""
    add(box, "http_500", on="upload")
    assert box.pick("create", None) is None
    assert box.pick("upload", None) is not None


def test_a_rate_is_a_share_and_repeatable(box: FaultBox) -> None:
    """A rate consecutive_429s about its share of the requests, the same ones with the same seed."""

    def struck(chance: FaultBox) -> list[bool]:
        add(chance, "http_500", on="any", times=None, rate=0.25)
        return [chance.pick("poll", None) is not None for _ in range(400)]

    first = struck(box)
    assert 60 < sum(first) < 140
    assert first == struck(FaultBox(random.Random(0)))


def test_task_faults_act_together(box: FaultBox) -> None:
    """All faults that change a new task act on the same one, and never as an answer."""
    for kind in ("stuck", "fail_task", "http_500", "double_callback"):
        add(box, kind)
    assert [fault.kind for fault in box.take("create")] == ["stuck", "fail_task"]
    assert [fault.kind for fault in box.take("callback")] == ["double_callback"]
    assert [fault.kind for fault in box.active] == ["http_500"]


def test_a_header_names_a_fault_and_its_settings() -> None:
    """A header gives one request a fault with settings, numbers as numbers and the rest as text."""
    fault = from_header("status; code=455;message=closed for lunch ; status=503")
    assert (fault.kind, fault.settings) == ("status", {"status": 503, "code": 455, "message": "closed for lunch"})
    assert from_header("delay; seconds=0.5").number("seconds") == 0.5
    assert from_header("fail_task; code=400").text("code") == "400"
    for text, message in (("x", "no fault 'x'"), ("x; y=1", "no fault 'x'"), ("delay; seconds=long", "seconds='long'")):
        with pytest.raises(ValueError, match=message):
            from_header(text)


def test_the_seven_error_shapes_of_kkiai() -> None:
    """Each numbered shape is what the contract shows under its number."""
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


def test_a_wrong_token_stands_where_the_right_one_stood() -> None:
    """A forged URL differs in its token and in nothing else."""
    assert wrong_token("http://host:1/kie/abcdefghijklmnop?x=1") == "http://host:1/kie/ponmlkjihgfedcba?x=1"
