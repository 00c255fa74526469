"""The session without `await`: from threads, in a forked child, beside a running loop, and at the end of a process."""

from __future__ import annotations

import asyncio
import atexit
import pickle
import signal
import subprocess
import sys
import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from sora_chars import CharacterRequest, FixedInterval, Kie, TaskRequest
from sora_chars import CharacterSession as AsyncSession
from sora_chars.errors import (
    InvalidRequestError,
    LedgerError,
    SessionClosedError,
    TaskFailedError,
    WaitTimeoutError,
    WrongLoopError,
)
from sora_chars.events import Ended, Event, Registered
from sora_chars.loop_thread import LoopThread
from sora_chars.sync import CharacterSession, TaskHandle

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sora_chars.testing import Emulator

REQUEST: dict[str, Any] = {"from_task": "a" * 32, "clip": "1,3", "prompt": "a dog"}
trace: ContextVar[str] = ContextVar("trace", default="none")


def session_at(emulator: Emulator, **options: Any) -> CharacterSession:
    """Return a session that polls every 5 ms."""
    kie = Kie("kie-key", base_url=emulator.url, limits=None)
    return CharacterSession(kie, polling=FixedInterval(0.005), **options)


@pytest.fixture
def emulator(sora_emulator: Emulator) -> Emulator:
    """A running emulator that has a video with the id "aaa..."."""
    sora_emulator.add_origin("a" * 32)
    return sora_emulator


@pytest.fixture
def session(emulator: Emulator) -> Iterator[CharacterSession]:
    """An open session."""
    with session_at(emulator) as opened:
        yield opened


def test_creates_a_character(session: CharacterSession) -> None:
    """`create` and `submit` return what the async session returns; the calls on records work too."""
    character = session.create(**REQUEST, key="mine")
    handle = session.submit(**REQUEST, key="mine")
    assert (handle.done(), handle.result().id, handle.key) == (True, character.id, "mine")
    entry = session.entry("mine")
    assert entry
    assert entry.state == "succeeded"
    assert [saved.character.id for saved in session.characters()] == [character.id]
    assert session.credit() > 0
    with pytest.raises(InvalidRequestError):
        session.create(prompt="nothing to make it of")


def test_follows_a_task(emulator: Emulator, session: CharacterSession) -> None:
    """A handle shows updates and its estimate, is pickled as ids, and can be resumed."""
    emulator.fault("stuck")
    handle = session.submit(**REQUEST, key="mine")
    assert f"task_id='{handle.task_id}'" in repr(handle)
    with pytest.raises(WaitTimeoutError) as caught:
        handle.result(0.01)
    assert isinstance(caught.value.handle, TaskHandle)  # it has no `await` either
    assert caught.value.handle.refresh().status == "running"
    with pytest.raises(WaitTimeoutError) as caught:
        session.wait("mine", timeout=0.01)
    assert caught.value.handle is None
    assert handle.refresh().status == "running"
    assert handle.eta is None
    copy = pickle.loads(pickle.dumps(handle))
    resumed = session.resume(copy)
    assert [one.key for one in session.recover()] == ["mine"]
    emulator.finish(handle.task_id)
    assert [snapshot.status for snapshot in resumed.updates()][-1] == "succeeded"
    assert handle.snapshot
    assert handle.snapshot.finished


def test_retries_a_failed_request(emulator: Emulator, session: CharacterSession) -> None:
    """`retry` returns the handle of the new task."""
    emulator.fault("stuck")
    first = session.submit(**REQUEST, key="mine")
    emulator.fail(first.task_id)
    with pytest.raises(Exception, match="failed"):
        first.result()
    assert session.retry("mine").result().id


def test_restarts_a_failed_request(emulator: Emulator, session: CharacterSession) -> None:
    """`restart` records another attempt, which `advance` sends."""
    emulator.fault("stuck")
    first = session.submit(**REQUEST, key="mine")
    emulator.fail(first.task_id)
    with pytest.raises(TaskFailedError):
        first.result()
    entry = session.restart("mine", prompt="a cat")
    assert (entry.state, entry.request["prompt"]) == ("pending", "a cat")
    assert session.advance("mine").entry.task_id not in {None, first.task_id}


def test_creates_many(session: CharacterSession) -> None:
    """A batch is entered and iterated over as the async one."""
    rows = [CharacterRequest(**REQUEST, key=f"key {number}") for number in range(5)]
    with session.create_many(rows, concurrency=2) as batch:
        keys = {outcome.key for outcome in batch}
    assert len(keys) == 5
    assert batch.progress.succeeded == 5
    assert batch.stopped is None
    assert [outcome.key for outcome in session.create_all(rows)] == [row.key for row in rows]


