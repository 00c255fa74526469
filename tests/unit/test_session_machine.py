"""Random asks, answers, crashes, callbacks and takeovers of whole sessions on one ledger, in virtual time.

A model of what really happened at the provider says what the ledger may hold and what those who wait may hear.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
from collections import Counter, deque
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import looptime
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from sora_chars.callbacks import CallbackReceiver
from sora_chars.desk import Step
from sora_chars.errors import (
    EntryMovedError,
    IllegalMoveError,
    InvalidRequestError,
    KeyConflictError,
    LedgerError,
    MissingCharacterError,
    NoAnswerError,
    ProviderError,
    RateLimitedError,
    RequestRefusedError,
    SessionClosedError,
    SoraCharsError,
    SubmissionUnknownError,
    TaskFailedError,
    TaskNotFoundError,
    WaitTimeoutError,
    WatcherStoppedError,
)
from sora_chars.handle import TaskHandle
from sora_chars.ledger import Entry, Ledger, State
from sora_chars.ledger.memory import MemoryStore
from sora_chars.ledger.states import MOVES
from sora_chars.models import FAIL, SUCCESS, Character, TaskFailure, TaskSnapshot
from sora_chars.pacing import FixedPace
from sora_chars.protocols import Provider
from sora_chars.records import token_digest
from sora_chars.session import CharacterSession
from sora_chars.watcher import TaskWatcher

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Generator, Sequence
    from contextlib import AbstractAsyncContextManager

    from sora_chars.ledger.entry import By
    from sora_chars.ledger.waiters import Waiters
    from sora_chars.models import Request

READ, WRITE, TRAVEL = 0.003, 0.01, 0.05  # seconds, each a chance to die on the way
ANSWER = 5.0  # seconds that a provider takes over a request
TIMEOUT = 120.0  # after which a request without an answer is given up
LATE = 20.0  # how long a request may wander about before it arrives
WAIT = 300.0
HOOKS = "https://a.invalid/hooks"
CLOSED = {State.SUCCEEDED, State.FAILED, State.REFUSED}
FATES = st.sampled_from(
    [
        *["answer"] * 3,
        "empty",
        *["answer lost"] * 3,
        "request lost",
        "never left",
        "busy",
        "refused",
        "hangs",
        "late",
        "upload lost",
        "upload refused",
    ]
)
EMPTY = "empty"  # a success without a character
ENDS = [SUCCESS, FAIL, EMPTY]

T = TypeVar("T")
PROCESS: contextvars.ContextVar[Process] = contextvars.ContextVar("PROCESS")


class Killed(BaseException):
    """A process that was killed goes no further."""


@attrs.define(eq=False)
class Made:
    """A task at the provider. `state` is the truth; it cannot be seen before the loop time `visible`."""

    task_id: str
    key: str
    url: str
    visible: float
    state: str = "generating"


@attrs.define(eq=False)
class World:
    """What really happened: the tasks of the provider, the entries of the ledger, and who has died.

    `on_the_way`: requests that may still make a task, by key, from before they are recorded; `posted`: those of them
    that have left; `doubted`: keys whose answer may be lost. `synchronous`: whether tasks end with their requests.
    `healed`: whether all goes well from now on.
    """

    synchronous: bool = False
    healed: bool = False
    made: dict[str, Made] = attrs.field(factory=dict[str, Made])
    on_the_way: Counter[str] = attrs.field(factory=Counter[str])
    posted: Counter[str] = attrs.field(factory=Counter[str])
    doubted: set[str] = attrs.field(factory=set[str])
    answers: set[tuple[str, str]] = attrs.field(factory=set[tuple[str, str]])
    faulty_looks: int = 0
    entries: MemoryStore = attrs.field(factory=MemoryStore)
    kept: dict[str, Entry] = attrs.field(factory=dict[str, Entry])
    moves: set[tuple[State, State]] = attrs.field(factory=set[tuple[State, State]])
    dead: set[str] = attrs.field(factory=set[str])
    waiters: dict[str, Waiters] = attrs.field(factory=dict[str, "Waiters"])
    wrong: list[str] = attrs.field(factory=list[str])

    def tasks(self, key: str) -> list[Made]:
        """All that were made for a key: one at most, if all is right."""
        return [made for made in self.made.values() if made.key == key]

    def make(self, key: str, url: str) -> Made:
        """Make a task, which has ended at once where that is so."""
        now = asyncio.get_running_loop().time()
        made = Made(f"t-{len(self.made) + 1}-{key}", key, url, now + 3.0)
        self.made[made.task_id] = made
        if self.healed or self.synchronous:
            made.state = SUCCESS
        return made

    @contextmanager
    def counted(self, where: Counter[str], key: str) -> Generator[None]:
        """Count a request."""
        where[key] += 1
        try:
            yield
        finally:
            where[key] -= 1

    def moved(self, after: Entry) -> None:
        """Take note of a move, and check it without the package's own check."""
        before = self.kept[after.key]
        if after.state not in MOVES[before.state] or after.version != before.version + 1:
            self.wrong.append(f"{before} went to {after}")
        self.moves.add((before.state, after.state))
        self.kept[after.key] = after


