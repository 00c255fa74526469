"""Runs the workers of Procrastinate in one process, and stops them together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from contextlib import AsyncExitStack, contextmanager, suppress
from inspect import iscoroutine
from typing import TYPE_CHECKING, Any

import psycopg
from procrastinate.exceptions import AppNotOpen, ProcrastinateException

from sora_chars.errors import ConfigurationError, printable
from sora_chars.models import seconds_problems
from sora_chars.session.session import CharacterSession

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from procrastinate import App

ADD_TASKS = 'Call app.add_tasks_from(characters.blueprint, namespace="sora_chars").'
"""What to do about an app without the tasks."""
_HEARTBEATS = 3  # that a worker must have missed before its jobs are adopted


def check_options(make_session: object, ended: object, queues: Sequence[object], **seconds: object) -> None:
    """Check the options of `Characters`.

    Raises:
        ConfigurationError: An option is invalid; the message lists all that are.
    """
    problems = [problem for field, value in seconds.items() for problem in seconds_problems(field, value, finite=True)]
    if not callable(make_session):
        problems.append(
            "make_session must be a function that makes a session, such as "
            f"lambda: CharacterSession(Kling(), ledger=URL), got {printable(repr(make_session), limit=60)}"
        )
    if not (ended is None or callable(ended)):
        problems.append(f"ended must be a function of an entry, got {printable(repr(ended), limit=60)}")
    if len({*map(str, queues)}) < len(queues) or not all(isinstance(queue, str) and queue for queue in queues):
        problems.append(f"send_queue and poll_queue must be two names, got {printable(repr([*queues]), limit=60)}")
    if problems:
        raise ConfigurationError(f"characters: {'; '.join(problems)}.")


def checked_session(made: object) -> CharacterSession:
    """Return what `make_session` made.

    Raises:
        ConfigurationError: It is no session.
    """
    if isinstance(made, CharacterSession):
        return made
    if iscoroutine(made):
        made.close()
    given = printable(repr(type(made).__name__), limit=60)
    raise ConfigurationError(
        f"characters: make_session must return a CharacterSession of sora_chars, got {given}.",
        hint="It must be no async function, and sora_chars.sync is for programs without an event loop.",
    )


def check_worker(concurrency: object, queues: Any, *, heartbeat: Any, stalled_after: float) -> None:
    """Check the options of `Characters.run_worker`.

    Raises:
        ConfigurationError: An option is invalid, or the jobs of living workers would be adopted.
    """
    problems = seconds_problems("update_heartbeat_interval", heartbeat, finite=True)
    if not (isinstance(concurrency, int) and not isinstance(concurrency, bool) and concurrency >= 1):
        problems.append(f"concurrency must be a whole number from 1, got {printable(repr(concurrency), limit=60)}")
    if heartbeat == 0:
        problems.append("update_heartbeat_interval must be above 0")
    is_list = isinstance(queues, Collection) and not isinstance(queues, str | bytes)
    if not (is_list and all(isinstance(queue, str) and queue for queue in queues)):
        problems.append(f'queues must be a list of names, such as ["mail"], got {printable(repr(queues), limit=60)}')
    if problems:
        raise ConfigurationError(f"characters: {'; '.join(problems)}.")
    if stalled_after < _HEARTBEATS * heartbeat:
        raise ConfigurationError(
            f"characters: stalled_after is {stalled_after:g} s, but workers show that they are alive every "
            f"{heartbeat:g} s, so the jobs of living workers would be adopted.",
            hint=f"Use Characters(stalled_after={_HEARTBEATS * heartbeat:g}) or more, "
            "or a smaller update_heartbeat_interval.",
        )


def check_has_task(app: App, name: str) -> None:
    """Check that an app can run the jobs of a task, which it would fail otherwise.

    Raises:
        ConfigurationError: It lacks the task.
    """
    if name not in app.tasks:
        raise ConfigurationError(
            f"characters: this Procrastinate app does not have the task {name}.",
            hint=ADD_TASKS,
        )


async def open_app(app: App, stack: AsyncExitStack) -> None:
    """Open an app that is not open, until the stack ends.

    Raises:
        ConfigurationError: Its database cannot be used, or has not Procrastinate's tables.
    """
    try:
        has_tables = await _has_tables(app, stack)
    except (ProcrastinateException, psycopg.Error) as error:
        reason = printable(error.__cause__ or error)
        raise ConfigurationError(
            f"characters: the database of the Procrastinate app could not be used: {reason}.",
            hint="The connector of the app must be a PsycopgConnector to a database that accepts connections.",
        ) from error
    if not has_tables:
        raise ConfigurationError(
            "characters: the database does not have Procrastinate's tables.",
            hint="Run `PYTHONPATH=. procrastinate --app MODULE.APP schema --apply`, "
            "or await app.schema_manager.apply_schema_async().",
        )


async def _has_tables(app: App, stack: AsyncExitStack) -> bool:
    try:
        return await app.check_connection_async()
    except AppNotOpen:
        await stack.enter_async_context(app.open_async())
        return await app.check_connection_async()


async def until_one_ends(
    workers: Sequence[asyncio.Task[None]], upkeep: asyncio.Task[None], stopped: asyncio.Event, *, waits: bool
) -> None:
    """Wait for a signal, or for the end of a worker; workers that do not wait for jobs must all end. Then stop all."""
    stop = asyncio.create_task(stopped.wait())
    started: list[asyncio.Task[Any]] = [*workers, upkeep, stop]
    running = {*workers}
    try:
        while running and not (stop.done() or upkeep.done()):
            await asyncio.wait({*running, stop, upkeep}, return_when=asyncio.FIRST_COMPLETED)
            ended = {worker for worker in running if worker.done()}
            running -= ended
            if ended and waits:
                break
    finally:
        for asyncio_task in started:
            asyncio_task.cancel()  # a worker finishes its jobs first
        results = await asyncio.gather(*started, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result


@contextmanager
def without_records_of(kind: type[Exception]) -> Generator[None]:
    """Keep Procrastinate from logging each job that ended with this error, which is no fault, with its traceback."""

    def is_other(record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], kind))

    logger = logging.getLogger("procrastinate.worker")
    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


@contextmanager
def stop_signals(*numbers: int) -> Generator[asyncio.Event]:
    """Yield an event that these signals set, where the event loop has signal handlers."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    handled: list[int] = []
    for number in numbers:
        with suppress(NotImplementedError, RuntimeError, ValueError):  # Windows, and threads
            loop.add_signal_handler(number, stopped.set)
            handled.append(number)
    try:
        yield stopped
    finally:
        for number in handled:
            loop.remove_signal_handler(number)
