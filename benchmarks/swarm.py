"""Counts what is paid twice or lost while a swarm of processes works on the same keys under random faults.

Workers create, cancel, advance, recover, resolve and retry on one ledger; see `swarm_worker.py`. The server of
`swarm_server.py` loses answers and counts tasks by key. This process sends SIGKILL and SIGSTOP with SIGCONT at random,
starts another worker for each killed one, and terminates connections of PostgreSQL. At the end a last session recovers
and resolves every key, and the tasks are compared with the entries. The exit status is 1 if a task was paid twice or
lost. Usage: python benchmarks/faults.py --swarm [--quick] [--stores sqlite,postgres] [--terminate 60]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
from limits import database
from swarm_server import CountingServer
from swarm_worker import Swarm, fields, settle

from sora_chars import EntryState, SoraCharsError

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Iterable

    from sora_chars import CharacterSession, Entry

INTERVAL = (0.3, 1.1)  # seconds between two faults
STOPPED = (0.05, 6.0)  # seconds between SIGSTOP and SIGCONT; longer than the grace period of some owners
KEYS_PER_FAULT = 2  # by which the window of keys moves
ROUNDS = 12  # of the last session, until nothing is left to decide
ENDED = (EntryState.SUCCEEDED, EntryState.FAILED)


@attrs.frozen(kw_only=True)
class Plan:
    """The faults of a run.

    Attributes:
        workers: How many processes work at once.
        kills: How many of them are killed.
        stops: How often one is stopped and continued.
        terminations: How often connections to PostgreSQL are terminated.
        grace: Seconds for which a lock must be free on PostgreSQL before its owner counts as dead.
        seed: Decides the order of the faults and the fates of the requests.
    """

    workers: int
    kills: int
    stops: int
    terminations: int
    grace: float
    seed: int

    def faults(self) -> list[str]:
        """Return the faults in random order."""
        faults = ["kill"] * self.kills + ["stop"] * self.stops + ["terminate"] * self.terminations
        random.Random(self.seed).shuffle(faults)
        return faults


@attrs.define(eq=False)
class Driver:
    """Keeps the workers running, and injects the faults."""

    swarm: Swarm
    plan: Plan
    rng: random.Random
    done: Counter[str] = attrs.field(factory=Counter)
    backends: int = 0
    crashes: int = 0
    _workers: dict[int, Process] = attrs.field(factory=dict)
    _resuming: set[asyncio.Task[None]] = attrs.field(factory=set)

    async def run(self) -> None:
        """Run the workers until the end of the swarm."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self.plan.workers):
                group.create_task(self._keep_running())
            await self._inject()
            await asyncio.gather(*self._resuming)
            (self.swarm.folder / "ended").touch()

    async def _keep_running(self) -> None:
        while not self.swarm.ended:
            with (self.swarm.folder / "workers.log").open("ab") as log:
                worker = await asyncio.create_subprocess_exec(*self.swarm.command(), stderr=log)
            self._workers[worker.pid] = worker
            try:
                if await worker.wait() not in {0, -signal.SIGKILL}:
                    self.crashes += 1
                    if self.crashes > self.plan.workers:
                        raise RuntimeError(f"the workers crash: see {self.swarm.folder / 'workers.log'}")
            finally:
                del self._workers[worker.pid]
                self.swarm.ready(worker.pid).unlink(missing_ok=True)
                if worker.returncode is None:
                    worker.kill()

    async def _inject(self) -> None:
        for number, fault in enumerate(self.plan.faults()):
            self.swarm.move(number * KEYS_PER_FAULT)
            await asyncio.sleep(self.rng.uniform(*INTERVAL))
            pid = await self._victim()
            self.done[fault] += 1
            self.swarm.record(fault=fault, worker=pid)
            match fault:
                case "kill":
                    self.swarm.ready(pid).unlink()
                    os.kill(pid, signal.SIGKILL)
                case "stop":
                    os.kill(pid, signal.SIGSTOP)
                    self._resuming.add(asyncio.create_task(self._resume(pid)))
                case _:
                    self.backends += await self._terminate()

    async def _victim(self) -> int:
        """Wait until a worker makes calls, and return the process id of one that does."""
        while not (ready := [pid for pid in self._workers if self.swarm.ready(pid).exists()]):  # noqa: ASYNC110 # files
            await asyncio.sleep(0.1)
        return self.rng.choice(ready)

    async def _resume(self, pid: int) -> None:
        await asyncio.sleep(self.rng.uniform(*STOPPED) ** 2 / STOPPED[1])  # mostly short
        if pid in self._workers:
            with suppress(ProcessLookupError):  # it was killed just now
                os.kill(pid, signal.SIGCONT)

    async def _terminate(self) -> int:
        """Terminate one connection of the workers, or every tenth time all of them, and return their number."""
        import psycopg  # noqa: PLC0415 # an extra

        limit = None if self.rng.random() < 0.1 else 1
        statement = (
            "SELECT pg_terminate_backend(pid) FROM (SELECT pid FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid() ORDER BY random() LIMIT %s) AS chosen"
        )
        async with await psycopg.AsyncConnection.connect(self.swarm.ledger) as connection:
            return len(await (await connection.execute(statement, (limit,))).fetchall())