def test_finds_what_no_process_carries_on(session: CharacterSession) -> None:
    """`due` yields a registered request, whose character `wait` returns once `advance` has made it."""
    session.register(**REQUEST, key="mine")
    assert [entry.key for entry in session.due(idle=0)] == ["mine"]
    while not session.advance("mine").finished:
        pass
    assert list(session.due(idle=0)) == []
    assert session.wait("mine", timeout=0).provider == "kie"


def test_returns_the_statement_of_a_registration(emulator: Emulator, postgres_url: str) -> None:
    """`registering` returns the statement that records a request in a transaction of the application's."""
    with session_at(emulator, ledger=postgres_url) as session, psycopg.connect(postgres_url) as connection:
        new = session.registering(**REQUEST, key="mine")
        connection.execute(new.statement.encode(), new.values)
        assert session.entry("mine") is None
        connection.commit()
        assert session.entry("mine")


def test_names_are_those_of_the_async_session() -> None:
    """Each public method of the async session has one of its name; callbacks need a server's event loop."""
    others = {"open", "aclose", "aiohttp_app", "asgi", "dispatcher", "hook", "ledger", "observers"}
    names = {name for name in dir(AsyncSession) if not name.startswith("_")} - others
    assert names <= set(dir(CharacterSession))


def test_streams_events(session: CharacterSession) -> None:
    """Events are iterated over as they come."""
    events = session.events()
    worker = threading.Thread(target=session.create, kwargs=REQUEST)
    worker.start()
    seen: list[Event] = []
    for event in events:
        seen.append(event)
        if isinstance(event, Ended):
            break
    worker.join()
    assert type(seen[0]) is Registered


def test_several_threads_share_a_session(emulator: Emulator, session: CharacterSession) -> None:
    """Calls of several threads run at the same time, each in the context of its caller."""
    seen: dict[str | None, str] = {}

    def observe(event: Event) -> None:
        if isinstance(event, Ended):
            seen[event.key] = trace.get()

    def create(number: int) -> str:
        trace.set(f"trace {number}")
        return session.create(**REQUEST, key=f"key {number}").id

    session.observers.add(observe)
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda number: copy_context().run(create, number), range(8)))
    assert len(set(made)) == 8
    assert seen == {f"key {number}": f"trace {number}" for number in range(8)}
    assert emulator.counts.creates == 8


async def test_works_inside_a_running_loop(emulator: Emulator) -> None:
    """In a notebook, whose cells run inside an event loop, a call waits without that loop."""
    with session_at(emulator) as session:
        assert session.create(**REQUEST).id
    assert asyncio.get_running_loop().is_running()


def test_a_call_in_its_own_loop_is_an_error(session: CharacterSession) -> None:
    """A call from within the event loop that would have to run it raises, and the caller does not hang."""
    errors: list[Exception] = []

    def observe(event: Event) -> None:
        try:
            session.entry(str(event.key))
        except WrongLoopError as error:
            errors.append(error)

    session.observers.add(observe)
    session.create(**REQUEST)
    assert errors


