"""Characters as jobs of Procrastinate, against the emulator and a real PostgreSQL."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from procrastinate import App, PsycopgConnector
from procrastinate.exceptions import ConnectorException

from sora_chars import (
    AuthenticationError,
    CallbackEvent,
    CharacterSession,
    ConfigurationError,
    Entry,
    EntryState,
    FixedInterval,
    Kie,
    LedgerError,
    Limits,
    PostgresLedger,
    RequestRejectedError,
)
from sora_chars.contrib import procrastinate as integration
from sora_chars.contrib import procrastinate_retry
from sora_chars.contrib.procrastinate import Characters

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from procrastinate.jobs import Job

    from sora_chars.testing import Emulator

FAST: dict[str, Any] = {"fetch_job_polling_interval": 0.02, "listen_notify": False, "install_signal_handlers": False}


def fields(key: str) -> dict[str, Any]:
    """Return the fields of a request."""
    return {"from_task": "a" * 32, "clip": "1,3", "prompt": "a dog", "key": key}


@pytest.fixture
def make(emulator: Emulator, postgres_url: str) -> Callable[..., Characters]:
    """A function that makes the characters of one process."""

    def make(*, limits: Limits | None = None, interval: float = 0.05, **options: Any) -> Characters:
        def session() -> CharacterSession:
            provider = Kie("key", base_url=emulator.url, limits=limits or Limits())
            return CharacterSession(provider, ledger=PostgresLedger(postgres_url), polling=FixedInterval(interval))

        return Characters(session, **options)

    return make


@asynccontextmanager
async def opened(url: str, characters: Characters) -> AsyncGenerator[App, None]:
    """Open an app with the tasks, and close the session afterwards."""
    app = App(connector=PsycopgConnector(conninfo=url))
    app.add_tasks_from(characters.blueprint, namespace="sora_chars")
    async with app.open_async():
        if not await app.check_connection_async():
            await app.schema_manager.apply_schema_async()
        async with characters:
            yield app


@asynccontextmanager
async def working(characters: Characters, app: App, **options: Any) -> AsyncGenerator[None, None]:
    """Run a worker during the block."""
    worker = asyncio.create_task(characters.run_worker(app, **FAST | options))
    try:
        yield
    finally:
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)


async def jobs_of(app: App) -> list[Job]:
    """Return all jobs."""
    return [*await app.job_manager.list_jobs_async()]


async def jobs_when(app: App, condition: Callable[[list[Job]], bool]) -> list[Job]:
    """Wait until the jobs fulfil a condition, and return them."""
    while True:
        jobs = await jobs_of(app)
        if condition(jobs):
            return jobs
        await asyncio.sleep(0.02)


async def test_requests_become_characters(
    make: Callable[..., Characters], postgres_url: str, emulator: Emulator
) -> None:
    """Each request is one job, whose row moves on; the hook is called with the entry of each end."""
    ended: list[Entry] = []

    async def hook(entry: Entry) -> None:
        ended.append(entry)

    characters = make(ended=hook)
    async with opened(postgres_url, characters) as app, working(characters, app):
        for number in range(5):
            assert (await characters.register(**fields(f"k-{number}"))).state is EntryState.PENDING
        made = await asyncio.gather(*(characters.result(f"k-{number}") for number in range(5)))
        await emulator.until(lambda: len(ended) == 5)
        assert {entry.key: entry.outcome() for entry in ended} == {f"k-{n}": one for n, one in enumerate(made)}
        assert (await characters.register(**fields("k-1"))).state is EntryState.SUCCEEDED
    async with opened(postgres_url, make()) as app:
        jobs = await jobs_of(app)
    assert [(job.status, job.queue, job.lock) for job in jobs] == [
        ("succeeded", "poll", f"sora_chars k-{number}") for number in range(5)
    ]
    assert emulator.counts.creates == 5


@pytest.mark.parametrize("kind", ["async connection", "async cursor", "connection", "cursor"])
async def test_an_order_and_its_job_are_recorded_together(
    make: Callable[..., Characters], postgres_url: str, kind: str
) -> None:
    """A transaction that is rolled back leaves no entry and no job; one that is committed leaves both."""
    characters = make()
    async with opened(postgres_url, characters) as app:
        for fails in (True, False):
            with suppress(ZeroDivisionError):
                await _record(characters, postgres_url, kind, fails=fails)
            entry = await (await characters.session()).entry("k")
            assert (entry is None, len(await jobs_of(app))) == ((True, 0) if fails else (False, 1))
        assert [job.lock for job in await jobs_of(app)] == ["sora_chars k"]


async def _record(characters: Characters, url: str, kind: str, *, fails: bool) -> None:
    if kind.startswith("async"):
        async with await psycopg.AsyncConnection.connect(url) as connection:
            given = connection.cursor() if kind.endswith("cursor") else connection
            await characters.register(connection=given, **fields("k"))
            if fails:
                raise ZeroDivisionError
    else:
        with psycopg.connect(url) as database:
            await characters.register(connection=database.cursor() if kind == "cursor" else database, **fields("k"))
            if fails:
                raise ZeroDivisionError


async def test_a_rejected_request_is_a_finished_job(
    make: Callable[..., Characters], postgres_url: str, emulator: Emulator
) -> None:
    """A rejection ends the job, and the waiter gets the error."""
    emulator.fault("status", on="create", status=200, code=422, message="a real person")
    ended: list[Entry] = []
    characters = make(ended=ended.append)
    async with opened(postgres_url, characters) as app, working(characters, app):
        await characters.register(**fields("k"))
        with pytest.raises(RequestRejectedError):
            await characters.result("k")
        await emulator.until(lambda: len(ended) == 1)
    assert ended[0].state is EntryState.REJECTED


async def test_jobs_do_not_wait_in_the_limits(
    make: Callable[..., Characters], postgres_url: str, emulator: Emulator
) -> None:
    """While requests wait for the limits, the other jobs of the same worker run at once, and all end."""
    characters = make(limits=Limits(creates=(2, 1)))
    async with opened(postgres_url, characters) as app:
        ran: list[float] = []
        loop = asyncio.get_running_loop()

        @app.task(name="own", queue="own")
        async def own(began: float) -> None:
            ran.append(loop.time() - began)

        async with working(characters, app, concurrency=2, queues=["own"]):
            for number in range(8):
                await characters.register(**fields(f"k-{number}"))
            for _ in range(5):
                await own.defer_async(began=loop.time())
            await asyncio.gather(*(characters.result(f"k-{number}") for number in range(8)))
            await emulator.until(lambda: len(ran) == 5)
    assert max(ran) < 1.0
    assert emulator.counts.creates == 8


async def test_requests_without_a_job_get_one(
    make: Callable[..., Characters], postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request whose job is lost is carried on, and one whose job waits gets no second one."""
    monkeypatch.setattr(integration, "_ADOPTION_INTERVAL", 0.05)
    monkeypatch.setattr(integration, "_SWEEP_INTERVAL", 0.05)
    monkeypatch.setattr(integration, "_GROUP_SIZE", 1)
    monkeypatch.setattr(integration, "_MAX_ADDED", 1)  # in one sweep
    characters = make(idle=0.0)
    async with opened(postgres_url, characters) as app:
        session = await characters.session()
        await session.register(**fields("lost"))
        await session.register(**fields("running"))
        await session.advance("running")
        await characters.register(**fields("waiting"))
        await app.connector.execute_query_async("UPDATE procrastinate_jobs SET scheduled_at = now() + interval '1 day'")
        async with working(characters, app):
            await asyncio.gather(characters.result("lost"), characters.result("running"))
    async with opened(postgres_url, make()) as app:
        assert sorted(str(job.lock) for job in await jobs_of(app)) == [
            "sora_chars lost",
            "sora_chars running",
            "sora_chars waiting",
        ]


