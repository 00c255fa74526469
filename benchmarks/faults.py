"""What is lost or paid twice when processes are killed at every step of the way: counted, not argued.

Worker processes make one character for each key, through one SQLite ledger, at one emulator. They end themselves with
SIGKILL, at a named step or at a random moment, and are started again until every key has ended or is unknown. Then
tasks are counted at the emulator and entries in the ledger. At last the unknown ones are resolved as a person would,
by a look at the server, and the rest is made. Usage: python benchmarks/faults.py [--quick]
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import tempfile
import threading
from collections import Counter, deque
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import attrs
from aiohttp import web

from sora_chars import (
    CallbackReceiver,
    CharacterSession,
    EntryState,
    FixedInterval,
    Kie,
    Ledger,
    SubmissionUnknownError,
    open_ledger,
)
from sora_chars.ledger.stores.sqlite import SqliteStore
from sora_chars.testing import Emulator

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator
    from contextlib import AbstractAsyncContextManager

    from sora_chars import Entry, TaskSnapshot
    from sora_chars.models import Request

KEY = "benchmark-key-of-no-account"
ORIGIN = "7118f712" * 4
STEPS = (
    "before pending",
    "after pending",
    "before sending",
    "after sending",
    "request sent",
    "answer begins",
    "answer read",
    "before running",
    "after running",
    "before succeeded",
    "after succeeded",
)
"""Before and after each write of a state into the ledger, and between the writes of `sending` and `running`."""
RANDOM = "random"
CALLBACK_DELAY = 0.5  # seconds, so that workers mostly see the end of a task before its callback does
PATIENCE = 20.0  # seconds for the last callbacks to come


# ---- The worker: a process of its own


@attrs.define(eq=False)
class Reaper:
    """Kills this process when it comes to a step for the `left`th time; notes in a file what is under way then."""

    step: str
    left: int
    flight: Path
    under_way: set[str] = attrs.field(factory=set[str])

    def reach(self, step: str) -> None:
        """Die here, if here it is."""
        if step == self.step:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def note(self, key: str, *, sending: bool) -> None:
        """Keep on disk how many requests may have been sent and are not on record."""
        (self.under_way.add if sending else self.under_way.discard)(key)
        self.flight.write_text(f"{len(self.under_way)}")


class DeadlyStore(SqliteStore):
    """A ledger's file that it is dangerous to write to."""

    def __init__(self, path: Path, reaper: Reaper) -> None:
        super().__init__(path)
        self._reaper = reaper

    async def insert(self, entry: Entry) -> Entry:
        """Write an entry that was asked for."""
        self._reaper.reach(f"before {entry.state}")
        kept = await super().insert(entry)
        self._reaper.reach(f"after {entry.state}")
        return kept

    async def replace(self, before: Entry, after: Entry) -> Entry | None:
        """Write that an entry was moved."""
        self._reaper.reach(f"before {after.state}")
        if after.state is EntryState.SENDING:
            self._reaper.note(after.key, sending=True)
        kept = await super().replace(before, after)
        self._reaper.reach(f"after {after.state}")
        if before.state is EntryState.SENDING or kept is not after:
            self._reaper.note(after.key, sending=False)
        return kept


class DeadlyKie(Kie):
    """A provider on whose way to the server and back one may die."""

    def __init__(self, url: str, callback_url: str | None, http: aiohttp.ClientSession, reaper: Reaper) -> None:
        super().__init__(KEY, base_url=url, callback_url=callback_url, limits=None, http=http)
        self._reaper = reaper

    async def submit(
        self, request: Request, *, callback_url: str | None, on_send: Callable[[], AbstractAsyncContextManager[None]]
    ) -> TaskSnapshot:
        """Send it."""

        @asynccontextmanager
        async def watched() -> AsyncGenerator[None, None]:
            async with on_send():
                yield
            self._reaper.reach("answer read")

        return await super().submit(request, callback_url=callback_url, on_send=watched)


