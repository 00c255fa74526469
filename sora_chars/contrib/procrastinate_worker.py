"""Runs the workers of Procrastinate in one process, and stops them together."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import psycopg
from procrastinate.exceptions import AppNotOpen, ProcrastinateException

from sora_chars.errors import ConfigurationError, printable

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from procrastinate import App


def check_has_task(app: App, name: str) -> None:
    """Check that an app can run the jobs of a task, which it would fail otherwise.

    Raises:
        ConfigurationError: It lacks the task.
    """
    if name not in app.tasks:
        raise ConfigurationError(
            f"characters: this Procrastinate app does not have the task {name}.",
            hint='Call app.add_tasks_from(characters.blueprint, namespace="sora_chars").',
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