async def test_many_requests_with_jobs_hide_none_without(make: Callable[..., Characters], postgres_url: str) -> None:
    """A request without a job gets one, however many older requests have theirs."""
    characters = make(idle=0.0)
    async with opened(postgres_url, characters) as app:
        for number in range(201):
            await characters.register(**fields(f"k-{number}"))
        await (await characters.session()).register(**fields("lost"))
        await characters._sweep(app)
        assert len([*await app.job_manager.list_jobs_async(lock="sora_chars lost")]) == 1
        assert len([*await app.job_manager.list_jobs_async()]) == 202


async def test_a_retried_request_gets_a_job(
    make: Callable[..., Characters], postgres_url: str, emulator: Emulator
) -> None:
    """Another attempt of a rejected request is made by the workers, with the changed request."""
    characters = make()
    async with opened(postgres_url, characters) as app, working(characters, app):
        emulator.fault("unauthorized")
        await characters.register(**fields("k"))
        with pytest.raises(AuthenticationError):
            await characters.result("k")
        assert (await characters.retry("k", prompt="a cat")).state is EntryState.PENDING
        character = await characters.result("k")
        entry = await (await characters.session()).entry("k")
        assert entry
        assert (entry.request["prompt"], entry.character) == ("a cat", character)


async def test_a_retry_does_not_wait_for_the_hook(
    make: Callable[..., Characters], postgres_url: str, emulator: Emulator
) -> None:
    """The job of another attempt takes the place of one that would call a failed hook again in a minute."""
    called = asyncio.Event()

    async def hook(_: Entry) -> None:
        called.set()
        raise OSError("the database is away")

    characters = make(ended=hook)
    async with opened(postgres_url, characters) as app, working(characters, app):
        emulator.fault("unauthorized")
        await characters.register(**fields("k"))
        await called.wait()
        await jobs_when(app, lambda jobs: jobs[0].status == "todo")
        await characters.retry("k")
        async with asyncio.timeout(20):
            assert (await characters.result("k")).id