def tracing(reaper: Reaper) -> aiohttp.TraceConfig:
    """Let aiohttp tell when a create was handed to the operating system, and when its answer begins."""
    trace = aiohttp.TraceConfig()

    async def sent(_http: object, _context: object, _facts: aiohttp.TraceRequestChunkSentParams) -> None:
        # Told just before the bytes are written, without another turn of the loop in between. Only creates have any.
        asyncio.get_running_loop().call_soon(reaper.reach, "request sent")

    async def answered(_http: object, _context: object, facts: aiohttp.TraceRequestEndParams) -> None:
        if facts.method == "POST":
            reaper.reach("answer begins")

    trace.on_request_chunk_sent.append(sent)
    trace.on_request_end.append(answered)
    return trace


@attrs.frozen(kw_only=True)
class Orders:
    """What a worker is told: where to work, on `keys` keys in an order of its own, `at_once`, and how to die.

    `after`: at which time that it comes to the step; for a random end, milliseconds. Step "" is to live.
    """

    url: str
    ledger: Path
    flight: Path
    keys: int
    at_once: int
    seed: int
    step: str = ""
    after: int = 0
    callback_url: str = ""

    def command(self) -> list[str]:
        """The command line that gives these orders."""
        return [sys.executable, __file__, "worker", *(str(value) for value in attrs.astuple(self))]

    @classmethod
    def read(cls, words: list[str]) -> Orders:
        """The orders of a command line."""
        url, ledger, flight, keys, at_once, seed, step, after, callback_url = words
        return cls(
            url=url,
            ledger=Path(ledger),
            flight=Path(flight),
            keys=int(keys),
            at_once=int(at_once),
            seed=int(seed),
            step=step,
            after=int(after),
            callback_url=callback_url,
        )


async def work(orders: Orders) -> None:
    """Make what is not made yet, or die."""
    reaper = Reaper(orders.step, orders.after, orders.flight)
    if orders.step == RANDOM:
        threading.Timer(orders.after / 1000, os.kill, (os.getpid(), signal.SIGKILL)).start()
    names = [name(number) for number in range(orders.keys)]
    random.Random(orders.seed).shuffle(names)
    async with aiohttp.ClientSession(trace_configs=[tracing(reaper)]) as http:
        kie = DeadlyKie(orders.url, orders.callback_url or None, http, reaper)
        ledger = Ledger(DeadlyStore(orders.ledger, reaper))
        async with CharacterSession(kie, ledger=ledger, polling=FixedInterval(0.05), timeout=60) as session:
            ended = {EntryState.SUCCEEDED, EntryState.UNKNOWN}
            done = {entry.key async for entry in ledger.entries(states=ended)}
            todo = iter([key for key in names if key not in done])
            await asyncio.gather(*(make_each(session, todo) for _ in range(orders.at_once)))
    os._exit(0)  # before a timer of a random end consecutive_429s


async def make_each(session: CharacterSession, keys: Iterator[str]) -> None:
    """Make one after the other. What is unknown stays so."""
    for key in keys:
        with suppress(SubmissionUnknownError):
            await session.create(from_task=ORIGIN, clip="1,3", prompt=key, key=key)


def name(number: int) -> str:
    """The key of a number. It is the character's prompt, too, so that the server's tasks tell whose they are."""
    return f"key-{number:04}"


# ---- The supervisor: this process, with the emulator, the receiver of callbacks and the counting


@attrs.frozen(kw_only=True)
class Trial:
    """`kills`: steps, and at which time there (see `Orders.after`), in this order. `crew`: processes at once."""

    keys: int
    kills: list[tuple[str, int]]
    crew: int = 2
    at_once: int = 8
    callbacks: bool = False


@attrs.define(kw_only=True)
class Outcome:
    """What was counted. `in_flight`: requests that were not on record when their process was killed, all together.

    `lost`: tasks that neither an entry names nor an unknown key explains. `unknown_made`: unknown keys that have a task
    on the server. The last two are counted after all was resolved.
    """

    killed: Counter[str] = attrs.field(factory=Counter[str])
    in_flight: int = 0
    tasks: int = 0
    twice: int = 0
    lost: int = 0
    succeeded: int = 0
    unknown: int = 0
    unknown_made: int = 0
    tasks_at_last: int = 0
    twice_at_last: int = 0
    succeeded_at_last: int = 0


