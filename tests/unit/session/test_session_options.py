"""Every option of a session is checked before anything is sent."""

from __future__ import annotations

import math
from typing import Any

import pytest

from sora_chars import CharacterSession, ConfigurationError, FixedInterval, InvalidRequestError, Kie, Limits
from tests.support.fake_providers import FakeProvider

pytestmark = pytest.mark.looptime

REQUEST: dict[str, Any] = {"from_task": "origin", "clip": "1,3", "prompt": "a dog"}


@pytest.mark.parametrize("provider", ["kie", 5, Kie, [FakeProvider()], None])
def test_rejects_what_is_no_provider(provider: Any) -> None:
    """A provider's name, class or list in the place of a provider is named in the error."""
    with pytest.raises(ConfigurationError, match="providers must be passed one by one"):
        CharacterSession(provider)


@pytest.mark.parametrize("option", ["timeout", "shutdown_timeout"])
@pytest.mark.parametrize("value", ["10", -1, math.nan, True, None])
def test_rejects_invalid_timeouts(option: str, value: Any) -> None:
    """A time-out of a session is a number of seconds, 0 or more."""
    with pytest.raises(ConfigurationError, match=f"^{option} must be a number of seconds, at least 0, got"):
        CharacterSession(FakeProvider(), **{option: value})


@pytest.mark.parametrize("polling", [2, "fast", FixedInterval])
def test_rejects_what_is_no_polling_strategy(polling: Any) -> None:
    """A number or a class in the place of a polling strategy is named in the error."""
    with pytest.raises(ConfigurationError, match="polling must be a polling strategy, such as FixedInterval"):
        CharacterSession(FakeProvider(), polling=polling)


async def record(event: object) -> None:
    """Take an event, as no observer can."""
    raise AssertionError(event)


@pytest.mark.parametrize("observers", [5, [5], [None], "show", print, [record]])
def test_rejects_what_is_no_observer(observers: Any) -> None:
    """What cannot be called with an event at once is named in the error."""
    with pytest.raises(ConfigurationError, match=r"^observers.* must be a .*function.*, got "):
        CharacterSession(FakeProvider(), observers=observers)


@pytest.mark.parametrize("value", [10**400, "5", -1, math.nan])
async def test_rejects_numbers_of_a_step(value: Any) -> None:
    """A number of seconds that no clock counts is an invalid option, also one that no float holds."""
    async with CharacterSession(FakeProvider()) as session:
        await session.register(**REQUEST, key="mine")
        with pytest.raises(InvalidRequestError, match=r"^patience must be a finite number of seconds"):
            await session.advance("mine", patience=value)
        with pytest.raises(InvalidRequestError, match=r"^timeout must be a number of seconds, at least 0, got"):
            await session.wait("mine", timeout=value)
        with pytest.raises(InvalidRequestError, match=r"^idle must be a finite number of seconds, at least 0, got"):
            await anext(session.due(idle=value))
        limits: list[Any] = [value, 1.5, 0]
        for limit in limits:
            with pytest.raises(InvalidRequestError, match=r"^limit must be a whole number from 1, got"):
                await anext(session.due(limit=limit))


def test_lists_all_invalid_options() -> None:
    """One error names everything that is wrong."""
    options: dict[str, Any] = {"timeout": "1", "polling": 2}
    with pytest.raises(ConfigurationError, match=r"providers .*; polling .*; timeout "):
        CharacterSession("kie", **options)  # type: ignore[arg-type] # as a caller without a type checker


@pytest.mark.parametrize("value", ["5", -1, math.nan, True])
async def test_rejects_an_invalid_timeout_before_sending(value: Any) -> None:
    """The time-out of a `create` is checked before anything is sent or paid."""
    provider = FakeProvider()
    async with CharacterSession(provider) as session:
        with pytest.raises(InvalidRequestError, match="timeout must be a number of seconds, at least 0"):
            await session.create(**REQUEST, timeout=value)
        assert [entry async for entry in session.ledger.entries()] == []
    assert provider.posts == []


async def test_accepts_endless_timeouts() -> None:
    """`math.inf` waits without a limit."""
    async with CharacterSession(FakeProvider(end=1), timeout=math.inf, polling=FixedInterval(1.0)) as session:
        assert (await session.create(**REQUEST, timeout=math.inf)).id == "ch_1"


@pytest.mark.parametrize("task", [5, None, b"t1", " "])
async def test_rejects_what_is_no_task_id(task: Any) -> None:
    """A task id that is no text is an error that shows it."""
    async with CharacterSession(FakeProvider()) as session:
        with pytest.raises(InvalidRequestError, match="task_id: must be the id of a task, got"):
            session.resume(task)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"api_key": 5}, "api_key must be text, got int"),
        ({"api_key": "k", "limits": (20, 10)}, r"limits must be Limits\("),
        ({"api_key": "k", "timeout": math.inf}, "timeout must be a number of seconds above 0, got inf"),
        ({"api_key": "k", "timeout": "60"}, "timeout must be a number of seconds above 0, got '60'"),
        ({"api_key": "k", "timeout": 0}, "timeout must be a number of seconds above 0, got 0"),
    ],
)
def test_rejects_invalid_options_of_a_provider(options: dict[str, Any], message: str) -> None:
    """A provider checks its options when it is created."""
    with pytest.raises(ConfigurationError, match=message):
        Kie(**options)


def test_limits_may_be_lists() -> None:
    """A limit that comes as a list, as from JSON, is a limit."""
    assert Limits(creates=[20, 10.0]) == Limits(creates=(20, 10.0))  # type: ignore[arg-type] # as from JSON
    assert hash(Limits(creates=[20, 10.0])) == hash(Limits(creates=(20, 10.0)))  # type: ignore[arg-type] # as above
