"""A fleet of workers on Procrastinate: what is paid twice, lost or refused, under SIGKILL too (part G).

Three worker processes share a PostgreSQL ledger, and a strict server counts. Usage:
python benchmarks/fleet.py [--quick] [--runs plain,kills,callbacks,limits,transaction,web]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import aiohttp
import attrs
import psycopg
from limits import database

from sora_chars import open_ledger
from sora_chars.ledger import queries

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncGenerator

HERE = Path(__file__).parent
WORKERS = 3
WEB_PROCESSES = 4
KILL_INTERVAL, TIMEOUT = 2.5, 240.0  # seconds between two kills; seconds of a run
TICKS = os.sysconf("SC_CLK_TCK")


@attrs.define(eq=False)
class Fleet:
    """The processes of a run.

    Attributes:
        config: What the processes are told.
        log: Where their errors go.
        workers: The living workers.
        cpu_s: CPU seconds of the workers since they were ready.
    """

    config: dict[str, Any]
    log: IO[bytes]
    workers: list[Process] = attrs.field(factory=list)
    cpu_s: float = 0.0
    _before: dict[int, float] = attrs.field(factory=dict)

    async def start(self, role: str, **options: Any) -> Process:
        """Start a process."""
        environment = os.environ | {"FLEET": json.dumps(self.config)}
        return await asyncio.create_subprocess_exec(
            sys.executable, HERE / "fleet_worker.py", role, env=environment, stderr=self.log, **options
        )

    async def add_worker(self) -> None:
        """Start a worker."""
        self.workers.append(await self.start("worker"))

    def mark(self) -> None:
        """Count the CPU seconds of the living workers from now on."""
        self._before = {worker.pid: _cpu(worker.pid) for worker in self.workers}

    def count(self, worker: Process) -> None:
        """Add the CPU seconds of a worker."""
        self.cpu_s += _cpu(worker.pid) - self._before.get(worker.pid, 0.0)

    async def kill_one(self, rng: random.Random) -> None:
        """Kill a worker, and start another one."""
        victim = self.workers.pop(rng.randrange(len(self.workers)))
        self.count(victim)
        victim.send_signal(signal.SIGKILL)
        await victim.wait()
        await self.add_worker()

    async def stop(self) -> None:
        """Stop the workers as a supervisor does."""
        for worker in self.workers:
            self.count(worker)
            worker.terminate()
        for worker in self.workers:
            try:
                await asyncio.wait_for(worker.wait(), 60)
            except TimeoutError:
                worker.kill()
                raise


def _cpu(pid: int) -> float:
    text = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(text[11]) + int(text[12])) / TICKS


@asynccontextmanager
async def server(**options: Any) -> AsyncGenerator[str, None]:
    """Run the server in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, HERE / "fleet_server.py", json.dumps(options), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout
    try:
        yield f"http://127.0.0.1:{int(await process.stdout.readline())}"
    finally:
        process.kill()
        await process.wait()


async def stats(url: str) -> dict[str, Any]:
    """Return what the server counted."""
    async with aiohttp.ClientSession() as client, client.get(f"{url}/stats") as answer:
        found: dict[str, Any] = await answer.json()
        return found


async def states(url: str) -> dict[str, int]:
    """Count the entries of the ledger by their states."""
    async with open_ledger(url) as ledger:
        counts: dict[str, int] = {}
        async for entry, _ in queries.with_attempts(ledger):
            counts[entry.state] = counts.get(entry.state, 0) + 1
        return counts


async def until_ended(url: str, keys: int) -> float:
    """Wait until every key has ended or is unknown; return the time at which the last one did."""
    deadline = time.monotonic() + TIMEOUT
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        while time.monotonic() < deadline:
            cursor = await connection.execute(
                "SELECT count(*) FILTER (WHERE state IN ('succeeded', 'failed', 'rejected')),"
                " count(*) FILTER (WHERE state = 'unknown') FROM sora_chars_entries"
            )
            ended, unknown = await cursor.fetchone() or (0, 0)
            if ended + unknown >= keys:
                return time.monotonic()
            await asyncio.sleep(0.2)
    return time.monotonic()


async def prepare(url: str) -> None:
    """Create the tables of Procrastinate and of the ledger."""
    from fleet_worker import app  # noqa: PLC0415 # it needs the environment

    async with app.open_async():
        await app.schema_manager.apply_schema_async()
    async with open_ledger(url):
        pass