@attrs.define(eq=False)
class Store:
    """The door of one process to the shared entries. Its next writes end as `faults` say; so many `reads` fail."""

    world: World
    process: Process
    holder: str
    faults: deque[str] = attrs.field(factory=deque[str])
    reads: int = 0

    async def open(self, waiters: Waiters) -> None:
        """See `Store`."""
        self.world.waiters[self.holder] = waiters

    async def aclose(self) -> None:
        """See `Store`."""
        self.world.waiters.pop(self.holder, None)
        self.world.dead.add(self.holder)

    async def insert(self, entry: Entry) -> Entry:
        """See `Store`."""
        return await self._write(partial(self._insert, entry))

    async def replace(self, before: Entry, after: Entry) -> Entry | None:
        """See `Store`."""
        return await self._write(partial(self._replace, before, after))

    async def find(self, by: By, *values: str) -> Entry | None:
        """See `Store`."""
        await self._read()
        return await self.world.entries.find(by, *values)

    async def page(
        self, states: Collection[State], *, after: int | None, newest_first: bool, size: int
    ) -> Sequence[tuple[int, Entry]]:
        """See `Store`."""
        await self._read()
        return await self.world.entries.page(states, after=after, newest_first=newest_first, size=size)

    async def is_gone(self, holder: str) -> bool:
        """See `Store`."""
        await self._read()
        return holder in self.world.dead

    async def _read(self) -> None:
        await self.process.passes(READ)
        if self.reads:
            self.reads -= 1
            raise LedgerError("The database is away.")

    async def _write(self, write: Callable[[], Coroutine[Any, Any, T]]) -> T:
        await self.process.passes(WRITE)
        fault = self.faults.popleft() if self.faults else ""
        if fault == "not written":
            raise LedgerError("The disk is full.")
        kept = await write()
        await self.process.passes(WRITE)
        if fault == "written":
            raise LedgerError("The database went away.")
        return kept

    async def _insert(self, entry: Entry) -> Entry:
        return self.world.kept.setdefault(entry.key, await self.world.entries.insert(entry))

    async def _replace(self, before: Entry, after: Entry) -> Entry | None:
        kept = await self.world.entries.replace(before, after)
        if kept is after:
            self.world.moved(after)
            for name, waiters in self.world.waiters.items():
                if name != self.holder:
                    waiters.wake(after.key, after.version)
        return kept


