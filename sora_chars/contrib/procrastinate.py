"""Characters as jobs of Procrastinate, a job queue in PostgreSQL.

::

    app = App(connector=PsycopgConnector(conninfo=URL))
    characters = Characters(lambda: CharacterSession(Kling(), ledger=URL))
    app.add_tasks_from(characters.blueprint, namespace="sora_chars")

    async with connection.transaction():  # the order and its character, or neither
        await connection.execute("INSERT INTO orders (id) VALUES (17)")
        await characters.register(video="rex.mp4", name="rex", key="order-17", connection=connection)

    character = await characters.result("order-17")  # in any process: no polling

    await characters.run_worker(app)  # in the worker processes

A request is one job, and a run of the job is one step of the request: the same row moves
on until the request has ended. What was sent is on record in the ledger, so a job may be
killed, repeated or lost at any moment, and no request is paid twice.
"""

from __future__ import annotations

import asyncio
import inspect
import random
import signal
import sys
from contextlib import AsyncExitStack, aclosing, suppress
from typing import TYPE_CHECKING, Any

import psycopg
from procrastinate import App, Blueprint, SyncPsycopgConnector
from procrastinate.exceptions import ConnectorException
from procrastinate.jobs import Status
from procrastinate.manager import JobManager
from procrastinate.tasks import configure_task

from sora_chars.errors import ConfigurationError, SoraCharsError, printable
from sora_chars.ledger.states import UNFINISHED, EntryState
from sora_chars.logs import event_logger

