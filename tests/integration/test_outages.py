"""Outages of a session's ledger: no request is sent twice or unrecorded, and the session recovers."""

from __future__ import annotations

import asyncio
import resource
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Protocol

import psycopg
import pytest

from sora_chars import CharacterSession, EntryState, FixedInterval, Kie, Ledger
from sora_chars.errors import LedgerError, SubmissionUnknownError
from sora_chars.ledger.stores.postgres import PostgresStore
from sora_chars.ledger.stores.sqlite import SqliteStore
from sora_chars.testing import Emulator
from tests.support.log_events import event_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection, Generator, Iterable, Iterator, Sequence
    from contextlib import AbstractAsyncContextManager

    from sora_chars import Character, Entry, TaskSnapshot
    from sora_chars.models import Request

CONNECT_TIMEOUT = 1.0  # seconds that a statement waits for PostgreSQL
OUTAGE = 2.5 * CONNECT_TIMEOUT  # long enough for the pool to give up connecting
LOCKED = 2.0  # seconds for which a file is locked at least
DISK_SIZE = 2 * 1024 * 1024  # bytes

LOCKER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.readline()
connection.execute("COMMIT")
"""


class Server(Protocol):
    """The server of the fixture `postgres`."""

    def start(self, how: str = "start") -> None:
        """Start the server, or "restart" it."""

    def stop(self) -> None:
        """Stop the server."""

    def url(self, database: str = "postgres") -> str:
        """Return the URL of a database."""
        ...


class Gated(Kie):
    """A provider that sends while `sends` is set, and returns responses while `responds` is set."""

    sends: asyncio.Event
    responds: asyncio.Event

    async def submit(
        self,
        request: Request,
        *,
        key: str,
        callback_url: str | None,
        on_send: Callable[[], AbstractAsyncContextManager[None]],
    ) -> TaskSnapshot:
        """See `Provider`."""
        await self.sends.wait()
        snapshot = await super().submit(request, key=key, callback_url=callback_url, on_send=on_send)
        await self.responds.wait()
        return snapshot


def session_on(emulator: Emulator, ledger: Ledger | str) -> CharacterSession:
    """A session that polls every 50 ms."""
    kie = Gated("key", base_url=emulator.url, limits=None)
    kie.sends = asyncio.Event()
    kie.responds = asyncio.Event()
    kie.sends.set()
    kie.responds.set()
    return CharacterSession(kie, ledger=ledger, polling=FixedInterval(0.05))


def request(key: str) -> dict[str, Any]:
    """A request whose prompt is its key, which identifies its task on the server."""
    return {"from_task": "a" * 32, "clip": "1,3", "prompt": key, "key": key}


def ten_keys(prefix: str) -> list[str]:
    """Ten keys with a prefix."""
    return [f"{prefix} {number}" for number in range(10)]


def create(session: CharacterSession, keys: Iterable[str]) -> list[asyncio.Task[Character]]:
    """Create a character for each key, concurrently."""
    return [asyncio.create_task(session.create(**request(key), timeout=60)) for key in keys]


async def outcomes(tasks: Collection[asyncio.Task[Any]]) -> list[Any]:
    """The result or the error of each task."""
    return await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
async def emulator() -> AsyncGenerator[Emulator]:
    """An emulator whose tasks run until `end_all`."""
    async with Emulator(durations=(3600.0, 3600.0)) as running:
        yield running


def tasks_by_key(emulator: Emulator) -> dict[str, str]:
    """The id of each key's task on the server; no key may have two."""
    keys = Counter(str(task.input["character_prompt"]) for task in emulator.tasks.values())
    assert set(keys.values()) <= {1}
    assert emulator.counts.creates == len(emulator.tasks)
    return {str(task.input["character_prompt"]): task_id for task_id, task in emulator.tasks.items()}


def end_all(emulator: Emulator) -> None:
    """End every task on the server."""
    for task in emulator.tasks.values():
        task.end()


async def create_all(emulator: Emulator, sessions: Sequence[CharacterSession], keys: Sequence[str]) -> None:
    """Create all keys again; each gets the character of its only task and a finished entry."""
    creates = [task for session in sessions for task in create(session, keys)]
    while (await asyncio.wait(creates, timeout=0.05))[1]:
        end_all(emulator)
    tasks = tasks_by_key(emulator)
    assert set(tasks) == set(keys)
    assert [task.result().task_id for task in creates] == [tasks[key] for _ in sessions for key in keys]
    entries = [await sessions[0].entry(key) for key in keys]
    assert [(entry.state, entry.task_id) for entry in entries if entry] == [
        (EntryState.SUCCEEDED, tasks[key]) for key in keys
    ]


