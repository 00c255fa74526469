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


def seen(state: str, **facts: Any) -> TaskSnapshot:
    """A snapshot of the one task of a test."""
    return TaskSnapshot(task_id="t1", provider="fake", state=state, **facts)


WAITING, GENERATING, DONE = seen("waiting"), seen("generating"), seen("success", character=CHARACTER)
FAILED = seen("fail", failure=TaskFailure("501", "generation failed"))


@attrs.define(eq=False)
class Stage:
    """A watch that the test moves by hand, in a watcher's stead, and handles of it. `wait` is the session's default."""

    watch: WatchedTask
    wait: float = 1800.0
    polls: int = 0
    eta: Eta | None = None

    def handle(self, **facts: Any) -> TaskHandle[Any]:
        """A live handle."""
        return TaskHandle(task_id="t1", provider="fake", key="k1", context=self.live(), **facts)

    def live(self) -> HandleContext:
        """What a session would lend."""
        this: Any = self
        return HandleContext(self.watch, this, this, self.wait)

    def end(self, outcome: TaskSnapshot) -> None:
        """Show the last snapshot and settle the wait."""
        self.watch.update(outcome)
        self.watch.finish(outcome)

    async def poll(self, provider: Provider, watch: WatchedTask) -> TaskSnapshot:
        """See `TaskWatcher`."""
        del provider
        assert watch is self.watch
        self.polls += 1
        return GENERATING

    def estimate(self, watch: WatchedTask) -> Eta | None:
        """See `TaskWatcher`."""
        assert watch is self.watch
        return self.eta


@pytest.fixture
async def stage() -> Stage:
    """A task that was just submitted."""
    return Stage(WatchedTask("t1", asyncio.get_running_loop().create_future(), snapshot=WAITING))


async def collect(handle: TaskHandle[Any], *, timeout: float | None = None) -> list[str]:
    """The states that `updates` yields."""
    return [snapshot.state async for snapshot in handle.updates(timeout)]


async def test_awaiting_a_handle_gives_its_result(stage: Stage) -> None:
    """`await handle` is `await handle.result()`."""
    stage.end(DONE)
    handle = stage.handle()
    assert await handle == await handle.result() == CHARACTER


async def test_a_handle_shows_how_the_task_is(stage: Stage) -> None:
    """A handle tells the last snapshot, whether the wait is over, and what woke it, without waiting."""
    handle = stage.handle()
    assert (handle.done(), handle.snapshot, handle.woken_by) == (False, WAITING, "poll")
    stage.watch.woken_by = "callback"
    stage.end(DONE)
    assert (handle.done(), handle.snapshot, handle.woken_by) == (True, DONE, "callback")


async def test_a_failed_task_raises_what_the_provider_said(stage: Stage) -> None:
    """The error of a failed task carries its code, its id and its last snapshot."""
    stage.end(FAILED)
    with pytest.raises(TaskFailedError, match="Task t1 failed at fake with code 501: generation failed") as caught:
        await stage.handle()
    assert (caught.value.task_id, caught.value.code, caught.value.snapshot) == ("t1", "501", FAILED)


async def test_a_character_gets_the_name_that_was_asked_for(stage: Stage) -> None:
    """The name stands in for one that the provider does not tell."""
    stage.end(DONE)
    assert (await stage.handle(name="rex")).name == "rex"
    named = attrs.evolve(DONE, character=attrs.evolve(CHARACTER, name="theirs"))
    other = Stage(WatchedTask("t1", asyncio.get_running_loop().create_future()))
    other.end(named)
    assert (await other.handle(name="rex")).name == "theirs"


async def test_a_task_request_gets_its_snapshot(stage: Stage) -> None:
    """Whoever asked for a task gets the finished snapshot, even where it holds a character."""
    stage.end(DONE)
    assert await stage.handle(wants=TaskSnapshot) is DONE


async def test_a_character_request_without_a_character_is_an_error(stage: Stage) -> None:
    """A success without a character is an error that shows the payload, and no snapshot in its place."""
    stage.end(seen("success", result={"resultUrls": ["https://a.invalid"]}))
    with pytest.raises(MissingCharacterError) as caught:
        await stage.handle(wants=Character)
    assert caught.value.payload == {"resultUrls": ["https://a.invalid"]}


