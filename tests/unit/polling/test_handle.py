"""Task handles: results, time-outs, updates, and copies from pickles."""

from __future__ import annotations

import asyncio
import math
import pickle
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from sora_chars.errors import (
    AuthenticationError,
    MissingCharacterError,
    SessionClosedError,
    TaskFailedError,
    WaitTimeoutError,
    WatcherStoppedError,
    WrongLoopError,
)
from sora_chars.models import Character, Eta, TaskFailure, TaskSnapshot
from sora_chars.polling.handle import HandleContext, TaskHandle
from sora_chars.polling.watched_task import WatchedTask

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sora_chars.protocols import Provider

pytestmark = pytest.mark.looptime

CHARACTER = Character(id="ch_1", provider="fake", username="a.b")


def snap(state: str, **facts: Any) -> TaskSnapshot:
    """Return a snapshot of the one task of a test."""
    return TaskSnapshot(task_id="t1", provider="fake", state=state, **facts)


WAITING = snap("waiting")
GENERATING = snap("generating")
DONE = snap("success", character=CHARACTER)
FAILED = snap("fail", failure=TaskFailure("501", "generation failed"))


@attrs.define(eq=False)
class FakeWatcher:
    """Stands in for a watcher, and makes handles of one task that the test ends.

    `timeout` is the default of the session.
    """

    task: WatchedTask
    timeout: float = 1800.0
    polls: int = 0
    eta: Eta | None = None

    def handle(self, **facts: Any) -> TaskHandle[Any]:
        """Return a handle that belongs to a session."""
        return TaskHandle(task_id="t1", provider="fake", key="k1", context=self.context(), **facts)

    def context(self) -> HandleContext:
        """Return what a session would lend."""
        this: Any = self
        return HandleContext(self.task, this, this, self.timeout)

    def end(self, outcome: TaskSnapshot) -> None:
        """Show the last snapshot, and end the wait."""
        self.task.update(outcome)
        self.task.finish(outcome)

    async def poll(self, provider: Provider, task: WatchedTask) -> TaskSnapshot:
        """See `TaskWatcher`."""
        del provider
        assert task is self.task
        self.polls += 1
        return GENERATING

    def estimate(self, task: WatchedTask) -> Eta | None:
        """See `TaskWatcher`."""
        assert task is self.task
        return self.eta


@pytest.fixture
async def fake() -> FakeWatcher:
    """Give a task that was just submitted."""
    return FakeWatcher(WatchedTask("t1", asyncio.get_running_loop().create_future(), snapshot=WAITING))


async def collect(handle: TaskHandle[Any], *, timeout: float | None = None) -> list[str]:
    """Return the states that `updates` yields."""
    return [snapshot.state async for snapshot in handle.updates(timeout)]


async def test_awaiting_a_handle_returns_its_result(fake: FakeWatcher) -> None:
    """`await handle` is `await handle.result()`."""
    fake.end(DONE)
    handle = fake.handle()
    assert await handle == await handle.result() == CHARACTER


async def test_shows_the_present_state(fake: FakeWatcher) -> None:
    """A handle has the last snapshot, whether the wait has ended, and what caused the last poll, without waiting."""
    handle = fake.handle()
    assert (handle.done(), handle.snapshot, handle.woken_by) == (False, WAITING, "poll")
    fake.task.woken_by = "callback"
    fake.end(DONE)
    assert (handle.done(), handle.snapshot, handle.woken_by) == (True, DONE, "callback")


async def test_a_failed_task_raises_its_failure(fake: FakeWatcher) -> None:
    """The error of a failed task has its code, its id and its last snapshot."""
    fake.end(FAILED)
    with pytest.raises(TaskFailedError, match="Task t1 failed at fake with code 501: generation failed") as caught:
        await fake.handle()
    assert (caught.value.task_id, caught.value.code, caught.value.snapshot) == ("t1", "501", FAILED)


async def test_a_character_has_the_requested_name(fake: FakeWatcher) -> None:
    """The requested name is used if the provider gives none."""
    fake.end(DONE)
    assert (await fake.handle(name="rex")).name == "rex"
    named = attrs.evolve(DONE, character=attrs.evolve(CHARACTER, name="theirs"))
    other = FakeWatcher(WatchedTask("t1", asyncio.get_running_loop().create_future()))
    other.end(named)
    assert (await other.handle(name="rex")).name == "theirs"


async def test_a_task_request_returns_its_snapshot(fake: FakeWatcher) -> None:
    """The result of a `TaskRequest` is the finished snapshot, even if it holds a character."""
    fake.end(DONE)
    assert await fake.handle(wants=TaskSnapshot) is DONE


async def test_a_missing_character_is_an_error(fake: FakeWatcher) -> None:
    """A success without a character raises an error with the payload; no snapshot is returned instead."""
    fake.end(snap("success", result={"resultUrls": ["https://a.invalid"]}))
    with pytest.raises(MissingCharacterError) as caught:
        await fake.handle(wants=Character)
    assert caught.value.payload == {"resultUrls": ["https://a.invalid"]}