@attrs.define(eq=False)
class Fake(Provider):
    """A process's way to the provider. Its next request for a key ends as `fates` say."""

    world: World
    process: Process
    fates: dict[str, str] = attrs.field(factory=dict[str, str])
    name: str = "fake"
    callback_url: str | None = HOOKS
    synchronous: bool = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.synchronous = self.world.synchronous

    async def submit(
        self, request: Request, *, callback_url: str | None, sending: Callable[[], AbstractAsyncContextManager[None]]
    ) -> TaskSnapshot:
        """See `Provider`. What did no harm is tried again once, as the transport does."""
        key, url = request.key or "", callback_url or ""
        fate = self._fate(key)
        await self.process.passes(TRAVEL)
        if fate == "upload lost":
            raise NoAnswerError("the upload was reset")
        if fate == "upload refused":
            raise RequestRefusedError("no such film")
        with self.world.counted(self.world.on_the_way, key):
            try:
                made = await self._post(key, url, fate, sending)
            except ProviderError as error:
                if not error.harmless:
                    raise
                await self.process.passes(2.0)
                made = await self._post(key, url, self._fate(key), sending)
        return self._snapshot(made)

    async def fetch(self, task_id: str) -> TaskSnapshot:
        """See `Provider`."""
        await self.process.passes(TRAVEL)
        made = self.world.made.get(task_id)
        if self.world.faulty_looks:
            self.world.faulty_looks -= 1
            raise NoAnswerError("reset")
        if made is None or asyncio.get_running_loop().time() < made.visible:
            raise TaskNotFoundError("no such task")
        snapshot = self._snapshot(made)
        await self.process.passes(TRAVEL)
        return snapshot

    def _snapshot(self, made: Made) -> TaskSnapshot:
        if made.state == EMPTY:
            raise MissingCharacterError("none", provider=self.name, task_id=made.task_id, payload={"id": ""})
        return TaskSnapshot(
            task_id=made.task_id,
            provider=self.name,
            state=made.state,
            character=Character(id=f"ch-{made.task_id}", provider=self.name) if made.state == SUCCESS else None,
            failure=TaskFailure("1", "it failed") if made.state == FAIL else None,
            raw={"param": json.dumps({"callBackUrl": made.url})},
        )

    def _fate(self, key: str) -> str:
        fate = self.fates.pop(key, "answer")
        self.world.answers.add((key, fate))
        return fate

    async def _post(
        self, key: str, url: str, fate: str, sending: Callable[[], AbstractAsyncContextManager[None]]
    ) -> Made:
        async with sending():
            with self.world.counted(self.world.posted, key):
                return await self._arrive(key, url, fate)

    async def _arrive(self, key: str, url: str, fate: str) -> Made:
        await self.process.passes(TRAVEL)
        if fate == "never left":
            raise NoAnswerError("no connection", harmless=True)
        if fate == "busy":
            raise RateLimitedError("busy")
        if fate == "refused":
            raise RequestRefusedError("a real person")
        if fate in {"request lost", "late", "answer lost", "hangs"}:
            self.world.doubted.add(key)
        if fate == "late":
            self._wander(key, url)
        if fate in {"request lost", "late"}:
            raise NoAnswerError("reset")
        made = self.world.make(key, url)
        if fate == "empty":
            made.state = EMPTY
        await self.process.passes(TIMEOUT if fate == "hangs" else ANSWER)
        if fate in {"answer lost", "hangs"}:
            raise NoAnswerError("reset")
        return made

    def _wander(self, key: str, url: str) -> None:
        """Let the request arrive later, whatever becomes of the process."""

        def arrive() -> None:
            self.world.make(key, url)
            self.world.on_the_way[key] -= 1
            self.world.posted[key] -= 1

        self.world.on_the_way[key] += 1
        self.world.posted[key] += 1
        asyncio.get_running_loop().call_later(LATE, arrive)