from .procrastinate_retry import FAULT_DELAY, POLL_PRIORITY, HookError, MovesOn, NotFinishedError
from .procrastinate_worker import (
    ADD_TASKS,
    check_has_task,
    check_options,
    check_worker,
    checked_session,
    open_app,
    stop_signals,
    until_one_ends,
    without_records_of,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Mapping
    from types import TracebackType
    from typing import Self, Unpack

    from sora_chars.ledger import Entry
    from sora_chars.ledger.postgres_ledger import Connection
    from sora_chars.models import CharacterFields, Request
    from sora_chars.providers.kie_callback import CallbackEvent
    from sora_chars.session.session import CharacterSession

log = event_logger("sora_chars.contrib")

_ADOPTION_INTERVAL = 2.0  # seconds between two searches for the jobs of dead workers
_SWEEP_INTERVAL = 30.0  # seconds, at least, between two searches for requests without a job
_SWEEP_PAUSE = 20.0  # times as long as a search took is the least pause after it: it reads every waiting request
_MAX_ADDED = 200  # jobs that one sweep adds
_GROUP_SIZE = 200  # requests whose jobs a sweep looks for at once
_EVENT_PRIORITY = 2  # of a job whose callback has arrived
_WORKER_OPTIONS: dict[str, Any] = {"update_heartbeat_interval": 1.0, "shutdown_graceful_timeout": 30.0}
_FETCH_INTERVALS = {False: 0.5, True: 0.25}  # seconds, by whether jobs poll; those that come back send no notification
_LIVE_LOCKS = (
    "SELECT DISTINCT lock FROM procrastinate_jobs WHERE status IN ('todo', 'doing') AND lock = ANY(%(locks)s::text[])"
)


class Characters:
    """Requests for characters as jobs of a Procrastinate app. All processes make one with the same arguments.

    Use it as an async context manager in a web process. It opens the app, unless that is
    open, and closes what it opened. `run_worker` does so itself.

    Args:
        make_session: Makes a session whose ledger is in a PostgreSQL database. One is opened in each process.
        ended: Called with the entry of each request that has ended, by the job that finds the end. It may be a
            coroutine function. It is called again if it raises, and may be called again after a worker was killed.
        patience: Seconds for which a job waits for a slot in the limits, if one is expected by then. Otherwise it
            comes back later, and other jobs run in the meantime.
        idle: Seconds after which a request that no job carries on gets a job.
        stalled_after: Seconds without a heartbeat after which the jobs of a worker are adopted.
        send_queue: Queue of the jobs that send.
        poll_queue: Queue of the jobs that poll.

    Attributes:
        blueprint: The tasks, for `App.add_tasks_from`.
    """

    def __init__(
        self,
        make_session: Callable[[], CharacterSession],
        *,
        ended: Callable[[Entry], Awaitable[object] | object] | None = None,
        patience: float = 0.2,
        idle: float = 60.0,
        stalled_after: float = 10.0,
        send_queue: str = "send",
        poll_queue: str = "poll",
    ) -> None:
        seconds = {"patience": patience, "idle": idle, "stalled_after": stalled_after}
        check_options(make_session, ended, (send_queue, poll_queue), **seconds)
        self._make_session = make_session
        self._ended = ended
        self._patience = patience
        self._idle = idle
        self._stalled_after = stalled_after
        self._queues = {False: send_queue, True: poll_queue}
        self._session: CharacterSession | None = None
        self._opening = asyncio.Lock()
        self._opened = AsyncExitStack()  # what `__aenter__` opened
        self.blueprint = Blueprint()
        self._task = self.blueprint.task(name="advance", queue=send_queue, retry=MovesOn(self._queues))(self._advance)

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await open_app(self.app, stack)
            stack.push_async_callback(self.aclose)
            await self.session()
            self._opened = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._opened.aclose()

    @property
    def app(self) -> App:
        """The app that has the tasks.

        Raises:
            ConfigurationError: No app has them yet.
        """
        app = self._task.blueprint
        if not isinstance(app, App):
            raise ConfigurationError(
                "characters: no Procrastinate app has these tasks.",
                hint=ADD_TASKS,
            )
        return app

    async def session(self) -> CharacterSession:
        """Return the open session of this process; the first call opens it."""
        async with self._opening:
            if self._session is None:
                made: object = self._make_session()  # callers without a type checker return anything
                self._session = await checked_session(made).open()
            return self._session

    async def aclose(self) -> None:
        """Close the session of this process, if it is open."""
        session = self._session
        self._session = None
        self._opening = asyncio.Lock()  # the next session may belong to another event loop
        if session:
            await session.aclose()

    async def register(
        self,
        request: Request | None = None,
        /,
        *,
        provider: str | None = None,
        meta: Mapping[str, Any] | None = None,
        connection: Connection | None = None,
        **fields: Unpack[CharacterFields],
    ) -> Entry:
        """Record a request and the job that carries it on; with `connection` in one transaction of yours.

        It takes the same arguments as `CharacterSession.register`, and raises the same errors.
        """
        session = await self.session()
        entry = await session.register(request, provider=provider, meta=meta, connection=connection, **fields)
        if entry.state in UNFINISHED:
            await self._defer(entry, connection)
        return entry

    async def retry(self, key: str, request: Request | None = None, /, **changes: Unpack[CharacterFields]) -> Entry:
        """Record another attempt of a failed or rejected request, and the job that carries it on.

        It takes the same arguments as `CharacterSession.restart`, and raises the same errors.
        """
        session = await self.session()
        entry = await session.restart(key, request, **changes)  # pyright: ignore[reportArgumentType] # `key` is of `changes`
        await self._replace_job(entry)  # one whose hook raised may still wait
        return entry

    async def result(self, key: str, *, timeout: float | None = None) -> Any:
        """Wait for the character of a key; see `CharacterSession.wait`."""
        return await (await self.session()).wait(key, timeout=timeout)

    async def on_event(self, event: CallbackEvent, entry: Entry) -> None:
        """Let the job of a request run now, because its callback has arrived.

        Give it to the receiver of a web process::

            CallbackReceiver(session, on_event=characters.on_event, settle_only=True)
        """
        del event
        await self._replace_job(entry, priority=_EVENT_PRIORITY)

    async def _replace_job(self, entry: Entry, *, priority: int = 0) -> None:
        """Add a job that runs now, and cancel those of the request that wait, behind which it would have to wait."""
        before = await self.app.job_manager.list_jobs_async(lock=_lock_of(entry.key), status=Status.TODO.value)
        await self._defer(entry, priority=priority)
        for job_id in [job.id for job in before if job.id is not None]:  # the new one has taken its place
            await self.app.job_manager.cancel_job_by_id_async(job_id, delete_job=True)

    async def run_worker(
        self,
        app: App | None = None,
        *,
        concurrency: int = 20,
        queues: Collection[str] = (),
        **options: Any,
    ) -> None:
        """Run jobs until SIGINT or SIGTERM, or until this call is cancelled; then close the session.

        Each of the two queues has a worker of its own: no poll waits behind a create.
        Jobs of workers that have died are adopted, and requests that no job carries on get one.

        Args:
            app: The app that has the tasks. Defaults to the one of `blueprint`.
            concurrency: The maximum number of jobs at the same time, in each worker.
            queues: Other queues of the app, for whose jobs there is a third worker.
            **options: Other options of Procrastinate's workers.

        Raises:
            ConfigurationError: An option is invalid, no app has the tasks, or Procrastinate's tables are missing.
            SoraCharsError: The session could not be opened.
        """
        app = app or self.app
        check_has_task(app, self._task.name)
        numbers = (signal.SIGINT, signal.SIGTERM) if options.pop("install_signal_handlers", True) else ()
        chosen = {**_WORKER_OPTIONS, **options, "concurrency": concurrency, "install_signal_handlers": False}
        heartbeat = chosen["update_heartbeat_interval"]
        check_worker(concurrency, queues, heartbeat=heartbeat, stalled_after=self._stalled_after)
        served: list[dict[str, Any]] = [
            {"fetch_job_polling_interval": _FETCH_INTERVALS[polls], **chosen, "queues": [queue]}
            for polls, queue in self._queues.items()
        ]
        served += [{**chosen, "queues": [*queues]}] if queues else []
        async with AsyncExitStack() as stack:
            await open_app(app, stack)
            await self.session()
            stack.push_async_callback(self.aclose)
            facts = {"queues": ", ".join(queue for each in served for queue in each["queues"])}
            log.info("worker.started", extra={**facts, "concurrency": concurrency})
            stack.enter_context(without_records_of(NotFinishedError))
            workers = [asyncio.create_task(app.run_worker_async(**each)) for each in served]
            upkeep = asyncio.create_task(self._keep_up(app), name="sora_chars upkeep")
            with stop_signals(*numbers) as stopped:
                await until_one_ends(workers, upkeep, stopped, waits=bool(chosen.get("wait", True)))
        log.info("worker.stopped", extra=facts)

    async def _advance(self, key: str) -> None:
        """Take one step of a request."""
        step = await (await self.session()).advance(key, patience=self._patience)
        if not step.finished:
            raise NotFinishedError(step)
        if self._ended:
            try:
                called = self._ended(step.entry)
                if inspect.isawaitable(called):
                    await called
            except Exception as error:
                log.exception("jobs.hook_failed", extra={"key": key, "retry_in": FAULT_DELAY})
                raise HookError(f"the hook `ended` of key {key} raised {type(error).__name__}") from error

    async def _defer(self, entry: Entry, connection: Connection | None = None, *, priority: int = 0) -> None:
        """Add the job of a request.

        Of several jobs with one lock, one runs at a time: that with the highest priority, then the first one.
        """
        polls = entry.state not in {EntryState.PENDING, EntryState.SENDING}
        if isinstance(connection, psycopg.Cursor | psycopg.AsyncCursor):
            connection = connection.connection
        options: dict[str, Any] = {
            "lock": _lock_of(entry.key),
            "queue": self._queues[polls],
            "priority": priority or (POLL_PRIORITY if polls else 0),
            "connection": connection,
        }
        if isinstance(connection, psycopg.Connection):
            # An open connector is async, and the statement runs on the given connection.
            manager = JobManager(SyncPsycopgConnector())
            configure_task(name=self._task.name, job_manager=manager, **options).defer(key=entry.key)
        else:
            await self._task.configure(**options).defer_async(key=entry.key)

    async def _keep_up(self, app: App) -> None:
        """Adopt the jobs of dead workers, and search for requests without a job, until cancelled."""
        loop = asyncio.get_running_loop()
        sweep_at = loop.time()
        while True:
            try:
                await self._adopt(app)
                if loop.time() >= sweep_at:
                    began = loop.time()
                    sweep_at = began + _SWEEP_INTERVAL  # also if it raises
                    await self._sweep(app)
                    sweep_at = max(sweep_at, loop.time() + _SWEEP_PAUSE * (loop.time() - began))
            except (SoraCharsError, ConnectorException) as error:
                log.warning("jobs.upkeep_failed", extra={"error": printable(error)})
            jitter = random.uniform(0.8, 1.2)  # noqa: S311 # no secret
            await asyncio.sleep(_ADOPTION_INTERVAL * jitter)

    async def _adopt(self, app: App) -> None:
        """Let the jobs of workers without a heartbeat run again."""
        stalled = await app.job_manager.get_stalled_jobs(
            task_name=self._task.name, seconds_since_heartbeat=self._stalled_after
        )
        for job in stalled:
            with suppress(ConnectorException):  # another process adopted it first
                await app.job_manager.retry_job(job)
                log.info("jobs.adopted", extra={"key": job.task_kwargs.get("key")})

    async def _sweep(self, app: App) -> None:
        """Add a job for each request that no job carries on.

        The requests whose jobs are in order are read too, so that those behind them get theirs.
        """
        session = await self.session()
        added = 0
        async with aclosing(session.due(idle=self._idle, limit=sys.maxsize)) as due:
            async for group in _groups(due):
                locks = await self._live_locks(app, [entry.key for entry in group])
                for entry in group:
                    # A job that has ended since `due` has changed the entry.
                    if _lock_of(entry.key) not in locks and await session.entry(entry.key) == entry:
                        await self._defer(entry)
                        added += 1
                        log.info("jobs.added", extra={"key": entry.key, "state": entry.state.value})
                if added >= _MAX_ADDED:
                    return

    async def _live_locks(self, app: App, keys: Collection[str]) -> set[str]:
        """Return the locks of the jobs of some keys that wait or run, all as of one moment."""
        rows = await app.connector.execute_query_all_async(_LIVE_LOCKS, locks=[*map(_lock_of, keys)])
        return {row["lock"] for row in rows}


async def _groups(entries: AsyncIterator[Entry]) -> AsyncGenerator[list[Entry], None]:
    """Yield entries in groups, of which only the last one may be smaller."""
    group: list[Entry] = []
    async for entry in entries:
        group.append(entry)
        if len(group) == _GROUP_SIZE:
            yield group
            group = []
    if group:
        yield group


def _lock_of(key: str) -> str:
    return f"sora_chars {key}"