async def test_jobs_of_dead_workers_are_adopted(
    make: Callable[..., Characters], postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job whose worker has no heartbeat runs again; a fault of the queue's database ends nothing."""
    monkeypatch.setattr(integration, "_ADOPTION_INTERVAL", 0.05)
    characters = make(stalled_after=0.5)
    async with opened(postgres_url, characters) as app:
        await characters.register(**fields("k"))
        dead = await app.job_manager.register_worker()
        assert await app.job_manager.fetch_job(queues=["send"], worker_id=dead)
        calls = 0
        adopt = Characters._adopt

        async def failing(self: Characters, app: App) -> None:
            nonlocal calls
            calls += 1
            if calls == 1:
                raise ConnectorException("away")
            await adopt(self, app)

        monkeypatch.setattr(Characters, "_adopt", failing)
        async with working(characters, app, update_heartbeat_interval=0.1):
            assert (await characters.result("k")).id
    assert calls > 1


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"update_heartbeat_interval": 5.0}, r"stalled_after is 10 s, but .* every 5 s.* Use .*stalled_after=15"),
        ({"concurrency": 0}, "concurrency must be a whole number from 1, got 0"),
    ],
)
async def test_options_of_a_worker_are_checked(
    make: Callable[..., Characters], postgres_url: str, options: dict[str, Any], problem: str
) -> None:
    """A worker with a wrong option does not start, nor does one whose jobs others would adopt."""
    characters = make()
    async with opened(postgres_url, characters) as app:
        with pytest.raises(ConfigurationError, match=f"^characters: {problem}"):
            await characters.run_worker(app, **FAST | options)


@pytest.mark.parametrize("fault", ["hook", "ledger"])
async def test_a_step_that_fails_is_repeated(
    make: Callable[..., Characters],
    postgres_url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fault: str,
) -> None:
    """The job comes back after a fault of the ledger, or of the hook, until the hook returns. The latter is logged."""
    monkeypatch.setattr(procrastinate_retry, "FAULT_DELAY", 0.1)
    monkeypatch.setattr(procrastinate_retry, "_LEDGER_DELAY", 0.1)
    calls: list[Entry] = []
    done = asyncio.Event()

    def hook(entry: Entry) -> None:
        calls.append(entry)
        if len(calls) == 1 and fault == "hook":
            raise ZeroDivisionError
        done.set()

    characters = make(ended=hook)
    if fault == "ledger":
        advance = CharacterSession.advance
        monkeypatch.setattr(CharacterSession, "advance", _failing_once(advance))
    async with opened(postgres_url, characters) as app, working(characters, app):
        await characters.register(**fields("k"))
        await done.wait()
    assert len(calls) == (2 if fault == "hook" else 1)
    failed = [record for record in caplog.records if vars(record).get("event") == "jobs.hook_failed"]
    assert [(vars(record)["key"], bool(record.exc_info)) for record in failed] == [("k", True)] * (len(calls) - 1)
    assert "NotFinishedError" not in caplog.text


def _failing_once(advance: Any) -> Any:
    calls: list[str] = []

    async def failing(self: CharacterSession, key: str, **options: Any) -> Any:
        calls.append(key)
        if len(calls) == 1:
            raise LedgerError("the database is away")
        return await advance(self, key, **options)

    return failing