async def until_recorded(session: CharacterSession, key: str, task_id: str) -> Entry:
    """Wait until the ledger works again and has the task of a key."""
    async with asyncio.timeout(60):
        while True:
            with suppress(LedgerError):
                entry = await session.entry(key)
                if entry and entry.task_id == task_id:
                    return entry
            await asyncio.sleep(0.05)


async def survive(
    outage: Callable[[], AbstractAsyncContextManager[object]],
    *,
    session: CharacterSession,
    emulator: Emulator,
    log: pytest.LogCaptureFixture,
) -> None:
    """Run an outage while ten tasks end, ten responses arrive, ten requests are about to be sent and ten are new."""
    [kie] = session.providers
    assert isinstance(kie, Gated)
    handles = [await session.submit(**request(key)) for key in ten_keys("running")]
    waiting = [asyncio.create_task(handle.result()) for handle in handles]
    kie.responds.clear()
    sent = create(session, ten_keys("sent"))
    await emulator.until(lambda: len(emulator.tasks) == 20)
    kie.sends.clear()
    ready = create(session, ten_keys("ready"))
    for key in ten_keys("ready"):
        while not await session.entry(key):  # noqa: ASYNC110 # registered and not yet sent
            await asyncio.sleep(0.01)
    async with outage():
        end_all(emulator)
        kie.sends.set()
        kie.responds.set()
        unsent = await outcomes([*ready, *create(session, ten_keys("new"))])
        unwritten = await outcomes(sent)
        ended = await outcomes(waiting)
    tasks = tasks_by_key(emulator)
    assert set(tasks) == {*ten_keys("running"), *ten_keys("sent")}
    assert [character.task_id for character in ended] == [tasks[key] for key in ten_keys("running")]
    for key, error in zip(ten_keys("sent"), unwritten, strict=True):
        assert isinstance(error, LedgerError), repr(error)
        assert (error.key, error.task_id) == (key, tasks[key])
        assert tasks[key] in str(error)
    for key, error in zip([*ten_keys("ready"), *ten_keys("new")], unsent, strict=True):
        assert isinstance(error, LedgerError), repr(error)
        assert (error.key, error.task_id) == (key, None)
        assert "Nothing was sent" in str(error)
    for key, task_id in tasks.items():
        await until_recorded(session, key, task_id)
    failed = {record.__dict__["task_id"] for record in log.records if event_of(record) == "ledger.write_failed"}
    assert failed == set(tasks.values())
    assert {record.levelname for record in log.records if event_of(record) == "ledger.write_failed"} == {"ERROR"}
    keys = [key for prefix in ("running", "sent", "ready", "new") for key in ten_keys(prefix)]
    await create_all(emulator, [session], keys)


@pytest.fixture
def server(postgres: Server) -> Iterator[Server]:
    """A server that a test may stop."""
    yield postgres
    postgres.start("restart")


