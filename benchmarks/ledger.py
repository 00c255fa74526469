"""What a record costs: many writers at once, each taking entries from the wish to the result, four records an entry.

Printed for each kind of ledger: records a second, CPU microseconds a record (of this process, all its threads), and how
long one writer waits for one record to be durable. `by hand` is the same SQLite statements in one thread, committed one
by one. Only the ratios mean anything on a shared machine. Usage: python benchmarks/ledger.py [WRITERS] [POSTGRES_URL]
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora_chars import State, open_ledger

if TYPE_CHECKING:
    from collections.abc import Callable

    from sora_chars import Ledger

REQUEST: dict[str, Any] = {"from_task": "7118f712" * 4, "clip": "1,3", "prompt": "A friendly cartoon character"}
DIGEST = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d0"
RESULT = {"id": "ch_1", "username": "a.dog"}
RECORDS = 4  # of each entry
ENTRIES = 60_000


async def write(ledger: Ledger, name: str, entries: int, waits: list[float]) -> None:
    """Take entries one after the other from the wish to the result."""
    for number in range(entries):
        key = f"{number:06}-{name}"
        began = time.perf_counter()
        entry = await ledger.ask(key=key, provider="kie", kind="character", request=REQUEST)
        waits.append(time.perf_counter() - began)
        entry = await ledger.move(entry, State.SENDING, token_digest=f"{key}-{DIGEST}")
        entry = await ledger.move(entry, State.RUNNING, task_id=f"{key}-7118f712a4b24eaf")
        await ledger.move(entry, State.SUCCEEDED, result=RESULT, credits=2.0)


async def by_ledger(url: str, writers: int, entries: int) -> list[float]:
    """Write with many at once, and return how long each wish waited."""
    waits: list[float] = []
    async with open_ledger(url) as ledger:
        await asyncio.gather(*(write(ledger, f"{number}", entries // writers, waits) for number in range(writers)))
    return waits


def by_hand(path: Path, entries: int) -> list[float]:
    """Write one row and three updates an entry, each committed by itself."""
    waits: list[float] = []
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE entries (key TEXT PRIMARY KEY, state TEXT, request TEXT, task TEXT, result TEXT)")
    for number in range(entries):
        began = time.perf_counter()
        connection.execute("INSERT INTO entries VALUES (?, 'asked', ?, NULL, NULL)", (f"{number:06}", str(REQUEST)))
        waits.append(time.perf_counter() - began)
        for state in ("sending", "running", "succeeded"):
            connection.execute("UPDATE entries SET state = ?, task = 't-1' WHERE key = ?", (state, f"{number:06}"))
    connection.close()
    return waits


def measure(name: str, entries: int, work: Callable[[], list[float]]) -> None:
    """Print one line of the table."""
    began, cpu = time.perf_counter(), time.process_time()
    waits = sorted(work())
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    records = entries * RECORDS
    middle, late = waits[len(waits) // 2] * 1000, waits[len(waits) * 99 // 100] * 1000
    print(f"{name:>24}{records / wall:>12,.0f}{cpu / records * 1e6:>14.1f}{middle:>14.2f}{late:>12.2f}")


def main() -> None:
    """Measure every kind and print a table."""
    writers = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    print(f"{f'{writers} writers':>24}{'records/s':>12}{'CPU us each':>14}{'wait ms, 50 %':>14}{'99 %':>12}")
    with tempfile.TemporaryDirectory() as folder:
        measure("memory:", ENTRIES, lambda: asyncio.run(by_ledger("memory:", writers, ENTRIES)))
        measure("sqlite:", ENTRIES, lambda: asyncio.run(by_ledger(f"{folder}/many.db", writers, ENTRIES)))
        measure("sqlite:, 1 writer", 2000, lambda: asyncio.run(by_ledger(f"{folder}/one.db", 1, 2000)))
        measure("sqlite by hand", 2000, lambda: by_hand(Path(folder, "hand.db"), 2000))
    for url in sys.argv[2:]:
        measure("postgresql:", 5000, lambda url=url: asyncio.run(by_ledger(url, writers, 5000)))


if __name__ == "__main__":
    main()