async def test_a_resumed_id_returns_the_snapshot_without_a_character(fake: FakeWatcher) -> None:
    """A handle that knows only the id returns the snapshot if there is no character."""
    fake.end(snap("success", result={}))
    assert await fake.handle() == snap("success", result={})


async def test_a_timeout_does_not_end_the_task(fake: FakeWatcher) -> None:
    """The error holds the handle, which can be awaited again."""
    with pytest.raises(WaitTimeoutError, match="Task t1 at fake still runs") as caught:
        await fake.handle().result(5)
    assert isinstance(caught.value, TimeoutError)
    assert not fake.task.future.done()
    fake.end(DONE)
    assert await caught.value.handle == CHARACTER


@pytest.mark.parametrize("timeout", [0, -1])
async def test_zero_timeout_returns_a_finished_result(fake: FakeWatcher, timeout: float) -> None:
    """A wait of no seconds returns the result of a finished task, and times out for any other."""
    with pytest.raises(WaitTimeoutError):
        await fake.handle().result(timeout)
    fake.end(DONE)
    assert await fake.handle().result(timeout) == CHARACTER


async def test_uses_the_timeout_of_the_session(fake: FakeWatcher) -> None:
    """Without a timeout of its own a wait lasts as long as the session's timeout."""
    fake.timeout = 77.0
    loop = asyncio.get_running_loop()
    with pytest.raises(WaitTimeoutError):
        await fake.handle()
    assert loop.time() == 77.0
    with pytest.raises(WaitTimeoutError):
        await collect(fake.handle())
    assert loop.time() == 154.0


async def test_infinite_timeout(fake: FakeWatcher) -> None:
    """A wait with `math.inf` lasts for a day, until the end."""
    result = asyncio.create_task(fake.handle().result(math.inf))
    states = asyncio.create_task(collect(fake.handle(), timeout=math.inf))
    await asyncio.sleep(24 * 3600)
    fake.end(DONE)
    assert await result == CHARACTER
    assert await states == ["waiting", "success"]


async def test_a_cancelled_wait_does_not_affect_others(fake: FakeWatcher) -> None:
    """A wait that is cancelled and one that times out leave the shared future to the other waits."""
    cancelled, other = (asyncio.create_task(fake.handle().result()) for _ in range(2))
    with pytest.raises(WaitTimeoutError):
        await fake.handle().result(1)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    assert cancelled.cancelled()
    assert not fake.task.future.cancelled()
    fake.end(DONE)
    assert await other == CHARACTER


async def test_updates_are_the_changes_only(fake: FakeWatcher) -> None:
    """The present state comes first, a repeated snapshot is no change, and the final one is the last."""
    states = asyncio.create_task(collect(fake.handle()))
    await asyncio.sleep(1)
    for snapshot in (WAITING, GENERATING, GENERATING):
        fake.task.update(snapshot)
    fake.end(DONE)
    assert await states == ["waiting", "generating", "success"]


async def test_updates_of_a_finished_task(fake: FakeWatcher) -> None:
    """They are its last snapshot."""
    fake.end(DONE)
    assert await collect(fake.handle()) == ["success"]


async def test_a_resumed_task_has_no_update_before_its_first_poll() -> None:
    """If no snapshot is known yet, the first update is that of the first poll."""
    fake = FakeWatcher(WatchedTask("t1", asyncio.get_running_loop().create_future()))
    states = asyncio.create_task(collect(fake.handle()))
    await asyncio.sleep(1)
    fake.end(DONE)
    assert await states == ["success"]


async def test_updates_of_a_failed_task_raise_nothing(fake: FakeWatcher) -> None:
    """The failed snapshot is the last update, and no error follows."""
    fake.end(FAILED)
    assert await collect(fake.handle()) == ["fail"]


@pytest.mark.parametrize("error", [WatcherStoppedError("closed", task_id="t1"), AuthenticationError("bad key")])
async def test_updates_end_with_the_error_of_the_wait(
    fake: FakeWatcher, error: WatcherStoppedError | AuthenticationError
) -> None:
    """The updates raise the error that ended the wait, after all snapshots."""
    fake.task.finish(error)
    states: list[str] = []
    with pytest.raises(type(error)) as caught:
        states.extend([snapshot.state async for snapshot in fake.handle().updates()])
    assert caught.value is error


async def test_a_timeout_of_updates_holds_the_handle(fake: FakeWatcher) -> None:
    """Updates time out as a result does."""
    handle = fake.handle()
    with pytest.raises(WaitTimeoutError) as caught:
        await collect(handle, timeout=3)
    assert caught.value.handle is handle


async def test_listeners_are_removed(fake: FakeWatcher) -> None:
    """Updates that are left early or time out leave no listener behind."""
    async with aclosing(fake.handle().updates()) as updates:
        assert await anext(updates) == WAITING
        assert len(fake.task.listeners) == 1
    with pytest.raises(WaitTimeoutError):
        await collect(fake.handle(), timeout=1)
    assert len(fake.task.listeners) == 0