@attrs.define(eq=False)
class Supervisor:
    """Starts workers until there is nothing left to do, and counts."""

    trial: Trial
    folder: Path
    emulator: Emulator
    session: CharacterSession
    callback_url: str
    outcome: Outcome = attrs.field(factory=Outcome)
    _started: int = 0

    async def run(self) -> Outcome:
        """Run the trial."""
        kills = deque(self.trial.kills)
        async with asyncio.TaskGroup() as crew:
            for _ in range(self.trial.crew):
                crew.create_task(self._keep_working(kills))
        if self.trial.callbacks:
            await self._hear_callbacks()
        await self._count()
        await self._resolve()
        await self._keep_working(deque())
        self.outcome.tasks_at_last = len(self.emulator.tasks)
        self.outcome.twice_at_last = len(self._tasks()) - len(set(self._tasks()))
        self.outcome.succeeded_at_last = len(await self._entries(EntryState.SUCCEEDED))
        return self.outcome

    async def _keep_working(self, kills: deque[tuple[str, int]]) -> None:
        """Start one worker after the other until one comes to the end of the keys."""
        while True:
            step, after = kills.popleft() if kills else ("", 0)
            if not await self._work(step, after):
                return
            self.outcome.killed[step] += 1

    async def _work(self, step: str, after: int) -> bool:
        """Run a worker, and say whether it was killed."""
        self._started += 1
        orders = Orders(
            url=self.emulator.url,
            ledger=self.folder / "characters.db",
            flight=self.folder / f"flight-{self._started}",
            keys=self.trial.keys,
            at_once=self.trial.at_once,
            seed=self._started,
            step=step,
            after=after,
            callback_url=self.callback_url,
        )
        process = await asyncio.create_subprocess_exec(*orders.command(), stderr=asyncio.subprocess.PIPE)
        _, complaint = await process.communicate()
        if process.returncode not in {0, -signal.SIGKILL}:
            raise RuntimeError(f"worker {orders} ended with {process.returncode}: {complaint.decode()}")
        if process.returncode and orders.flight.exists():
            self.outcome.in_flight += int(orders.flight.read_text() or 1)  # killed while it wrote, empty: a first one
        return process.returncode != 0

    async def _hear_callbacks(self) -> None:
        """Wait until the callback of each task has come."""
        async with asyncio.timeout(PATIENCE):
            while await self._unknown_made():  # noqa: ASYNC110 # another look at the ledger is the only way
                await asyncio.sleep(0.05)

    async def _count(self) -> None:
        tasks = self._tasks()
        known = {entry.task_id for entry in await self._entries(*EntryState)}
        unknown = {entry.key for entry in await self._entries(EntryState.UNKNOWN)}
        self.outcome.tasks = len(tasks)
        self.outcome.twice = len(tasks) - len(set(tasks))
        self.outcome.lost = sum(
            task_id not in known and key not in unknown for task_id, key in zip(self.emulator.tasks, tasks, strict=True)
        )
        self.outcome.succeeded = len(await self._entries(EntryState.SUCCEEDED))
        self.outcome.unknown = len(unknown)
        self.outcome.unknown_made = len(await self._unknown_made())

    async def _resolve(self) -> None:
        """Do as a person does who looks at the provider's own site."""
        made = dict(zip(self._tasks(), self.emulator.tasks, strict=True))
        for entry in await self._entries(EntryState.UNKNOWN):
            task_id = made.get(entry.key)
            await self.session.resolve(entry.key, task_id=task_id, never_sent=task_id is None)

    async def _unknown_made(self) -> set[str]:
        return {entry.key for entry in await self._entries(EntryState.UNKNOWN, EntryState.SENDING)} & set(self._tasks())

    async def _entries(self, *states: EntryState) -> list[Entry]:
        return [entry async for entry in self.session.ledger.entries(states=states)]

    def _tasks(self) -> list[str]:
        """The key of each task on the server."""
        return [str(task.input["character_prompt"]) for task in self.emulator.tasks.values()]


