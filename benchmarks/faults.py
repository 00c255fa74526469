"""Counts what is lost or paid twice when processes are killed at every step.

Worker processes create one character for each key, with one SQLite ledger and one emulator.
They kill themselves with SIGKILL, at a named step or at a random time, and are restarted
until every key has succeeded or is unknown. Then the tasks of the emulator and the entries
of the ledger are counted. Finally the unknown entries are resolved from the server's tasks,
and the remaining keys are created. Usage: python benchmarks/faults.py [--quick]

With --swarm it runs the processes of `swarm.py` instead, which share keys, on both stores.
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
from typing import TYPE_CHECKING, ClassVar

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
    from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
    from contextlib import AbstractAsyncContextManager

    from sora_chars import Entry, TaskSnapshot
    from sora_chars.ledger import Attempt
    from sora_chars.models import Request

KEY = "benchmark-key-of-no-account"
ORIGIN = "7118f712" * 4
STEPS = (
    "before pending",
    "after pending",
    "before sending",
    "after sending",
    "request sent",
    "response begins",
    "response read",
    "before running",
    "after running",
    "before succeeded",
    "after succeeded",
)
"""Before and after each write of a state to the ledger, and between `sending` and `running`."""
RANDOM = "random"
CALLBACK_DELAY = 0.5  # seconds; workers then mostly detect a task's end before its callback arrives
CALLBACK_TIMEOUT = 20.0  # seconds for the last callbacks to arrive


# ---- The worker: a separate process


@attrs.define(eq=False)
class ProcessKiller:
    """Kills this process when it reaches a step for the `remaining`th time.

    The file `in_flight_file` holds the number of requests that were in flight then.
    """

    step: str
    remaining: int
    in_flight_file: Path
    in_flight: set[str] = attrs.field(factory=set)

    def reach(self, step: str) -> None:
        """Kill this process if this is its step."""
        if step == self.step:
            self.remaining -= 1
            if self.remaining == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def record(self, key: str, *, sending: bool) -> None:
        """Store how many requests may have been sent and are not recorded."""
        (self.in_flight.add if sending else self.in_flight.discard)(key)
        self.in_flight_file.write_text(f"{len(self.in_flight)}")


class KillingStore(SqliteStore):
    """An SQLite store whose writes are steps."""

    def __init__(self, path: Path, killer: ProcessKiller) -> None:
        super().__init__(path)
        self._killer = killer

    async def insert(self, entry: Entry) -> Entry:
        """Insert an entry."""
        self._killer.reach(f"before {entry.state}")
        stored = await super().insert(entry)
        self._killer.reach(f"after {entry.state}")
        return stored

    async def replace(self, before: Entry, after: Entry, *, archive: Attempt | None = None) -> Entry | None:
        """Replace an entry."""
        self._killer.reach(f"before {after.state}")
        if after.state is EntryState.SENDING:
            self._killer.record(after.key, sending=True)
        stored = await super().replace(before, after, archive=archive)
        self._killer.reach(f"after {after.state}")
        if before.state is EntryState.SENDING or stored is not after:
            self._killer.record(after.key, sending=False)
        return stored


class KillingKie(Kie):
    """A provider whose requests and responses are steps."""

    def __init__(self, url: str, callback_url: str | None, http: aiohttp.ClientSession, killer: ProcessKiller) -> None:
        super().__init__(KEY, base_url=url, callback_url=callback_url, limits=None, http=http)
        self._killer = killer

    async def submit(
        self,
        request: Request,
        *,
        key: str,
        callback_url: str | None,
        on_send: Callable[[], AbstractAsyncContextManager[None]],
    ) -> TaskSnapshot:
        """Submit the request."""

        @asynccontextmanager
        async def observed() -> AsyncGenerator[None, None]:
            async with on_send():
                yield
            self._killer.reach("response read")

        return await super().submit(request, key=key, callback_url=callback_url, on_send=observed)


def tracing(killer: ProcessKiller) -> aiohttp.TraceConfig:
    """Return a trace that reports when a create is sent and when its response begins."""
    trace = aiohttp.TraceConfig()

    async def sent(_http: object, _context: object, _params: aiohttp.TraceRequestChunkSentParams) -> None:
        # aiohttp calls this just before it writes the bytes, in the same loop iteration. Only creates have a body.
        asyncio.get_running_loop().call_soon(killer.reach, "request sent")

    async def responded(_http: object, _context: object, params: aiohttp.TraceRequestEndParams) -> None:
        if params.method == "POST":
            killer.reach("response begins")

    trace.on_request_chunk_sent.append(sent)
    trace.on_request_end.append(responded)
    return trace


@attrs.frozen(kw_only=True)
class WorkerOptions:
    """The options of a worker process.

    Attributes:
        url: The emulator.
        ledger: The SQLite file.
        in_flight_file: Where the number of requests in flight is stored.
        keys: The number of keys.
        concurrency: How many creates run at once.
        seed: Decides the order of the keys.
        step: The step at which the process is killed; "" for never.
        after: The number of times that the step is reached before; milliseconds for a
            random time.
        callback_url: Where callbacks are sent; "" for nowhere.
    """

    script: ClassVar[str] = __file__
    url: str
    ledger: Path
    in_flight_file: Path
    keys: int
    concurrency: int
    seed: int
    step: str = ""
    after: int = 0
    callback_url: str = ""

    def command(self) -> list[str]:
        """Return the command line with these options."""
        return [sys.executable, self.script, "worker", *(str(value) for value in attrs.astuple(self))]

    @classmethod
    def parse(cls, words: list[str]) -> WorkerOptions:
        """Return the options of a command line."""
        url, ledger, in_flight_file, keys, concurrency, seed, step, after, callback_url = words
        return cls(
            url=url,
            ledger=Path(ledger),
            in_flight_file=Path(in_flight_file),
            keys=int(keys),
            concurrency=int(concurrency),
            seed=int(seed),
            step=step,
            after=int(after),
            callback_url=callback_url,
        )


async def work(options: WorkerOptions) -> None:
    """Create the remaining characters, or be killed."""
    killer = ProcessKiller(options.step, options.after, options.in_flight_file)
    if options.step == RANDOM:
        threading.Timer(options.after / 1000, os.kill, (os.getpid(), signal.SIGKILL)).start()
    keys = [key_of(number) for number in range(options.keys)]
    random.Random(options.seed).shuffle(keys)
    async with aiohttp.ClientSession(trace_configs=[tracing(killer)]) as http:
        kie = KillingKie(options.url, options.callback_url or None, http, killer)
        ledger = Ledger(KillingStore(options.ledger, killer))
        async with CharacterSession(kie, ledger=ledger, polling=FixedInterval(0.05), timeout=60) as session:
            ended = {EntryState.SUCCEEDED, EntryState.UNKNOWN}
            done = {entry.key async for entry in ledger.entries(states=ended)}
            todo = iter([key for key in keys if key not in done])
            await asyncio.gather(*(create_each(session, todo) for _ in range(options.concurrency)))
    os._exit(0)  # before the timer of a random kill fires


async def create_each(session: CharacterSession, keys: Iterator[str]) -> None:
    """Create one character after the other. Unknown entries stay unknown."""
    for key in keys:
        with suppress(SubmissionUnknownError):
            await session.create(from_task=ORIGIN, clip="1,3", prompt=key, key=key)


def key_of(number: int) -> str:
    """Return the key with this number. It is also the prompt, which identifies the server's task."""
    return f"key-{number:04}"