async def test_a_resumed_id_gets_whatever_there_is(stage: Stage) -> None:
    """A handle that knows only the id takes the snapshot where there is no character."""
    stage.end(seen("success", result={}))
    assert await stage.handle() == seen("success", result={})


async def test_a_wait_that_runs_out_leaves_the_task_alone(stage: Stage) -> None:
    """The error carries the live handle, which can be awaited again."""
    with pytest.raises(WaitTimeoutError, match="Task t1 at fake still runs") as caught:
        await stage.handle().result(5)
    assert isinstance(caught.value, TimeoutError)
    assert not stage.watch.future.done()
    stage.end(DONE)
    assert await caught.value.handle == CHARACTER


@pytest.mark.parametrize("timeout", [0, -1])
async def test_no_time_is_enough_for_what_is_done(stage: Stage, timeout: float) -> None:
    """A wait of no seconds gives the result of an ended task, and says of any other that it still runs."""
    with pytest.raises(WaitTimeoutError):
        await stage.handle().result(timeout)
    stage.end(DONE)
    assert await stage.handle().result(timeout) == CHARACTER


async def test_the_default_wait_is_the_sessions(stage: Stage) -> None:
    """Without a time-out of its own a wait lasts as long as the session says."""
    stage.wait, loop = 77.0, asyncio.get_running_loop()
    with pytest.raises(WaitTimeoutError):
        await stage.handle()
    assert loop.time() == 77.0
    with pytest.raises(WaitTimeoutError):
        await collect(stage.handle())
    assert loop.time() == 154.0


async def test_an_endless_wait_has_no_end(stage: Stage) -> None:
    """`math.inf` waits for a day, and for the end."""
    result = asyncio.create_task(stage.handle().result(math.inf))
    states = asyncio.create_task(collect(stage.handle(), timeout=math.inf))
    await asyncio.sleep(24 * 3600)
    stage.end(DONE)
    assert await result == CHARACTER
    assert await states == ["waiting", "success"]


async def test_a_waiter_that_gives_up_disturbs_no_other(stage: Stage) -> None:
    """A cancelled wait and one that ran out leave the shared future to those who still wait."""
    cancelled, patient = (asyncio.create_task(stage.handle().result()) for _ in range(2))
    with pytest.raises(WaitTimeoutError):
        await stage.handle().result(1)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    assert cancelled.cancelled()
    assert not stage.watch.future.cancelled()
    stage.end(DONE)
    assert await patient == CHARACTER


async def test_updates_are_the_changes_only(stage: Stage) -> None:
    """The present state comes first, a repeated snapshot is no change, and the last one ends it."""
    states = asyncio.create_task(collect(stage.handle()))
    await asyncio.sleep(1)
    for snapshot in (WAITING, GENERATING, GENERATING):
        stage.watch.update(snapshot)
    stage.end(DONE)
    assert await states == ["waiting", "generating", "success"]


async def test_a_late_joiner_gets_the_final_state(stage: Stage) -> None:
    """Updates of an ended task are its last snapshot."""
    stage.end(DONE)
    assert await collect(stage.handle()) == ["success"]


async def test_a_resumed_task_has_no_update_before_its_first_look() -> None:
    """Where nothing is known yet, the first update is what the first look shows."""
    stage = Stage(WatchedTask("t1", asyncio.get_running_loop().create_future()))
    states = asyncio.create_task(collect(stage.handle()))
    await asyncio.sleep(1)
    stage.end(DONE)
    assert await states == ["success"]


async def test_a_failed_task_ends_its_updates_quietly(stage: Stage) -> None:
    """The failed snapshot is the last update, and no error."""
    stage.end(FAILED)
    assert await collect(stage.handle()) == ["fail"]


@pytest.mark.parametrize("error", [WatcherStoppedError("closed", task_id="t1"), AuthenticationError("bad key")])
async def test_updates_end_with_the_error_of_the_wait(
    stage: Stage, error: WatcherStoppedError | AuthenticationError
) -> None:
    """A wait that ended without an end of the task raises in its updates too, once what was seen is told."""
    stage.watch.finish(error)
    states: list[str] = []
    with pytest.raises(type(error)) as caught:
        states.extend([snapshot.state async for snapshot in stage.handle().updates()])
    assert caught.value is error


async def test_updates_that_run_out_carry_the_handle(stage: Stage) -> None:
    """The time-out of updates is that of a result: live handle, running task."""
    handle = stage.handle()
    with pytest.raises(WaitTimeoutError) as caught:
        await collect(handle, timeout=3)
    assert caught.value.handle is handle


