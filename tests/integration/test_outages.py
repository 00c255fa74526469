"""Sessions whose ledger goes away under them: nothing is sent twice, nothing unrecorded, and all is well afterwards."""

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

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection, Generator, Iterable, Iterator, Sequence
    from contextlib import AbstractAsyncContextManager

    from sora_chars import Character, Entry, TaskSnapshot
    from sora_chars.models import Request

PATIENCE = 1.0  # seconds that a statement waits for PostgreSQL
OUTAGE = 2.5 * PATIENCE  # long enough for the pool to give up connecting
LOCK = 2.0  # seconds for which a file is locked at least
DISK = 2 * 1024 * 1024

LOCKER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.readline()
connection.execute("COMMIT")
"""


class Server(Protocol):
    """The fixture's server."""

    def start(self, how: str = "start") -> None:
        """Start, or "restart"."""

    def stop(self) -> None:
        """Stop."""

    def url(self, database: str = "postgres") -> str:
        """Where a database is."""
        ...


class Gated(Kie):
    """A provider that sends while one gate is open, and gives the answers while the other one is."""

    gate: asyncio.Event
    answers: asyncio.Event

    async def submit(
        self, request: Request, *, callback_url: str | None, on_send: Callable[[], AbstractAsyncContextManager[None]]
    ) -> TaskSnapshot:
        """See `Provider`."""
        await self.gate.wait()
        snapshot = await super().submit(request, callback_url=callback_url, on_send=on_send)
        await self.answers.wait()
        return snapshot


def session_on(emulator: Emulator, ledger: Ledger | str) -> CharacterSession:
    """A session that looks every 50 ms."""
    kie = Gated("key", base_url=emulator.url, limits=None)
    kie.gate = asyncio.Event()
    kie.answers = asyncio.Event()
    kie.gate.set()
    kie.answers.set()
    return CharacterSession(kie, ledger=ledger, polling=FixedInterval(0.05))


def wish(key: str) -> dict[str, Any]:
    """A wish that the server can tell from others."""
    return {"from_task": "a" * 32, "clip": "1,3", "prompt": key, "key": key}


def names(what: str) -> list[str]:
    """Ten keys."""
    return [f"{what} {number}" for number in range(10)]


def create(session: CharacterSession, keys: Iterable[str]) -> list[asyncio.Task[Character]]:
    """Ask for each of the keys, at once."""
    return [asyncio.create_task(session.create(**wish(key), timeout=60)) for key in keys]


async def settled(asked: Collection[asyncio.Task[Any]]) -> list[Any]:
    """How each ended, well or not."""
    return await asyncio.gather(*asked, return_exceptions=True)


@pytest.fixture
async def emulator() -> AsyncGenerator[Emulator]:
    """An emulator whose tasks run until they are ended."""
    async with Emulator(durations=(3600.0, 3600.0)) as running:
        yield running


def made(emulator: Emulator) -> dict[str, str]:
    """The task of each key on the server, each of which has one at most."""
    keys = Counter(str(task.input["character_prompt"]) for task in emulator.tasks.values())
    assert set(keys.values()) <= {1}
    assert emulator.counts.creates == len(emulator.tasks)
    return {str(task.input["character_prompt"]): task_id for task_id, task in emulator.tasks.items()}


def end_all(emulator: Emulator) -> None:
    """End the tasks that run."""
    for task in emulator.tasks.values():
        task.end()


async def create_all(emulator: Emulator, sessions: Sequence[CharacterSession], keys: Sequence[str]) -> None:
    """Ask for all keys again; each has a character in the end, of its one task, and a finished entry."""
    asked = [task for session in sessions for task in create(session, keys)]
    while (await asyncio.wait(asked, timeout=0.05))[1]:
        end_all(emulator)
    tasks = made(emulator)
    assert set(tasks) == set(keys)
    assert [task.result().task_id for task in asked] == [tasks[key] for _ in sessions for key in keys]
    entries = [await sessions[0].entry(key) for key in keys]
    assert [(entry.state, entry.task_id) for entry in entries if entry] == [
        (EntryState.SUCCEEDED, tasks[key]) for key in keys
    ]


