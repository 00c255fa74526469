"""Option values of `sora-chars emulate`."""

from __future__ import annotations

from typing import Any

import click
import pytest

from sora_chars.cli.commands import emulate


@pytest.mark.parametrize(("text", "value"), [("5,20", (5.0, 20.0)), ("0,0", (0.0, 0.0)), ("1.5,2", (1.5, 2.0))])
def test_seconds_range(text: str, value: tuple[float, float]) -> None:
    """A range is two bounds in order."""
    assert emulate.seconds_range(text) == value


@pytest.mark.parametrize("text", ["", "5", "20,5", "-1,2", "1,inf", "nan,2", "a,b"])
def test_rejects_invalid_ranges(text: str) -> None:
    """Both bounds are required, finite and in order."""
    with pytest.raises(click.BadParameter, match="LOW,HIGH"):
        emulate.seconds_range(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("stuck", ("stuck", {})),
        (
            "delay:on=poll,seconds=0.5,rate=0.1,times=null",
            ("delay", {"on": "poll", "seconds": 0.5, "rate": 0.1, "times": None}),
        ),
        ("fail_task:code=500", ("fail_task", {"code": "500"})),
        ("unknown:a=1", ("unknown", {"a": 1})),
    ],
)
def test_fault(text: str, value: tuple[str, dict[str, Any]]) -> None:
    """Settings are numbers, unless the fault declares the setting as text."""
    assert emulate.fault(text) == value
