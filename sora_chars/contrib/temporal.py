"""Characters as Temporal workflows: one workflow a key, whose durable timer sets when the next step is taken.

The ledger of the session, which all workers share, keeps what was sent and paid; the
workflow only decides when `CharacterSession.advance` is called. So a worker may be
killed at any moment, and a step may be taken twice.

    await session.register(video="https://example.com/dog.mp4", name="Rex", prompt="A friendly dog", key="order-17")
    result = await client.execute_workflow(
        CharacterWorkflow.run, "order-17", id="character-order-17", task_queue="characters"
    )

A worker serves the workflow and its activity:

    async with CharacterSession(Kling(), ledger=URL) as session:
        activities = CharacterActivities(session)
        await Worker(
            client, task_queue="characters", workflows=[CharacterWorkflow], activities=[activities.advance]
        ).run()
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypedDict

from temporalio import activity, workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError
from temporalio.service import RPCError, RPCStatusCode

with workflow.unsafe.imports_passed_through():
    import attrs

    from sora_chars.errors import ConfigurationError, InvalidRequestError, ProviderError, SoraCharsError
    from sora_chars.models import Character

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from temporalio.client import Client

    from sora_chars.ledger import Entry
    from sora_chars.session.session import CharacterSession

WORKFLOW_ID = "character-{key}"
"""The id of the workflow of a key, to which `callback_signal` sends its signals."""

_PATIENCE = 2.0  # seconds that a step may wait for the limits of the account
_HEARTBEAT = 10.0  # seconds without a heartbeat after which a worker counts as dead
_STEP_TIMEOUT = timedelta(minutes=15)  # a synchronous provider answers when the character exists
_RETRY_DELAY = 5.0  # seconds after a step that did not end


class Outcome(TypedDict):
    """How a step left a key, or how a workflow ended, as JSON.

    The keys are `state` (see `EntryState`), `retry_in` (seconds until the next step; None at the end), `character`
    (the fields of `Character` but `raw`, once it exists) and `error` (why there is none).
    """

    state: str
    retry_in: float | None
    character: dict[str, Any] | None
    error: str | None


@attrs.frozen
class CharacterActivities:
    """The activity of a worker. It uses the worker's open session."""

    session: CharacterSession

    @activity.defn(name="sora_chars.advance")
    async def advance(self, key: str) -> Outcome:
        """Take the next step of a key; see `CharacterSession.advance`."""
        async with _heartbeats():
            try:
                step = await self.session.advance(key, patience=_PATIENCE)
            except (ConfigurationError, InvalidRequestError, ProviderError) as error:
                raise ApplicationError(str(error), type=type(error).__name__, non_retryable=True) from error
        found = step.outcome
        return {
            "state": str(step.state),
            "retry_in": step.retry_in,
            "character": _facts(found) if isinstance(found, Character) else None,
            "error": str(found) if isinstance(found, SoraCharsError) else None,
        }


def _facts(character: Character) -> dict[str, Any]:
    return attrs.asdict(character, filter=lambda field, _: field.name != "raw")


@asynccontextmanager
async def _heartbeats() -> AsyncGenerator[None]:
    """Report to Temporal during the block that this worker lives."""

    async def report() -> None:
        while True:
            activity.heartbeat()
            await asyncio.sleep(_HEARTBEAT / 4)

    reporting = asyncio.create_task(report())
    try:
        yield
    finally:
        reporting.cancel()


@workflow.defn(name="sora_chars.character")
class CharacterWorkflow:
    """Takes the steps of one registered key until it ends, and returns how it ended.

    The query `state` returns the state of the last step. The signal `callback` takes the next step at once.
    """

    def __init__(self) -> None:
        self._state = "pending"
        self._is_nudged = False

    @workflow.run
    async def run(self, key: str) -> Outcome:
        """Take steps until the key ends.

        A failed, rejected or unknown request is a result too, with its `state` and `error`.
        """
        while True:
            self._is_nudged = False
            delay = _RETRY_DELAY
            try:
                outcome = await self._advance(key)
            except ActivityError as error:  # a dead worker, a closed session or an unreachable ledger
                if isinstance(error.cause, ApplicationError) and error.cause.non_retryable:
                    raise
            else:
                self._state = outcome["state"]
                if outcome["retry_in"] is None:
                    return outcome
                delay = outcome["retry_in"]
            try:
                await workflow.wait_condition(lambda: self._is_nudged, timeout=delay)
            except TimeoutError:
                if workflow.info().is_continue_as_new_suggested():
                    workflow.continue_as_new(key)

    async def _advance(self, key: str) -> Outcome:
        outcome: Outcome = await workflow.execute_activity_method(
            CharacterActivities.advance,
            key,
            start_to_close_timeout=_STEP_TIMEOUT,
            heartbeat_timeout=timedelta(seconds=_HEARTBEAT),
            retry_policy=RetryPolicy(maximum_attempts=1),  # the next step reads what this one did
        )
        return outcome

    @workflow.signal
    def callback(self) -> None:
        """Take the next step at once."""
        self._is_nudged = True

    @workflow.query
    def state(self) -> str:
        """Return the state of the key after the last step."""
        return self._state


def callback_signal(client: Client) -> Callable[[object, Entry], Awaitable[None]]:
    """Return what signals the workflow of an entry, for `CallbackReceiver(on_event=..., settle_only=True)`."""

    async def signal(event: object, entry: Entry) -> None:
        del event
        handle = client.get_workflow_handle(WORKFLOW_ID.format(key=entry.key))
        try:
            await handle.signal(CharacterWorkflow.callback)
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:  # the workflow has ended, or was never started
                raise

    return signal