async def on_record(session: CharacterSession, key: str, task_id: str) -> Entry:
    """Wait until the ledger is back and knows the task of a key."""
    async with asyncio.timeout(60):
        while True:
            with suppress(LedgerError):
                entry = await session.entry(key)
                if entry and entry.task_id == task_id:
                    return entry
            await asyncio.sleep(0.05)


async def outlive(
    away: Callable[[], AbstractAsyncContextManager[object]],
    *,
    session: CharacterSession,
    emulator: Emulator,
    log: pytest.LogCaptureFixture,
) -> None:
    """Let the ledger be away while ten tasks end, ten requests are answered, ten are about to be sent and ten come."""
    [kie] = session.providers
    assert isinstance(kie, Gated)
    handles = [await session.submit(**wish(key)) for key in names("running")]
    waiting = [asyncio.create_task(handle.result()) for handle in handles]
    kie.answers.clear()
    under_way = create(session, names("under way"))
    await emulator.until(lambda: len(emulator.tasks) == 20)
    kie.gate.clear()
    ready = create(session, names("ready"))
    for key in names("ready"):
        while not await session.entry(key):  # noqa: ASYNC110 # asked, and not yet sent
            await asyncio.sleep(0.01)
    async with away():
        end_all(emulator)
        kie.gate.set()
        kie.answers.set()
        unsent = await settled([*ready, *create(session, names("new"))])
        unwritten = await settled(under_way)
        ended = await settled(waiting)
    tasks = made(emulator)
    assert set(tasks) == {*names("running"), *names("under way")}
    assert [character.task_id for character in ended] == [tasks[key] for key in names("running")]
    for key, error in zip(names("under way"), unwritten, strict=True):
        assert isinstance(error, LedgerError), repr(error)
        assert (error.key, error.task_id) == (key, tasks[key])
        assert tasks[key] in str(error)
    for key, error in zip([*names("ready"), *names("new")], unsent, strict=True):
        assert isinstance(error, LedgerError), repr(error)
        assert (error.key, error.task_id) == (key, None)
        assert "Nothing was sent" in str(error)
    for key, task_id in tasks.items():
        await on_record(session, key, task_id)
    failed = {record.__dict__["task_id"] for record in log.records if record.message == "ledger.write_failed"}
    assert failed == set(tasks.values())
    assert {record.levelname for record in log.records if record.message == "ledger.write_failed"} == {"ERROR"}
    keys = [key for what in ("running", "under way", "ready", "new") for key in names(what)]
    await create_all(emulator, [session], keys)


@pytest.fixture
def server(postgres: Server) -> Iterator[Server]:
    """Give a server that a test may stop."""
    yield postgres
    postgres.start("restart")


@pytest.mark.timeout(180)
async def test_postgres_is_stopped_and_comes_back(
    server: Server, postgres_url: str, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """While the server is away errors say what was made, and neither a task nor its id is lost."""

    @asynccontextmanager
    async def stopped() -> AsyncGenerator[None]:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await asyncio.to_thread(server.stop)
        yield
        await asyncio.sleep(began + OUTAGE - loop.time())
        await asyncio.to_thread(server.start)

    async with session_on(emulator, Ledger(PostgresStore(postgres_url, connect_timeout=PATIENCE))) as session:
        await outlive(stopped, session=session, emulator=emulator, log=caplog)


@pytest.mark.timeout(180)
async def test_connections_of_two_sessions_are_killed_again_and_again(
    postgres: Server, postgres_url: str, emulator: Emulator
) -> None:
    """Whatever statement is cut off, wherever a session looks dead to the other: one task for each key, on record."""
    keys = [key for number in range(6) for key in names(f"volley {number}")]
    async with (
        session_on(emulator, postgres_url) as first,
        session_on(emulator, postgres_url) as second,
        await psycopg.AsyncConnection.connect(postgres.url(), autocommit=True) as killer,
    ):
        asked: dict[asyncio.Task[Character], str] = {}
        for start in range(0, len(keys), 2):
            for session in (first, second):
                asked |= zip(create(session, keys[start : start + 2]), keys[start:], strict=False)
            await killer.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'test'")
            await asyncio.sleep(0.05)
            end_all(emulator)
        while (await asyncio.wait(asked, timeout=0.05))[1]:
            end_all(emulator)
        tasks = made(emulator)
        for task, key in asked.items():
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
            await on_record(first, key, task_id)
        await create_all(emulator, [first, second], keys)


@contextmanager
def tmpfs(folder: Path) -> Generator[None]:
    """Give the folder a disk of its own."""
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "none", folder], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"NO SMALL DISK CAN BE MOUNTED HERE: {error}")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