# ---- The supervisor: this process, with the emulator, the callback receiver and the counts


@attrs.frozen(kw_only=True)
class Trial:
    """One run of the benchmark.

    Attributes:
        keys: The number of keys.
        kills: The kills in order, each with its step and `WorkerOptions.after`.
        workers: How many worker processes run at once.
        concurrency: How many creates each of them runs at once.
        callbacks: Whether callbacks are sent.
    """

    keys: int
    kills: list[tuple[str, int]]
    workers: int = 2
    concurrency: int = 8
    callbacks: bool = False


@attrs.define(kw_only=True)
class Outcome:
    """The counts of a trial.

    Attributes:
        killed: Killed processes by step.
        in_flight: Requests that were not recorded when their process was killed.
        tasks: Tasks on the server.
        twice: Keys with two tasks.
        lost: Tasks that no entry names and no unknown key explains.
        succeeded: Entries that succeeded.
        unknown: Entries that are unknown.
        unknown_created: Unknown keys with a task on the server.
        final_tasks: Tasks after all unknown entries were resolved.
        final_twice: Keys with two tasks then.
        final_succeeded: Entries that succeeded then.
    """

    killed: Counter[str] = attrs.field(factory=Counter)
    in_flight: int = 0
    tasks: int = 0
    twice: int = 0
    lost: int = 0
    succeeded: int = 0
    unknown: int = 0
    unknown_created: int = 0
    final_tasks: int = 0
    final_twice: int = 0
    final_succeeded: int = 0