@attrs.define(eq=False)
class Count:
    """What the server and the ledger say at the end.

    Attributes:
        entries: Entries by state.
        lost: Tasks that no entry names, and that no unknown entry or rejected one that may be charged explains.
        unproven: Tasks behind a rejected entry that may be charged.
        contradictions: Entries that say something else than the server.
    """

    entries: Counter[EntryState] = attrs.field(factory=Counter)
    attempts: int = 0
    lost: list[str] = attrs.field(factory=list)
    unproven: list[str] = attrs.field(factory=list)
    unknown: list[str] = attrs.field(factory=list)
    contradictions: list[str] = attrs.field(factory=list)

    async def add(self, session: CharacterSession, server: CountingServer, entry: Entry) -> None:
        """Count an entry."""
        self.entries[entry.state] += 1
        attempts = await session.ledger.attempts(entry.key)
        self.attempts += len(attempts)
        known = {entry.task_id, *(attempt.task_id for attempt in attempts)}
        unrecorded = [task.task_id for task in server.tasks_of(entry.key) if task.task_id not in known]
        if entry.state is EntryState.UNKNOWN:
            self.unknown.append(f"{entry.key}: {entry.error} {unrecorded}")
        elif entry.state is EntryState.REJECTED and entry.may_have_been_paid:
            self.unproven += unrecorded
        else:
            self.lost += [f"{entry.key}: {task_id}, entry is {entry.state}" for task_id in unrecorded]
        task = server.tasks.get(entry.task_id or "")
        expected = {EntryState.SUCCEEDED: "success", EntryState.FAILED: "fail"}.get(entry.state)
        if expected and (task is None or task.key != entry.key or task.state != expected):
            self.contradictions.append(f"{entry.key}: entry is {entry.state}, task is {task and task.state}")
        elif expected is None and entry.state not in {EntryState.UNKNOWN, EntryState.REJECTED}:
            self.contradictions.append(f"{entry.key}: entry is still {entry.state}")


async def finish(swarm: Swarm, session: CharacterSession) -> None:
    """Recover every entry, resolve what is unknown, and send what was not sent."""
    for _ in range(ROUNDS):
        handles = [handle async for handle in session.recover()]
        await asyncio.gather(*(handle.result(30) for handle in handles), return_exceptions=True)
        states = set(EntryState) - set(ENDED)
        open_entries = [entry async for entry in session.ledger.entries(states=states)]
        if not open_entries:
            return
        for entry in open_entries:
            with suppress(SoraCharsError):
                if entry.state is EntryState.UNKNOWN or entry.may_have_been_paid:
                    await settle(swarm, session, entry.key)
                else:
                    await session.create(**fields(entry.key), timeout=30)


async def run(plan: Plan, ledger: str, folder: Path) -> tuple[Driver, CountingServer, Count]:
    """Run a swarm on a ledger."""
    rng = random.Random(plan.seed)
    async with CountingServer(folder, rng).running() as server:
        swarm = Swarm(url=server.url, ledger=ledger, folder=folder, grace=plan.grace)
        swarm.move(0)
        driver = Driver(swarm, plan, random.Random(plan.seed + 1))
        await driver.run()
        server.calm = True
        count = Count()
        async with swarm.open(timeout=30) as session:
            await finish(swarm, session)
            async for entry in session.ledger.entries():
                await count.add(session, server, entry)
            recorded = {entry.key async for entry in session.ledger.entries()}
        count.lost += [f"{task.key}: no entry" for task in server.tasks.values() if task.key not in recorded]
        return driver, server, count