class Process:
    """A process: its session, all its asyncio tasks, and those of its callers who still wait, each with its key."""

    def __init__(self, machine: SessionMachine, number: int) -> None:
        self.world = machine.world
        self.runner = machine.runner
        self.alive = True
        self.faulted = False
        self.goes = asyncio.Event()
        self.goes.set()
        self.asyncio_tasks: set[asyncio.Task[Any]] = set()
        self.callers: dict[asyncio.Task[Any], str] = {}
        self.context = contextvars.copy_context()
        self.context.run(PROCESS.set, self)
        machine.births += 1
        self.store = Store(self.world, self, f"p{number}-{machine.births}")
        self.provider = Fake(self.world, self)
        clock = self.runner.get_loop().time
        self.session = CharacterSession(
            self.provider,
            ledger=Ledger(self.store, clock=clock),
            watcher=TaskWatcher(pace=FixedPace(10.0), wall=clock),
            wait=WAIT,
        )
        self.receiver = CallbackReceiver(self.session)
        self.run(self.session.open())

    async def passes(self, seconds: float) -> None:
        """Let time pass in a step of this process, which ends here if it is killed and pauses while it is stopped."""
        await asyncio.sleep(seconds)
        await self.goes.wait()
        if not self.alive:
            raise Killed

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Do something in this process, while all others go on."""
        return self.runner.run(asyncio.wait_for(work, 9999.0), context=self.context)

    def start(self, key: str, work: Coroutine[Any, Any, Any]) -> None:
        """Begin something in this process that a caller waits for."""
        self.callers[self.runner.get_loop().create_task(work, context=self.context)] = key

    def doubt(self) -> None:
        """Whoever waits for what this process is sending may have to give up."""
        sending = {entry.key for entry in self.world.kept.values() if entry.state is State.SENDING}
        self.world.doubted |= {key for key in sending if self.world.kept[key].holder == self.store.holder}

    def stop(self, *, presumed_dead: bool) -> None:
        """SIGSTOP; its line to the database may be cut then, which frees what it holds."""
        self.doubt()
        self.goes.clear()
        if presumed_dead:
            self.world.dead.add(self.store.holder)

    def cont(self) -> None:
        """SIGCONT, and a new line."""
        self.goes.set()
        self.world.dead.discard(self.store.holder)

    def kill(self) -> None:
        """SIGKILL: nothing that it does from now on reaches the ledger or the provider."""
        self.doubt()
        self.alive = False
        self.goes.set()
        self.world.waiters.pop(self.store.holder, None)
        self.world.dead.add(self.store.holder)
        self.callers.clear()
        self.runner.run(self._bury())

    async def _bury(self) -> None:
        while self.asyncio_tasks:
            for asyncio_task in self.asyncio_tasks:
                asyncio_task.cancel()
            await asyncio.wait(self.asyncio_tasks)

    async def call_back(self, url: str, task_id: str) -> int:
        """Bring a callback and return the status that answers it."""

        async def body() -> AsyncGenerator[bytes]:
            yield json.dumps({"code": 200, "data": {"taskId": task_id, "state": "success"}}).encode()

        return (await self.receiver.handle("POST", url, {"content-type": "application/json"}, body()))[0]


KEYS = st.sampled_from(["k-1", "k-2", "k-3", "k-4", "k-5", "k-6"])
NUMBERS = st.integers(0, 2)
VICTIMS = st.integers(0, 5)  # from 3 on: one that is sending, if there is any
SECONDS = st.sampled_from([0.0, 0.004, 0.02, 0.06, 0.12, 0.3, 3.0, 40.0, 400.0])


class SessionMachine(RuleBasedStateMachine):
    """Three processes on one ledger before one provider."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner(loop_factory=partial(looptime.new_event_loop, noop_cycles=0))
        self.world = World()
        self.births = 0
        self.processes: list[Process] = []

    @initialize(callbacks=st.booleans(), synchronous=st.sampled_from([False] * 4 + [True]))
    def begin(self, callbacks: bool, synchronous: bool) -> None:  # noqa: FBT001 # drawn
        """Start them. `callbacks`: whether those come that are left at the end, or a person has to look."""
        self.callbacks = callbacks and not synchronous
        self.world.synchronous = synchronous
        self.runner.get_loop().set_task_factory(self._own)
        self.runner.get_loop().set_exception_handler(lambda _, facts: self.world.wrong.append(str(facts)))
        self.processes = [Process(self, number) for number in range(3)]

    def _own(self, loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
        """Make an asyncio task that belongs to the process that began it, and look at how it ends."""
        made = asyncio.Task(work, loop=loop, **options)
        process = (options.get("context") or contextvars.copy_context()).get(PROCESS, None)
        if process:
            process.asyncio_tasks.add(made)
            made.add_done_callback(process.asyncio_tasks.discard)
        made.add_done_callback(self._ended)
        return made

    def _ended(self, ended: asyncio.Task[Any]) -> None:
        error = None if ended.cancelled() else ended.exception()
        if error and (isinstance(error, IllegalMoveError) or not isinstance(error, (SoraCharsError, Killed))):
            self.world.wrong.append(f"{ended} raised {error!r}")

    def living(self, number: int) -> Process | None:
        """Return the process, if it lives and is not stopped."""
        process = self.processes[number]
        return process if process.alive and process.goes.is_set() else None

    def victim(self, number: int) -> int:
        """Return the number of the process that is meant."""
        sending = {entry.holder for entry in self.world.kept.values() if entry.state is State.SENDING}
        senders = [at for at, process in enumerate(self.processes) if process.store.holder in sending]
        return number if number < 3 else senders[number % len(senders)] if senders else number - 3

    @rule(seconds=SECONDS)
    def time_passes(self, seconds: float) -> None:
        """Let everybody go on."""
        self.runner.run(asyncio.sleep(seconds))

    @rule(number=NUMBERS, key=KEYS, fate=FATES, how=st.sampled_from(["create", "submit", "ask"]), seconds=SECONDS)
    def ask(self, number: int, key: str, fate: str, how: str, seconds: float) -> None:
        """Ask for a key; the next request for it from this process meets its fate."""
        if process := self.living(number):
            process.provider.fates[key] = fate
            process.start(key, getattr(process.session, how)(from_task="origin", key=key))
        self.time_passes(seconds)

    @rule(key=KEYS, fates=st.tuples(FATES, FATES, FATES), seconds=SECONDS)
    def ask_everywhere(self, key: str, fates: tuple[str, str, str], seconds: float) -> None:
        """Ask for a key in all processes in the same instant."""
        for number in range(3):
            self.ask(number, key, fates[number], "create", 0.0)
        self.time_passes(seconds)

    @rule(number=NUMBERS, key=KEYS)
    def ask_for_something_else(self, number: int, key: str) -> None:
        """Ask for another character under a key that has a request."""
        if (process := self.living(number)) and key in self.world.kept and not process.faulted:
            with pytest.raises(KeyConflictError):
                process.run(process.session.ask(from_task="other", key=key))

    @rule(number=NUMBERS, key=KEYS, fate=FATES, seconds=SECONDS)
    def advance(self, number: int, key: str, fate: str, seconds: float) -> None:
        """Take a key one step on."""
        if (process := self.living(number)) and key in self.world.kept:
            process.provider.fates[key] = fate
            process.start(key, process.session.advance(key))
        self.time_passes(seconds)

    @rule(number=NUMBERS)
    def recover(self, number: int) -> None:
        """Wait for all that runs."""
        if process := self.living(number):
            process.start("", self._recover(process))

    async def _recover(self, process: Process) -> None:
        async for handle in process.session.recover():
            process.start(handle.key, handle.result())

    @rule(number=VICTIMS)
    def kill(self, number: int) -> None:
        """Kill a process, at whatever it is doing, and start it anew."""
        number = self.victim(number)
        self.processes[number].kill()
        self.processes[number] = Process(self, number)

    @rule(number=VICTIMS, presumed_dead=st.booleans())
    def stop(self, number: int, presumed_dead: bool) -> None:  # noqa: FBT001 # drawn
        """Stop a process, at whatever it is doing."""
        self.processes[self.victim(number)].stop(presumed_dead=presumed_dead)

    @rule()
    def cont(self) -> None:
        """Let stopped processes go on."""
        for process in self.processes:
            process.cont()

    @rule(number=VICTIMS)
    def close(self, number: int) -> None:
        """End a process as it should be, and start it anew."""
        number = self.victim(number)
        if process := self.living(number):
            self.world.doubted.update(process.callers.values())
            process.run(process.session.aclose())
            process.doubt()
            self.time_passes(1.0)  # callers that were not inside yet meet a closed door
            self._check_callers(process, closed=True)
            assert not process.callers
            assert not process.asyncio_tasks
            self.processes[number] = Process(self, number)

    @rule(which=st.integers(0, 99))
    def give_up_waiting(self, which: int) -> None:
        """Cancel a caller."""
        if callers := [(process, caller) for process in self.processes for caller in process.callers]:
            process, caller = callers[which % len(callers)]
            del process.callers[caller]
            caller.cancel()

    @rule(
        number=NUMBERS,
        reads=st.integers(0, 3),
        faults=st.lists(st.sampled_from(["", "not written", "written"]), max_size=3),
    )
    def break_ledger(self, number: int, reads: int, faults: list[str]) -> None:
        """Let some of the next reads and writes of a process fail, whether these reached the ledger or not."""
        process = self.processes[number]
        process.faulted = True
        process.store.faults.extend(faults)
        process.store.reads = reads

    @rule(looks=st.integers(1, 3))
    def break_looks(self, looks: int) -> None:
        """Let some of the next looks at tasks fail."""
        self.world.faulty_looks = looks

    @rule(key=KEYS, state=st.sampled_from(ENDS))
    def end_tasks(self, key: str, state: str) -> None:
        """Let what runs for a key end at the provider."""
        for made in self.world.tasks(key):
            made.state = made.state if made.state in ENDS else state

    @rule(number=NUMBERS, key=KEYS, other=KEYS)
    def call_back(self, number: int, key: str, other: str) -> None:
        """Bring a callback to any process: early, late, again, or with the token of another task."""
        process, made = self.living(number), self.world.tasks(key)
        if process and made and not self.world.synchronous:
            token_of = (self.world.tasks(other) or made)[0]
            process.start("", process.call_back(token_of.url, made[0].task_id))

    @rule(number=NUMBERS, key=KEYS, give_up=st.booleans())
    def resolve(self, number: int, key: str, give_up: bool) -> None:  # noqa: FBT001 # drawn
        """Have a person look at the provider's own site, and tell the truth, or give up."""
        process, made = self.living(number), self.world.tasks(key)
        if process is None or key not in self.world.kept:
            return
        how: dict[str, Any] = {"task_id": made[0].task_id} if made else {"never_sent": True}
        if give_up or (made and self.world.synchronous):
            how = {"give_up": True}
        elif not made and self.world.on_the_way[key]:
            return  # it may yet arrive
        try:
            process.run(process.session.resolve(key, **how))
        except (InvalidRequestError, EntryMovedError):
            pass
        except LedgerError:
            assert process.faulted

    @invariant()
    def all_is_right(self) -> None:
        """The ledger and all who wait agree with what really happened."""
        world = self.world
        assert not world.wrong
        assert {made.key for made in world.made.values()} <= world.kept.keys()
        for entry in world.kept.values():
            self._check_entry(entry)
        for process in self.processes:
            self._check_callers(process)

    def _check_entry(self, entry: Entry) -> None:
        tasks = self.world.tasks(entry.key)
        assert len(tasks) <= 1, "paid twice"
        assert self.world.posted[entry.key] <= 1, "sent twice"
        made = tasks[0] if tasks else None
        if made and not self.world.synchronous:
            assert entry.token_digest == token_digest(made.url.rpartition("/")[2])
        if entry.task_id:
            assert made
            assert made.task_id == entry.task_id
        match entry.state:
            case State.ASKED | State.REFUSED:
                assert not made
                assert not self.world.posted[entry.key]
            case State.RUNNING:
                assert made
            case State.SUCCEEDED:
                assert made
                assert (made.state, entry.result["character"]["id"]) == (SUCCESS, f"ch-{made.task_id}")
            case State.FAILED:
                assert _given_up(entry) or (made and made.state in {FAIL, EMPTY})
            case State.UNKNOWN:
                assert entry.key in self.world.doubted
            case _:
                pass

    def _check_callers(self, process: Process, *, closed: bool = False) -> None:
        for caller, key in list(process.callers.items()):
            if caller.done():
                del process.callers[caller]
                self._check_answer(process, caller, key, closed=closed)

    def _check_answer(self, process: Process, caller: asyncio.Task[Any], key: str, *, closed: bool) -> None:
        made = next(iter(self.world.tasks(key)), None)
        given_up = key in self.world.kept and _given_up(self.world.kept[key])
        assert not caller.cancelled(), "nobody did that"
        outcome: Any = caller.exception() or caller.result()
        match outcome:
            case Character() as character:
                assert made
                assert (made.state, character.id) == (SUCCESS, f"ch-{made.task_id}")
            case TaskHandle() as handle:
                assert given_up or (made and handle.task_id == made.task_id)
            case Step() as step:
                assert step.finished is (step.entry.state in CLOSED)
            case int() as status:
                assert status in {200, 401, 503}
            case Exception() as error:
                self._check_error(error, process, key, closed=closed)
            case _:
                assert outcome is None or outcome.key == key

    def _check_error(self, error: Exception, process: Process, key: str, *, closed: bool) -> None:
        made = next(iter(self.world.tasks(key)), None)
        met = {fate for asked, fate in self.world.answers if asked == key}
        match error:
            case TaskFailedError():
                assert (made and made.state == FAIL) or _given_up(self.world.kept[key])
            case MissingCharacterError():
                assert made
                assert made.state == EMPTY
            case SubmissionUnknownError():
                assert key in self.world.doubted
            case RequestRefusedError():
                assert met & {"refused", "upload refused"}
            case NoAnswerError() | RateLimitedError():
                assert met & {"never left", "busy", "upload lost"}
            case LedgerError():
                assert process.faulted or closed
            case SessionClosedError() | WatcherStoppedError():
                assert closed
            case _:
                assert isinstance(error, WaitTimeoutError)

    def teardown(self) -> None:
        """Heal everything: then every key reaches an end that agrees with the provider."""
        try:
            if self.processes:
                self._heal()
        finally:
            for process in self.processes:
                process.kill()
            self.runner.close()

    def _heal(self) -> None:
        world, first = self.world, self.processes[0]
        world.healed, world.faulty_looks = True, 0
        self.cont()
        for process in self.processes:
            process.store.faults.clear()
            process.store.reads = 0
            process.provider.fates.clear()
        for key in world.kept:
            self.end_tasks(key, SUCCESS)
        self._wait_for_all(WAIT + TIMEOUT)
        for made in world.made.values() if self.callbacks else ():
            assert first.run(first.call_back(made.url, made.task_id)) == 200 or made.state == EMPTY
        for number in range(3):
            self.recover(number)
        self._wait_for_all(WAIT + 1.0)
        for key, entry in world.kept.items():
            if entry.state is State.UNKNOWN:
                assert not self.callbacks or all(made.state == EMPTY for made in world.tasks(key))
                self.resolve(0, key, give_up=False)
        for key in world.kept:
            self.ask_everywhere(key, ("answer",) * 3, 0.0)
        self._wait_for_all(WAIT + 1.0)
        for key, entry in world.kept.items():
            assert entry.state in {State.SUCCEEDED, State.FAILED}
            assert len(world.tasks(key)) == 1 or _given_up(entry)
        for number in range(3):
            self.close(number)

    def _wait_for_all(self, seconds: float) -> None:
        self.time_passes(seconds)
        self.all_is_right()
        assert not any(process.callers for process in self.processes), "somebody waits for ever"


def _given_up(entry: Entry) -> bool:
    return entry.state is State.FAILED and entry.error["code"] == "given_up"


def test_random_lives() -> None:
    """Whatever happens, no key has two tasks, no task is lost, nobody is told an untruth, and every state is met."""
    moves: set[tuple[State, State]] = set()

    class Life(SessionMachine):
        def teardown(self) -> None:
            super().teardown()
            moves.update(self.world.moves)

    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=120,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
    assert {state for move in moves for state in move} == {*State}


def test_every_move() -> None:
    """The machine can lead a session through every legal move of the ledger."""
    life, short = SessionMachine(), SessionMachine()
    life.begin(callbacks=True, synchronous=False)
    life.ask(0, "k-1", "upload refused", "create", 40.0)
    life.ask(0, "k-1", "busy", "create", 40.0)
    life.kill(0)
    life.recover(1)
    life.end_tasks("k-1", SUCCESS)
    life.ask(0, "k-2", "answer lost", "create", 0.0)
    life.ask(0, "k-3", "request lost", "create", 40.0)
    life.resolve(2, "k-2", give_up=False)
    life.resolve(2, "k-3", give_up=False)
    life.end_tasks("k-2", FAIL)
    life.advance(2, "k-2", "answer", 40.0)
    life.ask(2, "k-3", "refused", "create", 40.0)
    life.ask(0, "k-4", "answer lost", "create", 40.0)
    life.resolve(1, "k-4", give_up=True)
    life.teardown()
    short.begin(callbacks=False, synchronous=True)
    short.ask(0, "k-1", "answer", "create", 40.0)
    short.ask(0, "k-2", "empty", "create", 40.0)
    short.ask(0, "k-3", "answer", "create", 0.12)
    short.ask(0, "k-4", "refused", "create", 0.12)
    short.stop(0, presumed_dead=True)
    short.recover(1)
    short.time_passes(40.0)
    short.cont()
    short.time_passes(40.0)
    short.teardown()
    assert life.world.moves | short.world.moves == {(before, after) for before in MOVES for after in MOVES[before]}


def test_a_try_again_of_a_process_that_others_take_for_dead() -> None:
    """Where the provider was too busy it did nothing, so that the doubt of others is over, and one request is made."""
    life = SessionMachine()
    life.begin(callbacks=False, synchronous=False)
    life.ask(0, "k-1", "busy", "create", 0.12)
    life.stop(0, presumed_dead=True)
    life.recover(1)
    life.time_passes(40.0)
    life.cont()
    life.time_passes(40.0)
    life.all_is_right()
    assert (State.UNKNOWN, State.ASKED) in life.world.moves
    assert life.world.kept["k-1"].state is State.RUNNING
    life.teardown()