async def test_who_stops_listening_is_forgotten(stage: Stage) -> None:
    """Leaving the updates early, or by a time-out, leaves no listener behind."""
    async with aclosing(stage.handle().updates()) as updates:
        assert await anext(updates) == WAITING
        assert len(stage.watch.listeners) == 1
    with pytest.raises(WaitTimeoutError):
        await collect(stage.handle(), timeout=1)
    assert len(stage.watch.listeners) == 0


async def test_what_is_left_is_told(stage: Stage) -> None:
    """A handle says how long the task will take, as soon as its session knows."""
    assert stage.handle().eta is None
    stage.eta = Eta(low=1.0, median=2.0, high=4.0)
    assert stage.handle().eta == stage.eta


async def test_refresh_looks_once(stage: Stage) -> None:
    """A refresh is one look, now."""
    assert await stage.handle().refresh() == GENERATING
    assert stage.polls == 1


async def test_a_handle_pickles_as_its_ids(stage: Stage) -> None:
    """The copy knows the task and nothing of the session, and a session makes it live again."""
    copy = pickle.loads(pickle.dumps(stage.handle(name="rex", wants=Character)))
    assert repr(copy) == "TaskHandle(task_id='t1', provider='fake', key='k1', name='rex')"
    assert copy.wants is Character
    live = copy.attach(stage.live())
    stage.end(DONE)
    assert (await live).name == "rex"


async def test_a_detached_handle_says_how_to_make_it_live(stage: Stage) -> None:
    """Every use of a rebuilt handle but its ids names the task and the way back."""
    copy: TaskHandle[Any] = pickle.loads(pickle.dumps(stage.handle()))
    for use in ("snapshot", "woken_by"):
        with pytest.raises(SessionClosedError, match=r"task t1 .*session\.resume\(handle\)"):
            getattr(copy, use)
    with pytest.raises(SessionClosedError, match=r"session\.resume\(handle\)"):
        copy.done()
    for wait in (copy.result(), copy.refresh(), collect(copy)):
        with pytest.raises(SessionClosedError, match=r"session\.resume\(handle\)"):
            await wait


def run_elsewhere(coroutine: Any) -> Any:
    """The result of a coroutine in an event loop of its own."""
    with asyncio.Runner() as runner:
        return runner.run(coroutine)


@pytest.fixture
def elsewhere() -> Iterator[Stage]:
    """A task that is watched in another event loop."""
    with asyncio.Runner() as runner:
        yield Stage(WatchedTask("t1", runner.get_loop().create_future(), snapshot=WAITING))


def test_a_handle_awaited_in_another_loop_says_so(elsewhere: Stage) -> None:
    """A wait for a task of another event loop is an error at once, and no wait that never ends."""
    for wait in (elsewhere.handle().result(), collect(elsewhere.handle())):
        with pytest.raises(WrongLoopError, match="another event loop"):
            run_elsewhere(wait)


def test_a_handle_that_is_done_gives_its_result_in_any_loop(elsewhere: Stage) -> None:
    """What has come can be read after the session and its loop are gone."""
    elsewhere.end(DONE)
    assert run_elsewhere(elsewhere.handle().result()) == CHARACTER
    assert run_elsewhere(collect(elsewhere.handle())) == ["success"]


async def test_a_handle_tells_without_waiting(stage: Stage) -> None:
    """`outcome` gives at once what `result` gives, and that a task still runs is its error."""
    with pytest.raises(WaitTimeoutError) as caught:
        stage.handle().outcome()
    stage.end(DONE)
    assert caught.value.handle.outcome() == CHARACTER


async def test_a_handle_calls_back_when_it_is_done(stage: Stage) -> None:
    """Whoever asked is called once with the handle, from the event loop; also when it is done already."""
    called: list[TaskHandle[Any]] = []
    first, second = stage.handle(), stage.handle()
    first.add_done_callback(called.append)
    stage.end(DONE)
    second.add_done_callback(called.append)
    assert called == []
    await asyncio.sleep(0)
    assert called == [first, second]


def test_a_handle_calls_back_in_its_own_loop(elsewhere: Stage) -> None:
    """In another one it would call from there."""

    async def ask() -> None:
        elsewhere.handle().add_done_callback(print)

    with pytest.raises(WrongLoopError, match="another event loop"):
        run_elsewhere(ask())