async def register(keys: int) -> None:
    """Register every key with its job, as a web process does."""
    from fleet_worker import app, characters, fields  # noqa: PLC0415

    async with app.open_async(), characters:
        gate = asyncio.Semaphore(16)

        async def one(number: int) -> None:
            async with gate:
                await characters.register(**fields(number))

        await asyncio.gather(*map(one, range(keys)))


def use(config: dict[str, Any]) -> None:
    """Configure the modules of the fleet in this process."""
    os.environ["FLEET"] = json.dumps(config)
    sys.modules.pop("fleet_worker", None)


async def run(
    url: str,
    folder: Path,
    *,
    keys: int,
    scale: int = 10,
    kills: int = 0,
    callbacks: bool = False,
    own: int = 0,
    port: int = 0,
) -> dict[str, Any]:
    """Run the workers on `keys` requests, and return what was counted."""
    async with AsyncExitStack() as stack:
        provider = await stack.enter_async_context(server(scale=scale))
        log = stack.enter_context((folder / "workers.log").open("ab"))
        config: dict[str, Any] = {"url": provider, "database": url, "scale": scale, "keys": keys}
        config["own_log"] = str(folder / f"own-{keys}.jsonl")
        if callbacks:
            config |= {"callback_port": port, "callback_url": f"http://127.0.0.1:{port}/hooks"}
        use(config)
        await prepare(url)
        fleet = Fleet(config, log)
        if callbacks:
            web = await fleet.start("web", stdout=asyncio.subprocess.PIPE)
            stack.callback(_kill, web)
            assert web.stdout
            await web.stdout.readline()
        for _ in range(WORKERS):
            await fleet.add_worker()
        for worker in fleet.workers:
            stack.callback(_kill, worker)
        await asyncio.sleep(5.0)  # they are idle
        fleet.mark()
        began = time.monotonic()
        await register(keys)
        waits = asyncio.create_task(_defer_own(own)) if own else None
        killer = asyncio.create_task(_kill_some(fleet, kills))
        ended_at = await until_ended(url, keys)
        killer.cancel()
        if waits:
            await waits
        if callbacks:
            await asyncio.sleep(10.0)  # the last callbacks
        counted = await stats(provider)
        await fleet.stop()
        result = {"wall_s": ended_at - began, "cpu_s": fleet.cpu_s, "cpu_ms_per_job": fleet.cpu_s / keys * 1000}
        result |= counted | await states(url)
        if own:
            result |= _own_waits(Path(config["own_log"]))
        return result


def _kill(process: Process) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()


async def _kill_some(fleet: Fleet, kills: int) -> None:
    rng = random.Random(3)
    for _ in range(kills):
        await asyncio.sleep(KILL_INTERVAL)
        await fleet.kill_one(rng)


async def _defer_own(count: int) -> None:
    from fleet_worker import app, own  # noqa: PLC0415

    async with app.open_async():
        for number in range(count):
            await asyncio.sleep(0.5)
            await own.defer_async(number=number, deferred_at=time.time())
        await asyncio.sleep(5.0)


def _own_waits(path: Path) -> dict[str, Any]:
    waits = sorted(json.loads(line)["waited"] for line in path.read_text().splitlines())
    return {"own_jobs": len(waits), "own_wait_p50_s": statistics.median(waits), "own_wait_max_s": waits[-1]}


async def yardstick(url: str, *, keys: int, scale: int = 10) -> dict[str, Any]:
    """Run `create_many` in one process."""
    async with server(scale=scale) as provider:
        config = {"url": provider, "database": url, "scale": scale, "keys": keys, "own_log": ""}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            HERE / "fleet_worker.py",
            "create_many",
            env=os.environ | {"FLEET": json.dumps(config)},
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await process.communicate()
        result: dict[str, Any] = json.loads(out)
        result["cpu_ms_per_job"] = result["cpu_s"] / keys * 1000
        return result | await stats(provider) | await states(url)