@attrs.define(eq=False)
class Supervisor:
    """Starts workers until every key is done, and counts."""

    options: ClassVar[type[WorkerOptions]] = WorkerOptions
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
        async with asyncio.TaskGroup() as group:
            for _ in range(self.trial.workers):
                group.create_task(self._restart_workers(kills))
        if self.trial.callbacks:
            await self._wait_for_callbacks()
        await self._count()
        await self._resolve()
        await self._restart_workers(deque())
        keys = [key for _, key in self.tasks()]
        self.outcome.final_tasks = len(keys)
        self.outcome.final_twice = len(keys) - len(set(keys))
        self.outcome.final_succeeded = len(await self._entries(EntryState.SUCCEEDED))
        return self.outcome

    async def _restart_workers(self, kills: deque[tuple[str, int]]) -> None:
        """Start one worker after the other until one finishes all keys."""
        while True:
            step, after = kills.popleft() if kills else ("", 0)
            if not await self._run_worker(step, after):
                return
            self.outcome.killed[step] += 1

    async def _run_worker(self, step: str, after: int) -> bool:
        """Run a worker, and return whether it was killed."""
        self._started += 1
        options = self.options(
            url=self.emulator.url,
            ledger=self.folder / "characters.db",
            in_flight_file=self.folder / f"in-flight-{self._started}",
            keys=self.trial.keys,
            concurrency=self.trial.concurrency,
            seed=self._started,
            step=step,
            after=after,
            callback_url=self.callback_url,
        )
        process = await asyncio.create_subprocess_exec(*options.command(), stderr=asyncio.subprocess.PIPE)
        _, stderr = await process.communicate()
        if process.returncode not in {0, -signal.SIGKILL}:
            raise RuntimeError(f"worker {options} ended with {process.returncode}: {stderr.decode()}")
        if process.returncode and options.in_flight_file.exists():
            self.outcome.in_flight += int(
                options.in_flight_file.read_text() or 1
            )  # empty if killed during the first write
        return process.returncode != 0

    async def _wait_for_callbacks(self) -> None:
        """Wait until the callback of each task has arrived."""
        async with asyncio.timeout(CALLBACK_TIMEOUT):
            while await self._unknown_created():  # noqa: ASYNC110 # only the ledger has the result
                await asyncio.sleep(0.05)

    async def _count(self) -> None:
        tasks = self.tasks()
        keys = [key for _, key in tasks]
        known = {entry.task_id for entry in await self._entries(*EntryState)}
        unknown = {entry.key for entry in await self._entries(EntryState.UNKNOWN)}
        self.outcome.tasks = len(tasks)
        self.outcome.twice = len(keys) - len(set(keys))
        self.outcome.lost = sum(task_id not in known and key not in unknown for task_id, key in tasks)
        self.outcome.succeeded = len(await self._entries(EntryState.SUCCEEDED))
        self.outcome.unknown = len(unknown)
        self.outcome.unknown_created = len(await self._unknown_created())

    async def _resolve(self) -> None:
        """Resolve unknown entries from the server's tasks, as a user would on the provider's site."""
        task_ids = {key: task_id for task_id, key in self.tasks()}
        for entry in await self._entries(EntryState.UNKNOWN):
            task_id = task_ids.get(entry.key)
            await self.session.resolve(entry.key, task_id=task_id, never_sent=task_id is None)

    async def _unknown_created(self) -> set[str]:
        return {entry.key for entry in await self._entries(EntryState.UNKNOWN, EntryState.SENDING)} & {
            key for _, key in self.tasks()
        }

    async def _entries(self, *states: EntryState) -> list[Entry]:
        return [entry async for entry in self.session.ledger.entries(states=states)]

    def tasks(self) -> list[tuple[str, str]]:
        """Return the id and the key of each task on the server."""
        return [(task_id, str(task.input["character_prompt"])) for task_id, task in self.emulator.tasks.items()]