async def test_eta(fake: FakeWatcher) -> None:
    """A handle has the estimate of its watcher."""
    assert fake.handle().eta is None
    fake.eta = Eta(low=1.0, median=2.0, high=4.0)
    assert fake.handle().eta == fake.eta


async def test_refresh_polls_once(fake: FakeWatcher) -> None:
    """A refresh is one poll, now."""
    assert await fake.handle().refresh() == GENERATING
    assert fake.polls == 1


async def test_pickles_as_ids(fake: FakeWatcher) -> None:
    """The copy knows the task, but not the session; another session attaches it again."""
    copy = pickle.loads(pickle.dumps(fake.handle(name="rex", wants=Character)))
    assert repr(copy) == "TaskHandle(task_id='t1', provider='fake', key='k1', name='rex', state=None)"
    assert copy.wants is Character
    attached = copy.attach(fake.context())
    fake.end(DONE)
    assert (await attached).name == "rex"


async def test_repr_shows_the_ids_and_the_state(fake: FakeWatcher) -> None:
    """It shows neither the raw response nor the result, and a long or unprintable state does not break the line."""
    handle = fake.handle()
    assert repr(handle) == "TaskHandle(task_id='t1', provider='fake', key='k1', state='waiting')"
    fake.task.update(snap("x\n" * 1000))
    assert repr(handle).endswith(", state='x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x…')")
    fake.end(snap("success", character=CHARACTER, raw={"token": "secret"}, result={"token": "secret"}))
    assert repr(handle) == "TaskHandle(task_id='t1', provider='fake', key='k1', state='success')"


async def test_a_detached_handle_names_the_fix(fake: FakeWatcher) -> None:
    """Every use of an unpickled handle but its ids names the task and `session.resume`."""
    copy: TaskHandle[Any] = pickle.loads(pickle.dumps(fake.handle()))
    for attribute in ("snapshot", "woken_by"):
        with pytest.raises(SessionClosedError, match=r"task t1 .*session\.resume\(handle\)"):
            getattr(copy, attribute)
    with pytest.raises(SessionClosedError, match=r"session\.resume\(handle\)"):
        copy.done()
    for wait in (copy.result(), copy.refresh(), collect(copy)):
        with pytest.raises(SessionClosedError, match=r"session\.resume\(handle\)"):
            await wait


def run_in_another_loop(coroutine: Any) -> Any:
    """Return the result of a coroutine in an event loop of its own."""
    with asyncio.Runner() as runner:
        return runner.run(coroutine)


@pytest.fixture
def other_loop() -> Iterator[FakeWatcher]:
    """Give a task that is watched in another event loop."""
    with asyncio.Runner() as runner:
        yield FakeWatcher(WatchedTask("t1", runner.get_loop().create_future(), snapshot=WAITING))


def test_rejects_a_wait_in_another_loop(other_loop: FakeWatcher) -> None:
    """A wait for a task of another event loop raises at once, instead of waiting forever."""
    for wait in (other_loop.handle().result(), collect(other_loop.handle())):
        with pytest.raises(WrongLoopError, match="another event loop"):
            run_in_another_loop(wait)


def test_a_finished_result_is_available_in_any_loop(other_loop: FakeWatcher) -> None:
    """A result can be read after the session and its event loop have ended."""
    other_loop.end(DONE)
    assert run_in_another_loop(other_loop.handle().result()) == CHARACTER
    assert run_in_another_loop(collect(other_loop.handle())) == ["success"]


async def test_outcome_does_not_wait(fake: FakeWatcher) -> None:
    """`outcome` returns at once what `result` returns, or raises `WaitTimeoutError`."""
    with pytest.raises(WaitTimeoutError) as caught:
        fake.handle().outcome()
    fake.end(DONE)
    assert caught.value.handle.outcome() == CHARACTER


async def test_done_callbacks(fake: FakeWatcher) -> None:
    """The event loop calls each callback once with its handle, also if the wait has ended before."""
    called: list[TaskHandle[Any]] = []
    first = fake.handle()
    second = fake.handle()
    first.add_done_callback(called.append)
    fake.end(DONE)
    second.add_done_callback(called.append)
    assert called == []
    await asyncio.sleep(0)
    assert called == [first, second]


def test_rejects_a_done_callback_in_another_loop(other_loop: FakeWatcher) -> None:
    """The callback would run in the wrong event loop."""

    async def add() -> None:
        other_loop.handle().add_done_callback(print)

    with pytest.raises(WrongLoopError, match="another event loop"):
        run_in_another_loop(add())


@pytest.mark.parametrize(("missing_since", "known"), [(None, "could not be polled"), (0.0, "was not found")])
async def test_timeout_without_a_poll_claims_nothing(
    fake: FakeWatcher, missing_since: float | None, known: str
) -> None:
    """A task that no poll has shown is not reported as running."""
    fake.task.snapshot = None
    fake.task.missing_since = missing_since
    handle = fake.handle()
    assert (handle.is_missing, handle.from_ledger) == (missing_since is not None, False)
    with pytest.raises(WaitTimeoutError, match=f"Task t1 at fake {known} before the wait for it timed out"):
        await handle.result(0)