@pytest.mark.timeout(180)
async def test_postgres_restart(
    server: Server, postgres_url: str, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """While PostgreSQL is stopped, errors carry the ids of created tasks; after its start all are recorded."""

    @asynccontextmanager
    async def stopped() -> AsyncGenerator[None]:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await asyncio.to_thread(server.stop)
        yield
        await asyncio.sleep(began + OUTAGE - loop.time())
        await asyncio.to_thread(server.start)

    async with session_on(emulator, Ledger(PostgresStore(postgres_url, connect_timeout=CONNECT_TIMEOUT))) as session:
        await survive(stopped, session=session, emulator=emulator, log=caplog)


@pytest.mark.timeout(180)
async def test_killed_connections(postgres: Server, postgres_url: str, emulator: Emulator) -> None:
    """Killed connections interrupt statements and make sessions seem dead; every key still has one recorded task."""
    keys = [key for number in range(6) for key in ten_keys(f"round {number}")]
    async with (
        session_on(emulator, postgres_url) as first,
        session_on(emulator, postgres_url) as second,
        await psycopg.AsyncConnection.connect(postgres.url(), autocommit=True) as killer,
    ):
        creates: dict[asyncio.Task[Character], str] = {}
        for start in range(0, len(keys), 2):
            for session in (first, second):
                creates |= zip(create(session, keys[start : start + 2]), keys[start:], strict=False)
            await killer.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'test'")
            await asyncio.sleep(0.05)
            end_all(emulator)
        while (await asyncio.wait(creates, timeout=0.05))[1]:
            end_all(emulator)
        tasks = tasks_by_key(emulator)
        for task, key in creates.items():
            match task.exception():
                case None:
                    assert task.result().task_id == tasks[key]
                case LedgerError(task_id=str(task_id)):
                    assert task_id == tasks[key]
                case LedgerError() as error:
                    assert "Nothing was sent" in str(error)
                case error:
                    assert isinstance(error, SubmissionUnknownError)
        for key, task_id in tasks.items():
            await until_recorded(first, key, task_id)
        await create_all(emulator, [first, second], keys)


@contextmanager
def tmpfs(folder: Path) -> Generator[None]:
    """Mount a small file system at the folder."""
    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={DISK_SIZE}", "none", folder], check=True, capture_output=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"CANNOT MOUNT A SMALL FILE SYSTEM: {error}")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


async def test_full_disk(emulator: Emulator, caplog: pytest.LogCaptureFixture) -> None:
    """A small file system is full, until a file is deleted."""

    @asynccontextmanager
    async def full() -> AsyncGenerator[None]:
        ballast = Path(folder, "ballast")
        with suppress(OSError):
            ballast.write_bytes(bytes(DISK_SIZE))
        yield
        ballast.unlink()

    with TemporaryDirectory() as folder, tmpfs(Path(folder)):
        async with session_on(emulator, f"sqlite:///{folder}/characters.db") as session:
            await survive(full, session=session, emulator=emulator, log=caplog)


async def test_file_size_limit(tmp_path: Path, emulator: Emulator, caplog: pytest.LogCaptureFixture) -> None:
    """The ledger's file may not grow, until the limit is lifted."""

    @asynccontextmanager
    async def limited() -> AsyncGenerator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    async with session_on(emulator, f"sqlite:///{tmp_path}/characters.db") as session:
        await survive(limited, session=session, emulator=emulator, log=caplog)


class ReadOnlyStore(SqliteStore):
    """A store whose connections can be made read-only."""

    read_only = False

    def _connect(self) -> sqlite3.Connection:
        connection = super()._connect()
        connection.execute(f"PRAGMA query_only = {self.read_only}")
        return connection


async def test_read_only_file(tmp_path: Path, emulator: Emulator, caplog: pytest.LogCaptureFixture) -> None:
    """The ledger's file is read-only, until it is writable again."""
    store = ReadOnlyStore(tmp_path / "characters.db")

    @asynccontextmanager
    async def read_only() -> AsyncGenerator[None]:
        store.read_only = True
        now = "PRAGMA query_only = ON"  # on the open connection
        await store._writer.call(lambda cursor, _: [cursor.execute(now)], None)
        yield
        store.read_only = False

    async with session_on(emulator, Ledger(store)) as session:
        await survive(read_only, session=session, emulator=emulator, log=caplog)


async def test_lock_beyond_the_timeout(tmp_path: Path, emulator: Emulator, caplog: pytest.LogCaptureFixture) -> None:
    """Another program locks the file for longer than the lock timeout."""
    path = tmp_path / "characters.db"

    @asynccontextmanager
    async def locked() -> AsyncGenerator[None]:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            yield
            other.execute("COMMIT")

    async with session_on(emulator, Ledger(SqliteStore(path, lock_timeout=0.1))) as session:
        await survive(locked, session=session, emulator=emulator, log=caplog)


async def test_lock_within_the_timeout(tmp_path: Path, emulator: Emulator) -> None:
    """While another process locks the file, no request is sent and reads succeed; then every waiting call succeeds."""
    path = tmp_path / "characters.db"
    keys = ten_keys("first")
    async with (
        session_on(emulator, f"sqlite:///{path}") as first,
        session_on(emulator, f"sqlite:///{path}") as second,
    ):
        running = create(first, keys)
        await emulator.until(lambda: len(emulator.tasks) == 10)
        for key, task_id in tasks_by_key(emulator).items():
            await until_recorded(first, key, task_id)
        locker = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", LOCKER, path), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        assert locker.stdout
        await locker.stdout.readline()
        third = session_on(emulator, f"sqlite:///{path}")
        opening = asyncio.create_task(third.open())
        creates = [task for session in (first, second) for task in create(session, ten_keys("other"))]
        end_all(emulator)
        done, _ = await asyncio.wait([opening, *running, *creates], timeout=LOCKED)
        assert not done
        assert len(emulator.tasks) == 10
        assert [(entry.state, entry.key) for key in keys if (entry := await second.entry(key))] == [
            (EntryState.RUNNING, key) for key in keys
        ]
        await locker.communicate(b"unlock\n")
        await opening
        while (await asyncio.wait([*running, *creates], timeout=0.05))[1]:
            end_all(emulator)
        assert {task.result().task_id for task in (*running, *creates)} == set(tasks_by_key(emulator).values())
        await create_all(emulator, [first, second, third], [*keys, *ten_keys("other")])
        await third.aclose()