def calls(folder: Path) -> tuple[int, Counter[str], list[str]]:
    """Return the number of calls that ended, their errors by type, and those that should not happen."""
    lines = [json.loads(line) for line in (folder / "calls.log").read_text().splitlines()]
    ended = [line for line in lines if "ended" in line]
    unexpected = [line for line in ended if "unexpected" in line or line.get("error") == "InvalidTransitionError"]
    errors = Counter(line["error"] for line in ended if "error" in line)
    return len(ended), errors, [f"{line['ended']} {line['key']}: {line['message']}" for line in unexpected]


def rows(driver: Driver, server: CountingServer, count: Count, folder: Path) -> dict[str, object]:
    """Return the rows of the table."""
    ended, errors, unexpected = calls(folder)
    log = folder / "workers.log"
    return {
        "processes killed": driver.done["kill"],
        "processes stopped and continued": driver.done["stop"],
        "connections terminated": driver.backends,
        "workers that crashed": driver.crashes,
        "calls that ended": ended,
        "calls that raised an error of the package": errors.total(),
        "calls that raised anything else, or hung": len(unexpected),
        "creates received": server.fates.total(),
        "creates that were answered in time": server.fates["answered"],
        "tasks on the server": len(server.tasks),
        "keys": count.entries.total(),
        "earlier attempts": count.attempts,
        "tasks made for a key that had one": len(server.twice),
        "second tasks that the package logged": log.read_text().count("second task") if log.exists() else 0,
        "tasks that the ledger lost": len(count.lost),
        "tasks behind a rejection without proof": len(count.unproven),
        "entries that contradict the server": len(count.contradictions),
        **{f"entries that are {state} in the end": count.entries[state] for state in EntryState},
    }


def figures(plan: Plan, stores: Iterable[str], folder: Path) -> dict[str, tuple[dict[str, object], list[str]]]:
    """Run a swarm on each store. Return its rows, and what is wrong."""
    outcomes: dict[str, tuple[dict[str, object], list[str]]] = {}
    for store in stores:
        own = folder / store
        own.mkdir(parents=True, exist_ok=True)
        if store == "sqlite":
            driver, server, count = asyncio.run(run(attrs.evolve(plan, terminations=0), f"{own}/characters.db", own))
        else:
            with database() as url:
                if isinstance(url, Exception):
                    raise SystemExit(f"PostgreSQL does not run here: {url}")
                driver, server, count = asyncio.run(run(plan, url, own))
        _, errors, unexpected = calls(own)
        print(f"{store}: {dict(errors)} {dict(driver.done)} {dict(server.fates)}", *count.unknown, sep="\n", flush=True)
        wrong = [f"paid twice: {one}" for one in server.twice] + [f"lost: {one}" for one in count.lost]
        wrong += [f"contradiction: {one}" for one in count.contradictions] + unexpected
        if driver.crashes:
            wrong.append((own / "workers.log").read_text()[-2000:])
        outcomes[store] = rows(driver, server, count, own), wrong
    return outcomes


def main() -> None:
    """Run the swarm and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the faults")
    parser.add_argument("--swarm", action="store_true", help=argparse.SUPPRESS)  # how faults.py is called
    parser.add_argument("--stores", default="sqlite,postgres")
    parser.add_argument("--workers", type=int, default=10)
    parser.add_argument("--kills", type=int, default=110)
    parser.add_argument("--stops", type=int, default=70)
    parser.add_argument("--terminate", type=int, default=70, help="0 leaves PostgreSQL's connections alone")
    parser.add_argument("--grace", type=float, default=3.0, help="seconds; 15 is the default of the package")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, help="folder that keeps the ledger and the log of all calls")
    options = parser.parse_args()
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "*"  # every server is on loopback
    share = 10 if options.quick else 1
    plan = Plan(
        workers=options.workers,
        kills=options.kills // share,
        stops=options.stops // share,
        terminations=options.terminate // share,
        grace=options.grace,
        seed=options.seed,
    )
    with tempfile.TemporaryDirectory() as temporary:
        outcomes = figures(plan, options.stores.split(","), options.output or Path(temporary))
    print(f"\n| swarm | {' | '.join(outcomes)} |\n| --- |{' ---: |' * len(outcomes)}")
    for title in next(iter(outcomes.values()))[0]:
        print(f"| {title} | {' | '.join(str(row[title]) for row, _ in outcomes.values())} |")
    wrong = [f"{store}: {line}" for store, (_, lines) in outcomes.items() for line in lines]
    print("", *wrong, sep="\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
