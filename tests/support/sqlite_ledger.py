"""Entries of an SQLite ledger, and connections to its file."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

from sora_chars import EntryState

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from sora_chars import Entry, Ledger
    from sora_chars.ledger.stores.sqlite_thread import CommitThread


def register(ledger: Ledger, key: str = "k-1", size: int = 1) -> Coroutine[Any, Any, Entry]:
    """Register a request with a prompt of `size` characters."""
    return ledger.register(key=key, provider="kie", kind="character", request={"prompt": "x" * size})


async def running(ledger: Ledger, key: str) -> Entry:
    """Register a request and take its entry to running."""
    sending = await ledger.transition(await register(ledger, key), EntryState.SENDING)
    return await ledger.transition(sending, EntryState.RUNNING, task_id=f"t-{key}")


def run_in(thread: CommitThread, job: Callable[[sqlite3.Cursor], object]) -> asyncio.Future[object]:
    """Run a function on the connection of a commit thread."""
    return thread.call(lambda cursor, _: [job(cursor)], None)


def connect(path: Path) -> closing[sqlite3.Connection]:
    """Open the file as another program would."""
    return closing(sqlite3.connect(path, isolation_level=None, timeout=0))