async def run(trial: Trial, folder: Path) -> Outcome:
    """Run a trial with an emulator and a callback receiver; its files are stored in `folder`."""
    async with Emulator(durations=(0.05, 0.3), credits=1e9) as emulator, receiving() as (receivers, url):
        callback_url = f"{url}/hooks" if trial.callbacks else ""
        kie = Kie(KEY, base_url=emulator.url, callback_url=callback_url or None, limits=None)
        ledger = open_ledger(folder / "characters.db")
        async with CharacterSession(kie, ledger=ledger, polling=FixedInterval(0.05)) as session:
            receivers.append(CallbackReceiver(session))
            emulator.fault("delay", on="callback", times=None, seconds=CALLBACK_DELAY)
            return await Supervisor(trial, folder, emulator, session, callback_url).run()


@asynccontextmanager
async def receiving() -> AsyncGenerator[tuple[list[CallbackReceiver], str], None]:
    """Listen for callbacks; the receiver that is added to the list handles them."""
    receivers: list[CallbackReceiver] = []

    async def respond(request: web.Request) -> web.Response:
        async def body() -> AsyncGenerator[bytes, None]:
            yield await request.read()

        status, payload = await receivers[0].handle(request.method, request.path, request.headers, body())
        return web.json_response(payload, status=status)

    app = web.Application()
    app.router.add_post("/hooks/{token}", respond)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield receivers, f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def plan(keys: int, rng: random.Random) -> list[tuple[str, int]]:
    """Return kills in random order, half of them at random times and half at the named steps."""
    rounds = max(1, keys // 200)
    named = [(step, rng.randint(1, 8)) for step in STEPS * rounds]
    kills = named + [(RANDOM, rng.randint(0, 600)) for _ in named]
    rng.shuffle(kills)
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
    "unknown with a task on the server": lambda outcome: outcome.unknown_created,
    "tasks once the unknown were resolved": lambda outcome: outcome.final_tasks,
    "keys with two tasks then": lambda outcome: outcome.final_twice,
    "succeeded then": lambda outcome: outcome.final_succeeded,
}


def main() -> None:
    """Run both trials and print the tables."""
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "*"  # every server is on loopback
    keys = 100 if "--quick" in sys.argv else 1000
    outcomes: list[Outcome] = []
    for callbacks in (False, True):
        trial = Trial(keys=keys, kills=plan(keys, random.Random(1)), callbacks=callbacks)
        with tempfile.TemporaryDirectory() as folder:
            outcomes.append(asyncio.run(run(trial, Path(folder))))
    report(keys, dict(zip(("callbacks off", "callbacks on"), outcomes, strict=True)), ROWS)


def report(keys: int, outcomes: Mapping[str, Outcome], counts: Mapping[str, Callable[[Outcome], int]]) -> None:
    """Print the tables: a column for each outcome, and a row for each count and for each step."""
    rows = {title: [count(outcome) for outcome in outcomes.values()] for title, count in counts.items()}
    kills = {step: [outcome.killed[step] for outcome in outcomes.values()] for step in (*STEPS, RANDOM)}
    for title, table in ((f"{keys} keys", rows), ("processes killed", kills)):
        print(f"| {title} | {' | '.join(outcomes)} |\n| --- |{' ---: |' * len(outcomes)}")
        for row, figures in table.items():
            print(f"| {row} | {' | '.join(map(str, figures))} |")
        print()


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        asyncio.run(work(WorkerOptions.parse(sys.argv[2:])))
    elif "--swarm" in sys.argv:
        import swarm  # the workers above start faster without it

        swarm.main()
    else:
        main()