async def test_a_disk_runs_full(emulator: Emulator, caplog: pytest.LogCaptureFixture) -> None:
    """A real disk without room, until there is some again."""

    @asynccontextmanager
    async def full() -> AsyncGenerator[None]:
        ballast = Path(folder, "ballast")
        with suppress(OSError):
            ballast.write_bytes(bytes(DISK))
        yield
        ballast.unlink()

    with TemporaryDirectory() as folder, tmpfs(Path(folder)):
        async with session_on(emulator, f"sqlite:///{folder}/characters.db") as session:
            await outlive(full, session=session, emulator=emulator, log=caplog)


async def test_a_file_may_not_grow(tmp_path: Path, emulator: Emulator, caplog: pytest.LogCaptureFixture) -> None:
    """A quota on the size of files, until it is lifted."""

    @asynccontextmanager
    async def limited() -> AsyncGenerator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    async with session_on(emulator, f"sqlite:///{tmp_path}/characters.db") as session:
        await outlive(limited, session=session, emulator=emulator, log=caplog)


class Guarded(SqliteStore):
    """A store whose connections may be made unable to write."""

    read_only = False

    def _connect(self) -> sqlite3.Connection:
        connection = super()._connect()
        connection.execute(f"PRAGMA query_only = {self.read_only}")
        return connection


async def test_a_file_is_read_only(tmp_path: Path, emulator: Emulator, caplog: pytest.LogCaptureFixture) -> None:
    """A file that may only be read, until it may be written again."""
    store = Guarded(tmp_path / "characters.db")

    @asynccontextmanager
    async def read_only() -> AsyncGenerator[None]:
        store.read_only = True
        now = "PRAGMA query_only = ON"  # on the connection that is there
        await store._writer.call(lambda cursor, _: [cursor.execute(now)], None)
        yield
        store.read_only = False

    async with session_on(emulator, Ledger(store)) as session:
        await outlive(read_only, session=session, emulator=emulator, log=caplog)


async def test_a_lock_lasts_longer_than_patience(
    tmp_path: Path, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that another program keeps to itself, until it lets go."""
    path = tmp_path / "characters.db"

    @asynccontextmanager
    async def locked() -> AsyncGenerator[None]:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            yield
            other.execute("COMMIT")

    async with session_on(emulator, Ledger(SqliteStore(path, lock_timeout=0.1))) as session:
        await outlive(locked, session=session, emulator=emulator, log=caplog)


async def test_a_lock_shorter_than_patience_is_not_noticed(tmp_path: Path, emulator: Emulator) -> None:
    """While another process locks the file nothing is sent, reading goes on, and then all that waited goes well."""
    path = tmp_path / "characters.db"
    keys = names("wish")
    async with (
        session_on(emulator, f"sqlite:///{path}") as first,
        session_on(emulator, f"sqlite:///{path}") as second,
    ):
        running = create(first, keys)
        await emulator.until(lambda: len(emulator.tasks) == 10)
        for key, task_id in made(emulator).items():
            await on_record(first, key, task_id)
        locker = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", LOCKER, path), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        assert locker.stdout
        await locker.stdout.readline()
        third = session_on(emulator, f"sqlite:///{path}")
        opening = asyncio.create_task(third.open())
        asked = [task for session in (first, second) for task in create(session, names("other"))]
        end_all(emulator)
        done, _ = await asyncio.wait([opening, *running, *asked], timeout=LOCK)
        assert not done
        assert len(emulator.tasks) == 10
        assert [(entry.state, entry.key) for key in keys if (entry := await second.entry(key))] == [
            (EntryState.RUNNING, key) for key in keys
        ]
        await locker.communicate(b"unlock\n")
        await opening
        while (await asyncio.wait([*running, *asked], timeout=0.05))[1]:
            end_all(emulator)
        assert {task.result().task_id for task in (*running, *asked)} == set(made(emulator).values())
        await create_all(emulator, [first, second, third], [*keys, *names("other")])
        await third.aclose()