async def web(url: str, *, keys: int, port: int) -> dict[str, Any]:
    """Create in web processes whose callbacks land on another one; return how long the awaiters waited after that."""
    async with AsyncExitStack() as stack:
        provider = await stack.enter_async_context(server(scale=1000, durations=(1.0, 9.0)))
        config = {"url": provider, "database": url, "scale": 1000, "keys": keys, "callback_port": port, "own_log": ""}
        processes: list[Process] = []
        for index in range(WEB_PROCESSES):
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                HERE / "fleet_worker.py",
                *("serve", str(index), str(WEB_PROCESSES)),
                env=os.environ | {"FLEET": json.dumps(config)},
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
            stack.callback(_kill, process)
            processes.append(process)
        await asyncio.gather(*map(_line, processes))
        _continue(processes)
        resumed: dict[str, float] = {}
        for line in await asyncio.gather(*map(_line, processes)):
            resumed |= json.loads(line)
        async with aiohttp.ClientSession() as client, client.get(f"{provider}/called") as answer:
            called: dict[str, float] = await answer.json()
        counted = await stats(provider)
        _continue(processes)
        await asyncio.gather(*(process.wait() for process in processes))
    delays = sorted(resumed[key] - called[key] for key in resumed)
    return {
        "awaiters": len(delays),
        "resumed_p50_ms": statistics.median(delays) * 1000,
        "resumed_p95_ms": delays[int(0.95 * len(delays))] * 1000,
        "polls_per_task": counted["polls"] / counted["tasks"],
    }


async def _line(process: Process) -> bytes:
    assert process.stdout
    return await process.stdout.readline()


def _continue(processes: list[Process]) -> None:
    for process in processes:
        assert process.stdin
        process.stdin.write(b"\n")


async def transaction(url: str, *, keys: int) -> dict[str, Any]:
    """Register orders in one transaction that is rolled back, and in one that is committed; count rows and jobs."""
    config = {"url": "http://127.0.0.1:9", "database": url, "scale": 1, "keys": keys, "own_log": ""}
    use(config)
    await prepare(url)
    from fleet_worker import app, characters, fields  # noqa: PLC0415

    found: dict[str, Any] = {}
    async with app.open_async(), characters, await psycopg.AsyncConnection.connect(url) as connection:
        await connection.execute("CREATE TABLE orders (id integer)")
        await connection.commit()
        for end in ("rolled back", "committed"):
            began = time.monotonic()
            for number in range(keys):
                await connection.execute("INSERT INTO orders VALUES (%s)", (number,))
                await characters.register(**fields(number), connection=connection)
            await (connection.rollback() if end == "rolled back" else connection.commit())
            took = time.monotonic() - began
            counts: dict[str, int] = {}
            for table in ("orders", "sora_chars_entries", "procrastinate_jobs"):
                row = await (await connection.execute(f"SELECT count(*) FROM {table}")).fetchone()
                counts[table] = (row or (0,))[0]
            await connection.commit()
            found[end] = counts | {"seconds": took}
    return found


async def main(runs: list[str], *, quick: bool) -> dict[str, Any]:
    """Run the named runs, each on a database of its own."""
    keys = 60 if quick else 500
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for each in runs:
            with database() as url:
                if isinstance(url, Exception):
                    raise url
                match each:
                    case "yardstick":
                        results[each] = await yardstick(url, keys=keys)
                    case "plain":
                        results[each] = await run(url, folder, keys=keys)
                    case "kills":
                        results[each] = await run(url, folder, keys=keys, kills=3 if quick else 8)
                    case "callbacks":
                        port = 21_000 + os.getpid() % 9000
                        kills = 3 if quick else 8
                        results[each] = await run(url, folder, keys=keys, kills=kills, callbacks=True, port=port)
                    case "limits":
                        results[each] = await run(url, folder, keys=30 if quick else 100, scale=1, own=30)
                    case "web":
                        results[each] = await web(url, keys=40 if quick else 200, port=31_000 + os.getpid() % 900)
                    case "transaction":
                        results[each] = await transaction(url, keys=keys)
                    case _:
                        raise ValueError(f"no run is called {each}")
            print(each, json.dumps(results[each], indent=1), flush=True)
        print((folder / "workers.log").read_text()[-3000:] if (folder / "workers.log").exists() else "")
    return results


RUNS = ("yardstick", "plain", "kills", "callbacks", "limits", "transaction", "web")


def figures(*, quick: bool) -> dict[str, Any]:
    """Run every run, and return a row for each; for `benchmarks/run.py`."""
    results = asyncio.run(main([*RUNS], quick=quick))
    ends = results.pop("transaction")
    return results | {f"transaction {end}": counted for end, counted in ends.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--runs", default=",".join(RUNS))
    given = parser.parse_args()
    asyncio.run(main(given.runs.split(","), quick=given.quick))
