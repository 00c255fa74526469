"""What a record costs: many concurrent writers take entries from `pending` to `succeeded`, four records per entry.

For each kind of ledger it measures the records per second, the CPU time per record in
microseconds (of all threads of this process), and how long a writer waits until one
record is durable. The row `sqlite by hand` runs similar SQLite statements in one thread,
with a commit after each. On a shared machine only the ratios are meaningful.

Usage: python benchmarks/ledger.py [POSTGRES_URL]
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora_chars import EntryState, open_ledger

if TYPE_CHECKING:
    from collections.abc import Callable

    from sora_chars import Ledger

REQUEST: dict[str, Any] = {"from_task": "7118f712" * 4, "clip": "1,3", "prompt": "A friendly cartoon character"}
DIGEST = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d0"
RESULT = {"id": "ch_1", "username": "a.dog"}
RECORDS = 4  # per entry
ENTRIES = 60_000
WRITERS = 100


async def write(ledger: Ledger, name: str, entries: int, waits: list[float]) -> None:
    """Take entries from `pending` to `succeeded`, one after another."""
    for number in range(entries):
        key = f"{number:06}-{name}"
        began = time.perf_counter()
        entry = await ledger.register(key=key, provider="kie", kind="character", request=REQUEST)
        waits.append(time.perf_counter() - began)
        entry = await ledger.transition(entry, EntryState.SENDING, token_digest=f"{key}-{DIGEST}")
        entry = await ledger.transition(entry, EntryState.RUNNING, task_id=f"{key}-7118f712a4b24eaf")
        await ledger.transition(entry, EntryState.SUCCEEDED, result=RESULT, credits=2.0)


async def by_ledger(url: str, writers: int, entries: int) -> list[float]:
    """Write with concurrent writers; return how many seconds each registration took."""
    waits: list[float] = []
    async with open_ledger(url) as ledger:
        await asyncio.gather(*(write(ledger, f"{number}", entries // writers, waits) for number in range(writers)))
    return waits


def by_hand(path: Path, entries: int) -> list[float]:
    """Insert one row per entry and update it three times, with a commit after each statement."""
    waits: list[float] = []
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE entries (key TEXT PRIMARY KEY, state TEXT, request TEXT, task TEXT, result TEXT)")
    for number in range(entries):
        began = time.perf_counter()
        connection.execute("INSERT INTO entries VALUES (?, 'pending', ?, NULL, NULL)", (f"{number:06}", str(REQUEST)))
        waits.append(time.perf_counter() - began)
        for state in ("sending", "running", "succeeded"):
            connection.execute("UPDATE entries SET state = ?, task = 't-1' WHERE key = ?", (state, f"{number:06}"))
    connection.close()
    return waits


def measure(name: str, entries: int, work: Callable[[], list[float]]) -> dict[str, Any]:
    """Measure one row of the table."""
    began = time.perf_counter()
    cpu_began = time.process_time()
    waits = sorted(work())
    seconds = time.perf_counter() - began
    cpu = time.process_time() - cpu_began
    records = entries * RECORDS
    row = {
        "ledger": name,
        "records_a_second": records / seconds,
        "cpu_us_each": cpu / records * 1e6,
        "wait_p50_ms": waits[len(waits) // 2] * 1000,
        "wait_p99_ms": waits[len(waits) * 99 // 100] * 1000,
    }
    print("  " + ", ".join(f"{value:,.1f} {name}" if value != row["ledger"] else value for name, value in row.items()))
    return row


def figures(*, quick: bool, urls: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure every kind of ledger, and the PostgreSQL databases at `urls`."""
    many = 2000 if quick else ENTRIES
    few = 100 if quick else 2000
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            measure(f"memory:, {WRITERS} writers", many, lambda: asyncio.run(by_ledger("memory:", WRITERS, many))),
            measure(f"sqlite:, {WRITERS} writers", many, lambda: asyncio.run(by_ledger(f"{folder}/a", WRITERS, many))),
            measure("sqlite:, 1 writer", few, lambda: asyncio.run(by_ledger(f"{folder}/b", 1, few))),
            measure("sqlite by hand", few, lambda: by_hand(Path(folder, "c"), few)),
        ]
    for url in urls or ():
        work = partial(by_ledger, url, WRITERS, 5000)
        rows.append(measure(f"postgresql:, {WRITERS} writers", 5000, lambda work=work: asyncio.run(work())))
    return rows


if __name__ == "__main__":
    figures(quick=False, urls=sys.argv[1:])