def test_waits_in_steps_where_a_wait_cannot_be_interrupted(
    session: CharacterSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Windows a call wakes up now and then, so that Ctrl-C reaches it; its result is the same."""
    monkeypatch.setattr("sora_chars.loop_thread._WAKE_UP_INTERVAL", 0.001)
    assert session.create(**REQUEST).id


def test_opens_again_after_closing(emulator: Emulator, tmp_path: Path) -> None:
    """A session opens with its first call, and again after `close`, which may be called twice."""
    session = session_at(emulator, ledger=tmp_path / "characters.db")
    first = session.create(**REQUEST, key="mine")
    session.close()
    session.close()
    assert session.create(**REQUEST, key="mine").id == first.id
    session.close()
    assert emulator.counts.creates == 1


def test_an_iterator_that_is_left_does_not_open_a_session_again(session: CharacterSession) -> None:
    """The rest of an iteration ends after the session was closed, and the session stays closed."""
    for number in range(2):
        session.register(**REQUEST, key=f"mine-{number}")
    due = session.due(idle=0)
    assert next(due).key == "mine-0"
    session.close()
    del due
    assert session._thread is None


def test_an_open_session_does_not_wait_for_another_to_open(emulator: Emulator, session: CharacterSession) -> None:
    """A session that opens slowly holds up no call of an open one, and no observer: that gets its error at once."""
    opening = threading.Event()
    released = threading.Event()
    errors: list[WrongLoopError] = []

    class SlowSession(AsyncSession):
        async def open(self) -> Any:
            opening.set()
            await asyncio.to_thread(released.wait, 10)
            return await super().open()

    def observe(_: Event) -> None:
        with pytest.raises(WrongLoopError) as caught:
            closed.entry("mine")
        errors.append(caught.value)

    closed = session_at(emulator)
    slow = session_at(emulator)
    slow._session = SlowSession(Kie("kie-key", base_url=emulator.url))
    session.observers.add(observe)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(slow.entry, "mine")
        assert opening.wait(10)
        calling = pool.submit(session.register, **REQUEST, key="mine")
        try:
            assert calling.result(5).key == "mine"
        finally:
            released.set()
        assert waiting.result(10) is None
    slow.close()
    assert errors


def test_a_task_request_returns_its_snapshot(session: CharacterSession) -> None:
    """A `TaskRequest` ends with a snapshot."""
    request = TaskRequest(model="sora-2-text-to-video", input={"prompt": "A dog", "n_frames": "10"})
    assert session.create(request).finished


PROGRAM = """
import os, sys, threading, time, signal
from sora_chars import FixedInterval, Kie
from sora_chars.sync import CharacterSession, TaskHandle

REQUEST = {"from_task": "a" * 32, "clip": "1,3", "prompt": "a dog"}
session = CharacterSession(Kie("kie-key", base_url=sys.argv[1], limits=None), ledger=sys.argv[2],
                           polling=FixedInterval(0.005))
"""


def run(code: str, emulator: Emulator, ledger: Path) -> subprocess.CompletedProcess[str]:
    """Run a program that has a session which is not open yet."""
    command = [sys.executable, "-W", "error", "-c", PROGRAM + code, emulator.url, str(ledger)]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)


FORK = """
child = os.fork()
character = session.create(**REQUEST)
os.write(1, f"{character.id}\\n".encode())
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows does not fork")
def test_opens_after_a_fork(emulator: Emulator, tmp_path: Path) -> None:
    """Parent and child each open the session of their module with the first call, and close it at exit."""
    done = run(FORK, emulator, tmp_path / "characters.db")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(set(done.stdout.split())) == 2
    assert emulator.counts.creates == 2


def test_threads_close_and_call_one_session(emulator: Emulator) -> None:
    """Calls of a session that another thread is closing end with a clear error, and a later call opens it again."""
    session = session_at(emulator)
    allowed = {
        "This session is not open. Use it inside `async with`.",
        "The session was closed before this request was sent. Nothing was sent.",
    }
    found: set[str] = set()

    def work(number: int) -> None:
        for step in range(12):
            if (number + step) % 4 == 0:
                session.close()
                continue
            try:
                session.register(**REQUEST, key=f"{number} {step}")
            except (SessionClosedError, LedgerError) as error:
                found.add(str(error))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert {text for text in found if "This ledger is not open" not in text} <= allowed
    assert session.create(**REQUEST).id
    session.close()


class SlowKie(Kie):
    """A provider whose opening takes as long as a test decides."""

    def __init__(self, emulator: Emulator) -> None:
        super().__init__("kie-key", base_url=emulator.url, limits=None)
        self.opening = threading.Event()
        self.released = threading.Event()

    async def __aenter__(self) -> Any:
        self.opening.set()
        await asyncio.to_thread(self.released.wait, 10)
        return await super().__aenter__()


def test_a_session_closes_while_another_one_opens(emulator: Emulator, session: CharacterSession) -> None:
    """The closing of a session does not wait for the opening of another one, as in a signal handler it never ended."""
    provider = SlowKie(emulator)
    slow = CharacterSession(provider)
    assert session.entry("mine") is None
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(slow.entry, "mine")
        assert provider.opening.wait(10)
        try:
            pool.submit(session.close).result(5)
        finally:
            provider.released.set()
        assert waiting.result(10) is None
    slow.close()
    assert not session.is_open


def test_a_closing_that_fails(emulator: Emulator) -> None:
    """A session whose closing has failed opens again with the next call."""

    class FailingKie(Kie):
        fails = True

        async def __aexit__(self, *_: object) -> None:
            await super().__aexit__(None, None, None)
            if self.fails:
                self.fails = False
                raise OSError("the network is away")

    session = CharacterSession(FailingKie("kie-key", base_url=emulator.url, limits=None))
    assert session.entry("mine") is None
    with pytest.raises(OSError, match="the network is away"):
        session.close()
    assert session.entry("mine") is None
    session.close()


def test_a_closing_that_is_cancelled_before_it_begins(
    session: CharacterSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session whose closing was interrupted while it waited is still open, and closes later."""

    async def aclose() -> None:
        raise asyncio.CancelledError

    assert session.entry("mine") is None
    with monkeypatch.context() as patch:
        patch.setattr(session._session, "aclose", aclose)
        with pytest.raises(CancelledError):
            session.close()
    assert session.is_open
    session.close()
    assert not session.is_open


def test_the_end_of_the_thread_cancels_what_is_left() -> None:
    """An asyncio task that no session waits for is cancelled, as by `asyncio.run`."""
    thread = LoopThread()
    atexit.unregister(thread.close)
    left: list[asyncio.Task[Any]] = []

    async def start() -> None:
        left.append(asyncio.create_task(asyncio.Event().wait()))

    thread.run(start())
    thread.close()
    assert left[0].cancelled()


FAILING_EXITS = """
class FailingKie(Kie):
    async def __aexit__(self, *error):
        await super().__aexit__(*error)
        print("closed")
        raise OSError("the network is away")

sessions = [CharacterSession(FailingKie("kie-key", base_url=sys.argv[1])) for _ in range(4)]
for each in sessions:
    each.entry("mine")
"""


def test_all_sessions_close_at_exit(emulator: Emulator, tmp_path: Path) -> None:
    """A session whose closing fails keeps no other one open when the interpreter exits."""
    done = run(FAILING_EXITS, emulator, tmp_path / "characters.db")
    assert done.stdout.split() == ["closed"] * 4
    assert "the network is away" in done.stderr


AT_EXIT = """
import atexit
atexit.register(lambda: print(session.entry("late")))  # runs after the closing of the sessions
session.create(**REQUEST, key="mine")
atexit.register(lambda: print(session.entry("mine").state))
"""


def test_a_call_after_the_end(emulator: Emulator, tmp_path: Path) -> None:
    """A function that runs at exit before the closing of the sessions may use one; a later one gets an error."""
    done = run(AT_EXIT, emulator, tmp_path / "characters.db")
    assert done.stdout == "succeeded\n"
    assert "SessionClosedError: The interpreter is exiting" in done.stderr
    assert "never awaited" not in done.stderr


OPEN_FORK = """
session.create(**REQUEST)
child = os.fork()
if not child:
    session.close()
    try:
        session.create(**REQUEST)
    except Exception as error:
        os.write(1, f"{type(error).__name__}: {error}".encode())
    sys.exit(7)
status = os.waitpid(child, 0)[1]
session.create(**REQUEST)  # over a connection that the child has closed
print(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows does not fork")
def test_an_open_session_is_not_copied_by_a_fork(emulator: Emulator, tmp_path: Path) -> None:
    """A child that uses its parent's open session gets an error, and ends; the parent's session goes on at once.

    To close it in the child has no effect.

    If the child's end closed the parent's connections too, the parent would wait for a response until its time-out
    of 30 seconds.
    """
    done = run(OPEN_FORK, emulator, tmp_path / "characters.db")
    assert done.returncode == 0
    assert done.stdout.startswith("WrongLoopError: This session was opened before this process was forked.")
    assert done.stdout.endswith("7\n")
    assert emulator.counts.creates == 2


INTERRUPT = """
threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    session.create(**REQUEST, key="mine")
except KeyboardInterrupt:
    print(session.entry("mine").state.value)
"""


def test_ctrl_c_ends_a_call(emulator: Emulator, tmp_path: Path) -> None:
    """Ctrl-C raises `KeyboardInterrupt` in the waiting call. The task continues, and its id is on record."""
    emulator.fault("stuck")
    done = run(INTERRUPT, emulator, tmp_path / "characters.db")
    assert (done.returncode, done.stdout) == (0, "running\n")
    assert "The task keeps running although its caller was cancelled" in done.stderr


EXIT = """
def work():
    session.create(**REQUEST, key="mine")

threading.Thread(target=work, daemon=True).start()
while not (entry := session.entry("mine")) or entry.state != "sending":
    time.sleep(0.01)
"""


LEFT_ITERATOR = """
session.register(**REQUEST, key="a")
session.register(**REQUEST, key="b")
due = session.due(idle=0)
print(next(due).key)
"""


def test_exit_with_an_iterator(emulator: Emulator, tmp_path: Path) -> None:
    """An iteration that the end of the process leaves unfinished ends without a word."""
    done = run(LEFT_ITERATOR, emulator, tmp_path / "characters.db")
    assert (done.returncode, done.stderr) == (0, "")


def test_exit_with_work_under_way(emulator: Emulator, tmp_path: Path) -> None:
    """A process that ends while a request is being sent waits for its response, and records the task."""
    emulator.fault("delay", on="create", seconds=1.0)
    done = run(EXIT, emulator, tmp_path / "characters.db")
    assert done.returncode == 0
    with session_at(emulator, ledger=tmp_path / "characters.db") as session:
        entry = session.entry("mine")
    assert entry
    assert entry.task_id