async def run(trial: Trial, folder: Path) -> Outcome:
    """Run a trial with an emulator and, if it wants callbacks, a receiver; its files go into `folder`."""
    async with Emulator(durations=(0.05, 0.3), credits=1e9) as emulator, receiving() as (app, url):
        callback_url = f"{url}/hooks" if trial.callbacks else ""
        kie = Kie(KEY, base_url=emulator.url, callback_url=callback_url or None, limits=None)
        ledger = open_ledger(folder / "characters.db")
        async with CharacterSession(kie, ledger=ledger, polling=FixedInterval(0.05)) as session:
            app.append(CallbackReceiver(session))
            emulator.fault("delay", on="callback", times=None, seconds=CALLBACK_DELAY)
            return await Supervisor(trial, folder, emulator, session, callback_url).run()


@asynccontextmanager
async def receiving() -> AsyncGenerator[tuple[list[CallbackReceiver], str], None]:
    """Listen for callbacks; the receiver that is put into the list gets them."""
    receivers: list[CallbackReceiver] = []

    async def answer(request: web.Request) -> web.Response:
        async def body() -> AsyncGenerator[bytes, None]:
            yield await request.read()

        status, payload = await receivers[0].handle(request.method, request.path, request.headers, body())
        return web.json_response(payload, status=status)

    app = web.Application()
    app.router.add_post("/hooks/{token}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield receivers, f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def plan(keys: int, chance: random.Random) -> list[tuple[str, int]]:
    """As many kills as there is work for: as often at random as at all named steps together, in any order."""
    rounds = max(1, keys // 200)
    named = [(step, chance.randint(1, 8)) for step in STEPS * rounds]
    kills = named + [(RANDOM, chance.randint(0, 600)) for _ in named]
    chance.shuffle(kills)
    return kills


ROWS: dict[str, Callable[[Outcome], int]] = {
    "kills at named steps": lambda outcome: sum(outcome.killed[step] for step in STEPS),
    "kills at random": lambda outcome: outcome.killed[RANDOM],
    "requests in flight at kills": lambda outcome: outcome.in_flight,
    "tasks on the server": lambda outcome: outcome.tasks,
    "keys with two tasks": lambda outcome: outcome.twice,
    "tasks that no entry accounts for": lambda outcome: outcome.lost,
    "succeeded": lambda outcome: outcome.succeeded,
    "unknown": lambda outcome: outcome.unknown,
    "unknown with a task on the server": lambda outcome: outcome.unknown_made,
    "tasks once the unknown were resolved": lambda outcome: outcome.tasks_at_last,
    "keys with two tasks then": lambda outcome: outcome.twice_at_last,
    "succeeded then": lambda outcome: outcome.succeeded_at_last,
}


def main() -> None:
    """Run both trials and print the tables."""
    keys = 100 if "--quick" in sys.argv else 1000
    outcomes: list[Outcome] = []
    for callbacks in (False, True):
        trial = Trial(keys=keys, kills=plan(keys, random.Random(1)), callbacks=callbacks)
        with tempfile.TemporaryDirectory() as folder:
            outcomes.append(asyncio.run(run(trial, Path(folder))))
    rows = {title: [count(outcome) for outcome in outcomes] for title, count in ROWS.items()}
    kills = {step: [outcome.killed[step] for outcome in outcomes] for step in (*STEPS, RANDOM)}
    for title, table in ((f"{keys} keys", rows), ("processes killed", kills)):
        print(f"| {title} | callbacks off | callbacks on |\n| --- | ---: | ---: |")
        for row, figures in table.items():
            print(f"| {row} | {' | '.join(map(str, figures))} |")
        print()


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        asyncio.run(work(Orders.read(sys.argv[2:])))
    else:
        main()
