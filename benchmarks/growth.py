"""Part F: what a ledger costs as it grows, in an SQLite file and in a PostgreSQL database.

The rows are written directly: nearly all of them are characters that were made, 1 in
1000 has failed, 10 mention a rare word, and 100 are running. Each number is the median of
several calls in milliseconds, except where its name has another unit. The first search
indexes all rows; the others find an index. Whole creates go through a session whose
provider answers at once.

Usage: python benchmarks/growth.py [--quick]
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import statistics
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limits import database
from measure import memory_bytes, reset_peak

from sora_chars import Character, CharacterRequest, CharacterSession, EntryState, Provider, TaskSnapshot, open_ledger
from sora_chars.ledger.entry import COLUMNS
from sora_chars.ledger.queries import characters

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Awaitable, Callable, Iterator

SIZES = (1000, 100_000, 1_000_000)
QUICK_SIZES = (1000, 3000)
RUNNING = 100
RARE = 10
CALLS = 20
SHOWN = 20  # entries of a list


class Prompt(Provider):
    """Answers every request at once with a character, and every poll with a running task."""

    name = "kie"
    synchronous = True

    async def submit(self, request: Any, *, key: str, callback_url: str | None, on_send: Any) -> TaskSnapshot:  # noqa: ARG002
        """See `Provider`."""
        async with on_send():
            character = Character(id=f"ch_{request.key}", provider=self.name)
            return TaskSnapshot(task_id="", provider=self.name, state="success", character=character)

    async def fetch(self, task_id: str) -> TaskSnapshot:
        """See `Provider`."""
        return TaskSnapshot(task_id=task_id, provider=self.name, state="waiting")


def rows(size: int) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of a ledger, in the order of `COLUMNS`, without facts of the user's own."""
    step = (size - RUNNING) // RARE
    for number in range(size):
        word = "zanzibar" if number % step == 0 and number < RARE * step else "meadow"
        task = f"{number * 2654435761 % 2**32:08x}{number:024x}"
        state = "failed" if number % 1000 == 1 else "succeeded"
        request = {"from_task": task, "clip": "1,3", "prompt": f"A friendly dog {number} in a {word}, drawn by hand"}
        result: dict[str, Any] = {"task_id": task, "provider": "kie", "state": "success", "raw": {"param": request}}
        result["character"] = {"id": f"ch_{task}", "provider": "kie", "username": f"dog.{number}", "name": "Rex"}
        values = (f"key-{number:07}", "kie", "character", state, json.dumps(request), f"d-{task}", task, None)
        if size - number <= RUNNING:
            yield (*values[:3], "running", *values[4:], None, None, None, 1.0, 1.0, 3)
        else:
            yield (*values, json.dumps(result), None, 2.0, 1.0, 1.0, 4)


def write(url: str, size: int) -> None:
    """Write the rows into the ledger at a URL, which has been opened before."""
    written = [name for name in COLUMNS if name != "meta_json"]
    names = ", ".join(written)
    if not url.startswith("postgresql:"):
        with closing(sqlite3.connect(url)) as file, file:
            file.executemany(
                f"INSERT INTO entries ({names}) VALUES ({', '.join('?' * len(written))})", rows(size)
            )  # our own names
        return
    import psycopg  # noqa: PLC0415 # an extra

    copying = f"COPY sora_chars_entries ({names}) FROM STDIN".encode()
    with psycopg.connect(url) as connection, connection.cursor() as cursor, cursor.copy(copying) as copy:
        for row in rows(size):
            copy.write_row(row)


def vacuum(url: str) -> None:
    """Do what autovacuum does within minutes, after all rows were indexed."""
    if url.startswith("postgresql:"):
        import psycopg  # noqa: PLC0415 # an extra

        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("VACUUM (ANALYZE) sora_chars_entries")


def stored_bytes(url: str) -> int:
    """Return the size of a ledger with its indexes."""
    if not url.startswith("postgresql:"):
        return Path(url).stat().st_size
    import psycopg  # noqa: PLC0415 # an extra

    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT pg_total_relation_size('sora_chars_entries')").fetchone()
    return int(row[0]) if row else 0