async def test_other_errors_end_the_job(make: Callable[..., Characters], postgres_url: str, emulator: Emulator) -> None:
    """A job whose key the ledger does not have fails, and a poll with a wrong API key is repeated later."""
    characters = make()
    async with opened(postgres_url, characters) as app:
        await characters._task.configure(lock="x").defer_async(key="no such key")
        await characters.register(**fields("k"))
        await (await characters.session()).advance("k")
        emulator.fault("unauthorized", on="poll")
        await characters.run_worker(app, **FAST, wait=False)
        statuses = {job.task_kwargs["key"]: (job.status, job.scheduled_at is None) for job in await jobs_of(app)}
    assert statuses == {"no such key": ("failed", True), "k": ("todo", False)}


async def test_a_callback_lets_the_job_run_now(
    make: Callable[..., Characters], postgres_url: str, emulator: Emulator
) -> None:
    """The job of a task whose callback has arrived runs at once, in place of the one that was waiting."""
    ended: list[Entry] = []
    characters = make(ended=ended.append, interval=1000.0)
    async with opened(postgres_url, characters) as app, working(characters, app):
        await characters.register(**fields("k"))
        session = await characters.session()
        await jobs_when(app, lambda jobs: {(job.status, job.queue) for job in jobs} == {("todo", "poll")})
        entry = await session.entry("k")
        assert entry
        task_id = str(entry.task_id)
        await emulator.until(lambda: emulator.task_store.tasks[task_id].finished)
        event = CallbackEvent(task_id=task_id, provider="kie", code=200, message="success", raw={})
        await characters.on_event(event, entry)
        assert (await characters.result("k")).id
        await emulator.until(lambda: len(ended) == 1)
        assert len(await jobs_when(app, lambda jobs: {job.status for job in jobs} == {"succeeded"})) == 1


async def test_a_worker_that_stops_gives_its_jobs_back(
    make: Callable[..., Characters], postgres_url: str, emulator: Emulator
) -> None:
    """A job that does not end within the engine's time-out is aborted, and runs again in another worker."""
    emulator.fault("delay", on="create", seconds=1.0)
    characters = make()
    async with opened(postgres_url, characters) as app:
        await characters.register(**fields("k"))
        async with working(characters, app, shutdown_graceful_timeout=0.01):
            await emulator.until(lambda: emulator.counts.creates == 1)
        assert [job.status for job in await jobs_of(app)] == ["todo"]
    other = make()
    async with opened(postgres_url, other) as app, working(other, app):
        assert (await other.result("k")).id
    assert emulator.counts.creates == 1


async def test_the_worker_opens_and_closes_everything_itself(
    make: Callable[..., Characters], postgres_url: str
) -> None:
    """A worker opens an app that is not open; without Procrastinate's tables, or an app, it says what to do."""
    characters = make()
    with pytest.raises(ConfigurationError, match="no Procrastinate app has these tasks"):
        await characters.run_worker()
    app = App(connector=PsycopgConnector(conninfo=postgres_url))
    app.add_tasks_from(characters.blueprint, namespace="sora_chars")
    with pytest.raises(ConfigurationError, match="does not have Procrastinate's tables"):
        await characters.run_worker()
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
    await characters.run_worker(wait=False, listen_notify=False)
    assert characters._session is None


async def test_an_app_without_the_tasks(make: Callable[..., Characters], postgres_url: str) -> None:
    """A worker of an app that lacks the tasks would fail their jobs, so it does not start."""
    characters = make()
    async with opened(postgres_url, characters):
        with pytest.raises(
            ConfigurationError, match="this Procrastinate app does not have the task sora_chars:advance"
        ):
            await asyncio.wait_for(characters.run_worker(App(connector=PsycopgConnector(conninfo=postgres_url))), 5)


async def test_the_end_of_one_worker_ends_all(
    make: Callable[..., Characters], postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that fails, or ends by itself, stops the others, and its error is raised."""
    characters = make()
    async with opened(postgres_url, characters) as app:
        run = App.run_worker_async

        async def failing(self: App, **options: Any) -> None:
            if options["queues"] == ["poll"]:
                raise ZeroDivisionError
            await run(self, **options)

        monkeypatch.setattr(App, "run_worker_async", failing)
        with pytest.raises(ZeroDivisionError):
            await characters.run_worker(app, **FAST)
