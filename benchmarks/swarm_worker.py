"""A worker of the swarm: random calls of a session on keys that other processes use at the same time."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import random
import sys
import time
import traceback
import uuid
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import attrs

from sora_chars import CharacterSession, EntryState, FixedInterval, Kie, Ledger, LedgerError, SoraCharsError
from sora_chars.ledger.stores.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
    from contextlib import AbstractAsyncContextManager

    from sora_chars import TaskSnapshot
    from sora_chars.models import Request

ORIGIN = "7118f712" * 4
API_KEY = "benchmark-key-of-no-account"
TIMEOUT = 1.2  # seconds of a create; some answers of the server come later
HUNG = 90.0  # seconds after which a call counts as hung
WINDOW = 30  # keys that are in use at the same time
CONCURRENCY = 4  # calls at once in a process
UNSETTLED = (EntryState.UNKNOWN, EntryState.REJECTED, EntryState.FAILED)


@attrs.frozen(kw_only=True)
class Swarm:
    """What the processes of a swarm share.

    Attributes:
        url: The counting server.
        ledger: The path of an SQLite file, or the URL of a PostgreSQL database.
        folder: Holds the markers of keys that are being sent, the locks of keys, the log, and the files `first-key`,
            which moves the window of keys, `ended`, and `ready.PID` of each worker.
        grace: Seconds for which the lock of a process must be free on PostgreSQL before it counts as dead.
    """

    url: str
    ledger: str
    folder: Path
    grace: float

    def command(self) -> list[str]:
        """Return the command line of a worker."""
        return [sys.executable, __file__, *(str(value) for value in attrs.astuple(self))]

    @classmethod
    def parse(cls, words: list[str]) -> Swarm:
        """Return the options of a command line."""
        url, ledger, folder, grace = words
        return cls(url=url, ledger=ledger, folder=Path(folder), grace=float(grace))

    def open(self, *, timeout: float = TIMEOUT) -> CharacterSession:
        """Return a session on the shared ledger."""
        kie = MarkingKie(API_KEY, base_url=self.url, limits=None, timeout=timeout)
        kie.folder = self.folder
        return CharacterSession(
            kie, ledger=Ledger(self._store()), polling=FixedInterval(0.1), timeout=15, shutdown_timeout=3
        )

    def keys(self) -> list[str]:
        """Return the keys that are in use now."""
        first = int((self.folder / "first-key").read_text())
        return [f"key-{number:05}" for number in range(first, first + WINDOW)]

    def move(self, first: int) -> None:
        """Move the window of keys."""
        (self.folder / "new").write_text(f"{first}")
        (self.folder / "new").replace(self.folder / "first-key")

    @property
    def ended(self) -> bool:
        """Whether the workers end."""
        return (self.folder / "ended").exists()

    def ready(self, pid: int) -> Path:
        """Return the file that shows that a worker makes calls."""
        return self.folder / f"ready.{pid}"

    def record(self, **facts: object) -> None:
        """Append a line to the log that all processes share."""
        line = json.dumps({"at": round(time.time(), 3), "pid": os.getpid(), **facts})
        with (self.folder / "calls.log").open("a") as log:
            log.write(f"{line}\n")

    @contextmanager
    def deciding(self, key: str) -> Generator[bool]:
        """Give whether this process may decide about a key. One person decides about a key at a time."""
        with (self.folder / f"{key}-decision").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield False
            else:
                yield True

    def _store(self) -> Any:
        if not self.ledger.startswith("postgresql:"):
            return SqliteStore(Path(self.ledger))
        from sora_chars.ledger.stores.postgres import PostgresStore  # noqa: PLC0415 # an extra

        return PostgresStore(self.ledger, owner_grace=self.grace)


class MarkingKie(Kie):
    """A provider that marks each key in a file, from before the request is sent until its answer was read."""

    folder: Path

    async def submit(
        self,
        request: Request,
        *,
        key: str,
        callback_url: str | None,
        on_send: Callable[[], AbstractAsyncContextManager[None]],
    ) -> TaskSnapshot:
        """Submit the request."""
        marker = self.folder / f"{key}.{uuid.uuid4().hex}.{os.getpid()}"

        @asynccontextmanager
        async def marked() -> AsyncGenerator[None, None]:
            marker.touch()
            async with on_send():
                yield

        try:
            return await super().submit(request, key=key, callback_url=callback_url, on_send=marked)
        finally:
            marker.unlink(missing_ok=True)


def fields(key: str) -> dict[str, Any]:
    """Return the request of a key. Its prompt shows the key to the server."""
    return {"from_task": ORIGIN, "clip": "1,3", "prompt": key, "key": key}


async def create(swarm: Swarm, session: CharacterSession, key: str) -> object:
    """Create, with a random time-out."""
    del swarm
    return (await session.create(**fields(key), timeout=random.uniform(0.02, 4))).id


async def create_twice(swarm: Swarm, session: CharacterSession, key: str) -> object:
    """Request one key twice at the same time."""
    both = await asyncio.gather(*(create(swarm, session, key) for _ in range(2)), return_exceptions=True)
    return [one if isinstance(one, str) else type(one).__name__ for one in both]


async def submit_and_cancel(swarm: Swarm, session: CharacterSession, key: str) -> object:
    """Cancel a submit at a random time."""
    del swarm
    submitting = asyncio.create_task(session.submit(**fields(key)))
    await asyncio.wait((submitting,), timeout=random.uniform(0, 0.2))
    submitting.cancel()
    [outcome] = await asyncio.gather(submitting, return_exceptions=True)
    return type(outcome).__name__


async def step(swarm: Swarm, session: CharacterSession, key: str) -> object:
    """Register a key and take some steps."""
    del swarm
    entry = await session.register(**fields(key))
    for _ in range(random.randint(1, 4)):
        entry = (await session.advance(key)).entry
        await asyncio.sleep(random.uniform(0, 0.3))
    return entry.state


async def recover(swarm: Swarm, session: CharacterSession, key: str) -> object:
    """Recover every entry, and wait for some of them."""
    del swarm, key
    async with aclosing(session.recover()) as handles:
        found = [handle async for handle in handles]
    for handle in random.sample(found, min(2, len(found))):
        await handle.result(2)
    return len(found)


async def read(swarm: Swarm, session: CharacterSession, key: str) -> object:
    """Read an entry."""
    del swarm
    entry = await session.entry(key)
    return entry and entry.state


async def decide(swarm: Swarm, session: CharacterSession, key: str) -> object:
    """Resolve an unknown key, or retry a failed or rejected one, as the server's site shows it."""
    del key
    entries = [entry async for entry in session.ledger.entries(states=UNSETTLED, newest_first=True, limit=40)]
    return await settle(swarm, session, random.choice(entries).key) if entries else None