async def median(call: Callable[[int], Awaitable[object]], calls: int = CALLS) -> float:
    """Return the median duration of several calls, in milliseconds."""
    took: list[float] = []
    for number in range(calls):
        began = time.perf_counter()
        await call(number)
        took.append(time.perf_counter() - began)
    return statistics.median(took) * 1000


async def read(values: AsyncIterable[Any]) -> list[Any]:
    """Read everything that an iterator yields."""
    return [value async for value in values]


async def measure(url: str, size: int) -> dict[str, Any]:
    """Measure a ledger of one size."""
    async with open_ledger(url):
        pass
    write(url, size)

    async def open_and_close(_number: int) -> None:
        async with open_ledger(url):
            pass

    found: dict[str, Any] = {"entries": size, "opening": await median(open_and_close)}
    async with open_ledger(url) as ledger:
        request = {"prompt": "A friendly dog"}

        async def register(number: int) -> None:
            await ledger.register(key=f"new-{number}", provider="kie", kind="character", request=request)

        found["register"] = await median(register)
        first = await median(lambda _: read(characters(ledger, "zanzibar")), 1)
        vacuum(url)
        found |= {
            "first search, s": first / 1000,
            "characters": await median(lambda _: read(characters(ledger, limit=SHOWN))),
            "characters, 10 hits": await median(lambda _: read(characters(ledger, "zanzibar"))),
            "characters, no hit": await median(lambda _: read(characters(ledger, "nowhere at all"))),
            "ls": await median(lambda _: read(ledger.entries(newest_first=True, limit=SHOWN))),
            "ls --state failed": await median(
                lambda _: read(ledger.entries(states={EntryState.FAILED}, newest_first=True, limit=SHOWN))
            ),
            "ls KEY": await median(lambda _: read(ledger.entries(query=f"key-{size // 2:07}", newest_first=True))),
        }
        assert len(await read(characters(ledger, "zanzibar"))) == RARE  # the benchmark's own check
    found |= await measure_session(url)
    return found | await measure_export(url, size)


async def measure_session(url: str) -> dict[str, Any]:
    """Measure whole creates, repeated ones, and recovery."""
    async with CharacterSession(Prompt(), ledger=url) as session:

        async def create(number: int) -> None:
            await session.create(CharacterRequest(from_task="7118f712" * 4, clip="1,3", key=f"created-{number}"))

        found = {"create": await median(create), "create, same key": await median(create)}
        began = time.perf_counter()
        handles = await read(session.recover())
        found["recover, 100 running"] = (time.perf_counter() - began) * 1000
        assert len(handles) == RUNNING  # the benchmark's own check
    return found


async def measure_export(url: str, size: int) -> dict[str, Any]:
    """Measure the memory and the time that reading every entry takes, and the space of an entry."""
    async with open_ledger(url) as ledger:
        before = memory_bytes()
        reset_peak()
        began = time.perf_counter()
        async for entry in ledger.entries():
            json.dumps([entry.request, entry.result])
        seconds = time.perf_counter() - began
        grown = memory_bytes(peak=True) - before
    return {"export, s": seconds, "export, MB": grown / 1e6, "bytes an entry": stored_bytes(url) / size}


def figures(*, quick: bool) -> list[dict[str, Any]]:
    """Measure ledgers of several sizes of both kinds."""
    measured: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, database() as server:
        for size in QUICK_SIZES if quick else SIZES:
            urls = {"sqlite": f"{folder}/{size}.db"}
            if isinstance(server, str):
                urls["postgresql"] = make_database(server, f"growth_{size}")
            for kind, url in urls.items():
                row = {"ledger": kind, **asyncio.run(measure(url, size))}
                measured.append(row)
                print("  " + ", ".join(f"{k} {v:,.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
    return measured


def make_database(url: str, name: str) -> str:
    """Create a database on the server at a URL, and return the URL of the database."""
    import psycopg  # noqa: PLC0415 # an extra

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    before, _, options = url.partition("?")
    return f"{before.rpartition('/')[0]}/{name}?{options}"


if __name__ == "__main__":
    figures(quick="--quick" in sys.argv[1:])
