"""What the commands do with a session: make, wait, look."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from sora_chars.errors import InvalidRequestError, NoAnswerError, WaitTimeoutError
from sora_chars.ledger import EntryState
from sora_chars.session.session import CharacterSession

from .callback_server import receiving

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from sora_chars.ledger import Entry
    from sora_chars.models import Character, CharacterRequest, TaskRequest, TaskSnapshot, UploadProgress
    from sora_chars.polling.handle import TaskHandle
    from sora_chars.protocols import Provider

    from .context import Job
    from .options import Settings
    from .output import Line

WAIT = 1800.0
_UNSENT = {EntryState.PENDING, EntryState.REJECTED}
_ENDED = {EntryState.SUCCEEDED, EntryState.FAILED}
DRAIN = 8.0  # seconds for the answer of a paid request after a signal: service managers kill after 10


async def make(job: Job, settings: Settings, request: CharacterRequest | TaskRequest) -> tuple[Any, str]:
    """Submit and wait: the outcome, and how it came."""
    limit = settings.timeout or WAIT
    with job.screen.line() as line:
        deadline = asyncio.get_running_loop().time() + limit
        provider = settings.make_provider(lambda progress: line.say(_upload(progress)))
        job.has_tasks = not provider.synchronous
        server = settings.open_port()
        async with (
            CharacterSession(
                provider, ledger=settings.place.make(), polling=settings.pace, timeout=limit, shutdown_timeout=DRAIN
            ) as session,
            receiving(session, server, settings.webhook_key),
        ):
            entry = await session.entry(str(request.key))
            line.say(_intent(provider, entry))
            handle = await _submit(job, session, request)
            if entry and entry.state in _ENDED:
                return await handle.result(), "none, it is from the ledger"
            if provider.synchronous:
                return await handle.result(), line.elapsed
            left = max(0.0, deadline - asyncio.get_running_loop().time())
            return await _watch(job, line, handle, left)


async def wait(job: Job, settings: Settings, task: str) -> tuple[Any, str]:
    """Wait for a task that was made before, named by its id or its key: the outcome, and how it came.

    Raises:
        InvalidRequestError: the key has no task.
    """
    provider = settings.make_provider()
    with job.screen.line() as line:
        async with CharacterSession(provider, ledger=settings.place.make(), polling=settings.pace) as session:
            handle = await _find(job, session, task)
            job.task_id = handle.task_id
            line.say(f"{provider.name} task {handle.task_id}: looking")
            return await _watch(job, line, handle, settings.timeout or WAIT)


async def _find(job: Job, session: CharacterSession, task: str) -> TaskHandle[Any]:
    (provider,) = session.providers
    entry = await session.entry(task) or await session.ledger.by_task(provider.name, task)
    if entry is None:
        return session.resume(task)
    job.key = entry.key
    if entry.task_id is None:
        hint = job.settling(entry.key) if entry.state is EntryState.UNKNOWN else ""
        raise InvalidRequestError(f"Key {entry.key} is {entry.state}: it has no task to wait for.", hint=hint)
    return session.resume(entry.task_id, provider=entry.provider, key=entry.key)


async def look(settings: Settings, task_id: str) -> Character | TaskSnapshot:
    """One look at a task: what it gave, or the task as it is.

    Raises:
        TaskFailedError: it has failed.
    """
    async with _asking(settings) as provider:
        snapshot = await provider.fetch(task_id)
    return snapshot.outcome()


async def ask_credit(settings: Settings) -> float:
    """The credits that are left."""
    async with _asking(settings) as provider:
        return await provider.credit()


async def ask_models(settings: Settings) -> list[Any]:
    """The models on offer."""
    async with _asking(settings) as provider:
        return await provider.models()


@asynccontextmanager
async def _asking(settings: Settings) -> AsyncGenerator[Provider]:
    """The provider, for a free question that `--timeout` limits."""
    limit = settings.timeout or WAIT
    async with settings.make_provider() as provider:
        try:
            async with asyncio.timeout(limit):
                yield provider
        except TimeoutError:
            raise NoAnswerError(f"{provider.name} gave no answer within {limit:g} s.", provider=provider.name) from None


async def _submit(job: Job, session: CharacterSession, request: CharacterRequest | TaskRequest) -> TaskHandle[Any]:
    job.key = request.key
    try:
        handle: TaskHandle[Any] = await session.submit(request)
    except asyncio.CancelledError:
        job.screen.note(
            f"Interrupted. If the request was sent, its answer is waited for: {DRAIN:g} s, or until the next Ctrl-C."
        )
        raise
    job.task_id = handle.task_id
    return handle


async def _watch(job: Job, line: Line, handle: TaskHandle[Any], limit: float) -> tuple[Any, str]:
    try:
        async for snapshot in handle.updates(limit):
            line.say(f"{handle.provider} task {handle.task_id}: {snapshot.state}, seen by {handle.woken_by}")
    except WaitTimeoutError as error:
        error.hint = f"Go on with: {job.command('wait', handle.task_id)}"
        raise
    return await handle.result(0), f"{line.elapsed}, seen by {handle.woken_by}"


def _intent(provider: Provider, entry: Entry | None) -> str:
    if entry is None or entry.state in _UNSENT:
        return f"{provider.name}: {'making the character' if provider.synchronous else 'sending the request'}"
    return f"{provider.name}: key {entry.key} was asked before, {entry.state}"


def _upload(progress: UploadProgress) -> str:
    tenths = progress.sent * 10 // progress.total
    return f"uploading {progress.path.name}: {tenths}0 % of {progress.total / 1e6:.1f} MB"