async def settle(swarm: Swarm, session: CharacterSession, key: str) -> str:
    """Decide about one key truthfully, and return what was done."""
    with swarm.deciding(key) as mine:
        entry = await session.entry(key)
        if not mine or entry is None or entry.state not in UNSETTLED:
            return f"{key}: left"
        truth = await _truth(swarm, key)
        known = {entry.task_id, *(attempt.task_id for attempt in await session.ledger.attempts(key))}
        unrecorded = [task_id for task_id in truth["tasks"] if task_id not in known]
        if entry.state is EntryState.UNKNOWN and unrecorded:
            return f"{key}: {(await session.resolve(key, task_id=unrecorded[0])).state}"
        if unrecorded or not truth["certain"]:
            return f"{key}: uncertain"
        swarm.record(call="decides", key=key, state=entry.state, version=entry.version)
        if entry.state is EntryState.UNKNOWN:
            return f"{key}: {(await session.resolve(key, never_sent=True)).state}"
        return f"{key}: {(await session.retry(key)).task_id}"


async def _truth(swarm: Swarm, key: str) -> dict[str, Any]:
    async with aiohttp.ClientSession() as http, http.get(f"{swarm.url}/truth/{key}") as response:
        truth: dict[str, Any] = await response.json()
        return truth


CALLS: dict[Callable[[Swarm, CharacterSession, str], Awaitable[object]], int] = {
    create: 8,
    create_twice: 2,
    submit_and_cancel: 5,
    step: 5,
    recover: 2,
    read: 2,
    decide: 5,
}
"""How often each call is made."""


async def call(swarm: Swarm, session: CharacterSession) -> None:
    """Make a random call, and record how it ended."""
    made = random.choices([*CALLS], [*CALLS.values()])[0]
    key = random.choice(swarm.keys())
    swarm.record(call=made.__name__, key=key)
    facts: dict[str, object] = {}
    limit = asyncio.timeout(HUNG)
    try:
        async with limit:
            facts = {"result": str(await made(swarm, session, key))}
    except (SoraCharsError, aiohttp.ClientError) as error:
        facts = {"error": type(error).__name__, "message": str(error)}
    except Exception as error:  # noqa: BLE001 # a worker reports what should not happen
        facts = {"unexpected": type(error).__name__, "message": traceback.format_exc(), "hung": limit.expired()}
    swarm.record(ended=made.__name__, key=key, **facts)


async def work(swarm: Swarm) -> None:
    """Make calls until the swarm ends."""

    async def repeat(session: CharacterSession) -> None:
        while not swarm.ended:
            await call(swarm, session)
            await asyncio.sleep(random.uniform(0, 0.6))

    while not swarm.ended:
        with suppress(LedgerError):  # its connections may be terminated while it opens
            async with swarm.open() as session, asyncio.TaskGroup() as group:
                swarm.ready(os.getpid()).touch()
                for _ in range(CONCURRENCY):
                    group.create_task(repeat(session))


if __name__ == "__main__":
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "*"
    asyncio.run(work(Swarm.parse(sys.argv[1:])))
