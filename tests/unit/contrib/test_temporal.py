"""The workflow of a key, without a Temporal server: what follows each step."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("temporalio")

from temporalio.exceptions import ActivityError, ApplicationError, RetryState

from sora_chars.contrib import temporal


class _ContinuedError(Exception):
    """The workflow goes on with an empty history."""


def lost(cause: BaseException | None) -> ActivityError:
    """Return what a workflow sees of an activity that failed by `cause`."""
    facts: dict[str, Any] = {"activity_type": "a", "activity_id": "1", "retry_state": RetryState.TIMEOUT}
    error = ActivityError("lost", scheduled_event_id=1, started_event_id=2, identity="", **facts)
    error.__cause__ = cause
    return error


class Engine(SimpleNamespace):
    """What the workflow uses of Temporal. Each step of `steps` is returned or raised."""

    def __init__(self, *steps: object, is_full: bool = False) -> None:
        super().__init__(steps=list(steps), delays=[], is_full=is_full)

    async def execute_activity_method(self, *_: object, **__: object) -> object:
        """Return or raise the next step."""
        step = self.steps.pop(0)
        if isinstance(step, BaseException):
            raise step
        return step

    async def wait_condition(self, _: object, *, timeout: float) -> None:
        """Note a wait that no signal ends."""
        self.delays.append(timeout)
        raise TimeoutError

    def info(self) -> SimpleNamespace:
        """Return whether the history has become long."""
        return SimpleNamespace(is_continue_as_new_suggested=lambda: self.is_full)

    def continue_as_new(self, key: str) -> None:
        """End this run."""
        raise _ContinuedError(key)


RUNNING = {"state": "running", "retry_in": 7.0, "character": None, "error": None}
ENDED = {"state": "succeeded", "retry_in": None, "character": {"id": "c"}, "error": None}


async def test_a_lost_step_is_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that died or whose session closed delays the next step."""
    engine = Engine(lost(None), lost(ApplicationError("closed")), RUNNING, ENDED)
    monkeypatch.setattr(temporal, "workflow", engine)
    assert await temporal.CharacterWorkflow().run("k") == ENDED
    assert engine.delays == [5.0, 5.0, 7.0]


async def test_a_step_that_cannot_succeed_fails_the_workflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that is not registered fails the workflow at once."""
    monkeypatch.setattr(temporal, "workflow", Engine(lost(ApplicationError("no such key", non_retryable=True))))
    with pytest.raises(ActivityError):
        await temporal.CharacterWorkflow().run("k")


async def test_a_long_history_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A workflow with a long history goes on as a new one."""
    monkeypatch.setattr(temporal, "workflow", Engine(RUNNING, is_full=True))
    with pytest.raises(_ContinuedError, match="k"):
        await temporal.CharacterWorkflow().run("k")
