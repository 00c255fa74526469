"""`CharacterSession.advance`: one step of a request per call, for job engines."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any

import pytest

from sora_chars.errors import (
    AuthenticationError,
    ConfigurationError,
    InvalidRequestError,
    LedgerError,
    MissingCharacterError,
    NoAnswerError,
    RateLimitedError,
    RequestRejectedError,
    SubmissionUnknownError,
    TaskNotFoundError,
)
from sora_chars.ledger import EntryState, Ledger
from sora_chars.models import TaskSnapshot
from sora_chars.polling.strategies import FixedInterval
from sora_chars.polling.watcher import TaskWatcher
from sora_chars.session.pictures import Pictures
from sora_chars.session.session import CharacterSession
from tests.support.fake_providers import FakeProvider, FaultyStore, state_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from sora_chars.models import Character

pytestmark = pytest.mark.looptime

REQUEST: dict[str, Any] = {"from_task": "origin", "clip": "1,3", "prompt": "a dog", "key": "mine"}


def changed(**fields: Any) -> dict[str, Any]:
    """Return the fields of the request, some of them changed."""
    return {**REQUEST, **fields}


@pytest.fixture
def provider() -> FakeProvider:
    """Return a provider without faults."""
    return FakeProvider()


@pytest.fixture
def store() -> FaultyStore:
    """Return a store without faults."""
    return FaultyStore()


@pytest.fixture
async def session(provider: FakeProvider, store: FaultyStore) -> AsyncGenerator[CharacterSession]:
    """Return a session that polls every 10 s."""
    async with CharacterSession(provider, polling=FixedInterval(10.0), ledger=Ledger(store)) as session:
        yield session


async def advance(session: CharacterSession) -> tuple[EntryState, float | None]:
    """Take one step, and return the state of the entry and the seconds until the next step."""
    step = await session.advance("mine")
    assert step.finished is (step.retry_in is None)
    assert step.entry == await session.entry("mine")
    return step.entry.state, step.retry_in


async def test_advances_one_step_per_call(session: CharacterSession, provider: FakeProvider) -> None:
    """A request is registered, sent once, and polled once per call until its end."""
    assert (await session.register(**REQUEST)).state is EntryState.PENDING
    assert provider.posts == []
    provider.seen = provider.snapshot(state="generating")
    assert await advance(session) == (EntryState.RUNNING, 10)
    assert (len(provider.posts), len(provider.polls)) == (1, 0)
    assert await advance(session) == (EntryState.RUNNING, 10)
    provider.seen = provider.snapshot(state="generating", retry_after=77.0)
    assert await advance(session) == (EntryState.RUNNING, 77)
    provider.seen = None
    assert await advance(session) == (EntryState.SUCCEEDED, None)
    assert await advance(session) == (EntryState.SUCCEEDED, None)
    assert (len(provider.posts), len(provider.polls)) == (1, 3)
    assert [saved.character.id async for saved in session.characters("DOG")] == ["ch_1"]


async def test_steps_start_no_polling(session: CharacterSession, provider: FakeProvider) -> None:
    """A task that a step started is not polled until the next step."""
    await session.register(**REQUEST)
    await session.advance("mine")
    await asyncio.sleep(1000)
    assert provider.polls == []


async def test_concurrent_steps_send_once(session: CharacterSession, provider: FakeProvider) -> None:
    """Concurrent steps of one key send one request, and all of them return its end."""
    await session.register(**REQUEST)
    assert {await step for step in [asyncio.create_task(advance(session)) for _ in range(9)]} == {
        (EntryState.RUNNING, 10)
    }
    ends = await asyncio.gather(*(advance(session) for _ in range(9)))
    assert {*ends} == {(EntryState.SUCCEEDED, None)}
    assert len(provider.posts) == 1


async def test_synchronous_provider_finishes_in_one_step() -> None:
    """The response of a synchronous provider finishes the key."""
    async with CharacterSession(FakeProvider(synchronous=True)) as session:
        await session.register(**REQUEST)
        assert await advance(session) == (EntryState.SUCCEEDED, None)


async def test_ends_are_logged(
    session: CharacterSession, provider: FakeProvider, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker's log shows the end of each request once, and a lost outcome and a rejection as warnings."""
    caplog.set_level("INFO", logger="sora_chars.session")
    await session.register(**REQUEST)
    while (await advance(session))[1] is not None:
        pass
    await advance(session)
    for key, fault in (("lost", NoAnswerError("reset")), ("bad", RequestRejectedError("a real person"))):
        provider.fault = fault
        fields: dict[str, Any] = {**REQUEST, "key": key}
        await session.register(**fields)
        await session.advance(key)
    found = [(record.levelname, vars(record)["event"], vars(record)["key"]) for record in caplog.records]
    assert found == [
        ("INFO", "request.ended", REQUEST["key"]),
        ("WARNING", "recovery.unknown", "lost"),
        ("WARNING", "request.ended", "bad"),
    ]
    assert "state=rejected, error=a real person" in caplog.text


async def test_rejection_finishes_the_key(session: CharacterSession, provider: FakeProvider) -> None:
    """A rejection finishes the key for all concurrent steps, and a later step sends nothing."""
    provider.fault = RequestRejectedError("a real person")
    await session.register(**REQUEST)
    assert {*await asyncio.gather(advance(session), advance(session))} == {(EntryState.REJECTED, None)}
    assert await advance(session) == (EntryState.REJECTED, None)
    assert len(provider.posts) == 1


@pytest.mark.parametrize(
    ("fault", "early", "retry_in"),
    [
        (RateLimitedError("busy"), None, 5.0),
        (RateLimitedError("busy", retry_after=60.0), None, 60.0),
        (None, NoAnswerError("the upload was reset"), 5.0),
    ],
)
async def test_transient_errors_are_retried_later(
    session: CharacterSession, provider: FakeProvider, fault: Exception | None, early: Exception | None, retry_in: float
) -> None:
    """A transient error leaves the entry pending, to be retried when the provider says."""
    provider.fault, provider.early = fault, early
    await session.register(**REQUEST)
    assert await advance(session) == (EntryState.PENDING, retry_in)


async def test_unrecorded_rejection_is_raised(
    session: CharacterSession, provider: FakeProvider, store: FaultyStore
) -> None:
    """A rejection that the ledger cannot record is raised."""
    provider.fault = RequestRejectedError("a real person")
    store.full = {EntryState.REJECTED}
    await session.register(**REQUEST)
    with pytest.raises(RequestRejectedError):
        await session.advance("mine")
    assert await state_of(session) is EntryState.SENDING


async def test_leaves_a_sending_entry_to_its_process(session: CharacterSession, store: FaultyStore) -> None:
    """A step does not wait for a living sender, and finishes with an unknown outcome after its death."""
    await session.register(**REQUEST)
    await store.elsewhere("mine", EntryState.SENDING)
    began = asyncio.get_running_loop().time()
    assert await advance(session) == (EntryState.SENDING, 5)
    assert asyncio.get_running_loop().time() == began
    store.others_live = False
    for _ in range(2):
        step = await session.advance("mine")
        assert (step.finished, step.state) == (True, EntryState.UNKNOWN)
        assert isinstance(step.outcome, SubmissionUnknownError)
        assert "the process that sent it ended" in step.outcome.message
    assert await state_of(session) is EntryState.UNKNOWN


async def test_a_step_does_not_wait_for_the_check_of_a_sender(
    session: CharacterSession, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it takes long to find out that a sender has died, the steps come back sooner, and share one check."""
    checks: list[str] = []

    async def is_dead(owner: str) -> bool:
        checks.append(owner)
        await asyncio.sleep(15)
        return True

    monkeypatch.setattr(session.ledger, "is_dead", is_dead)
    await session.register(**REQUEST)
    await store.elsewhere("mine", EntryState.SENDING)
    began = asyncio.get_running_loop().time()
    assert [*await asyncio.gather(advance(session), advance(session))] == [(EntryState.SENDING, 1)] * 2
    assert asyncio.get_running_loop().time() - began < 1
    await asyncio.sleep(15)
    assert await advance(session) == (EntryState.UNKNOWN, None)
    assert checks == ["another process"]


async def test_closing_stops_the_check_of_a_sender(provider: FakeProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that closes waits for no check."""
    store = FaultyStore()

    async def is_dead(owner: str) -> bool:
        del owner
        await asyncio.sleep(1e6)
        return True

    ledger = Ledger(store)
    monkeypatch.setattr(ledger, "is_dead", is_dead)
    async with CharacterSession(provider, ledger=ledger) as session:
        await session.register(**REQUEST)
        await store.elsewhere("mine", EntryState.SENDING)
        assert await advance(session) == (EntryState.SENDING, 1)
    assert asyncio.get_running_loop().time() < 100


async def test_a_full_ledger_registers_nothing(session: CharacterSession, store: FaultyStore) -> None:
    """The error of a request that could not be recorded says that nothing was sent."""
    store.full = {EntryState.PENDING}
    with pytest.raises(LedgerError, match="Nothing was sent"):
        await session.register(**REQUEST)


async def test_a_finished_step_has_an_outcome(session: CharacterSession, provider: FakeProvider) -> None:
    """A step has no outcome before the end, then the character or the error."""
    await session.register(**REQUEST)
    step = await session.advance("mine")
    assert (step.state, step.outcome) == (EntryState.RUNNING, None)
    step = await session.advance("mine")
    assert step.outcome == provider.snapshot().character
    provider.fault = RequestRejectedError("a real person")
    await session.register(**changed(key="another"))
    step = await session.advance("another")
    assert isinstance(step.outcome, RequestRejectedError)
    assert (step.outcome.message, step.outcome.key) == ("a real person", "another")


async def test_a_lost_answer_is_a_finished_step(
    session: CharacterSession, provider: FakeProvider, store: FaultyStore
) -> None:
    """A create without an answer finishes the key as unknown, once the ledger has that on record."""
    provider.fault = NoAnswerError("reset")
    store.full = {EntryState.UNKNOWN}
    await session.register(**REQUEST)
    assert await advance(session) == (EntryState.SENDING, 5)
    store.full.clear()
    await asyncio.sleep(30)
    assert await advance(session) == (EntryState.UNKNOWN, None)
    assert len(provider.posts) == 1


async def test_a_success_without_character_is_a_finished_step() -> None:
    """The response of a synchronous provider that holds no character finishes the key as failed."""
    provider = FakeProvider(synchronous=True)
    provider.fault = MissingCharacterError("none", provider="fake", task_id="t1", payload={})
    async with CharacterSession(provider) as session:
        await session.register(**REQUEST)
        step = await session.advance("mine")
        assert (step.finished, step.state) == (True, EntryState.FAILED)
        assert isinstance(step.outcome, MissingCharacterError)


@pytest.mark.parametrize("patience", [-1.0, math.nan, math.inf, "soon"])
async def test_rejects_an_invalid_patience(session: CharacterSession, patience: Any) -> None:
    """Patience is a finite number of seconds."""
    await session.register(**REQUEST)
    with pytest.raises(InvalidRequestError, match="patience must be a finite number of seconds, at least 0, got"):
        await session.advance("mine", patience=patience)


async def test_a_task_that_never_appears_is_raised(provider: FakeProvider) -> None:
    """A task that the provider does not have is polled again for 90 s, and then the error is raised."""
    now = [1000.0]
    ledger = Ledger(FaultyStore(), clock=lambda: now[0])
    watcher = TaskWatcher(polling=FixedInterval(10.0), clock=lambda: now[0])
    async with CharacterSession(provider, ledger=ledger, watcher=watcher) as session:
        await session.register(**REQUEST)
        await session.advance("mine")
        provider.seen = TaskNotFoundError("no such task")
        now[0] += 89.0
        assert await advance(session) == (EntryState.RUNNING, 5)
        now[0] += 1.0
        with pytest.raises(TaskNotFoundError):
            await session.advance("mine")


async def test_polls_are_rarer_while_callbacks_arrive(provider: FakeProvider) -> None:
    """A task that expects a callback is polled less often while callbacks arrive, unless the provider says when."""
    provider.callback_url = "https://example.com/hooks"
    provider.seen = provider.snapshot(state="generating")
    async with CharacterSession(provider, polling=FixedInterval(10.0)) as session:
        await session.register(**REQUEST)
        session.watcher.callback_health.record_success()
        assert await advance(session) == (EntryState.RUNNING, 50)
        assert await advance(session) == (EntryState.RUNNING, 50)
        provider.seen = provider.snapshot(state="generating", retry_after=77.0)
        assert await advance(session) == (EntryState.RUNNING, 77)
        provider.seen = provider.snapshot(state="generating")
        await asyncio.sleep(61)
        assert await advance(session) == (EntryState.RUNNING, 10)


@pytest.mark.parametrize(
    ("seen", "state", "retry_in"),
    [
        (NoAnswerError("reset"), EntryState.RUNNING, 5.0),
        (RateLimitedError("busy", retry_after=9.0), EntryState.RUNNING, 9.0),
        (TaskNotFoundError("no such task"), EntryState.RUNNING, 5.0),
        (MissingCharacterError("none", provider="fake", task_id="t1", payload={}), EntryState.FAILED, None),
        (TaskSnapshot(task_id="t1", provider="fake", state="fail"), EntryState.FAILED, None),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_poll_outcomes(
    session: CharacterSession,
    provider: FakeProvider,
    seen: TaskSnapshot | Exception,
    state: EntryState,
    retry_in: float | None,
) -> None:
    """A transient error calls for another step; an end without a character finishes the key."""
    await session.register(**REQUEST)
    await session.advance("mine")
    provider.seen = seen
    assert await advance(session) == (state, retry_in)


async def test_permanent_poll_error_is_raised(session: CharacterSession, provider: FakeProvider) -> None:
    """A rejected API key is raised, and the entry stays running."""
    await session.register(**REQUEST)
    await session.advance("mine")
    provider.seen = AuthenticationError("bad key")
    with pytest.raises(AuthenticationError):
        await session.advance("mine")
    assert await state_of(session) is EntryState.RUNNING


async def test_unrecorded_result_is_not_finished(
    session: CharacterSession, provider: FakeProvider, store: FaultyStore
) -> None:
    """A result that the ledger cannot record does not finish the key."""
    await session.register(**REQUEST)
    await session.advance("mine")
    store.full = {EntryState.SUCCEEDED}
    assert await advance(session) == (EntryState.RUNNING, 5)
    store.full.clear()
    assert await advance(session) == (EntryState.SUCCEEDED, None)
    assert len(provider.posts) == 1


async def test_rejects_unknown_keys_and_providers(session: CharacterSession, store: FaultyStore) -> None:
    """The error names an unknown key, or a provider that the session does not have."""
    with pytest.raises(InvalidRequestError, match="no entry 'mine'"):
        await session.advance("mine")
    await session.ledger.register(key="mine", provider="gone", kind="character", request={})
    for state in (EntryState.PENDING, EntryState.SENDING, EntryState.RUNNING):
        if state is not EntryState.PENDING:
            await store.elsewhere("mine", state, task_id="t1")
        if state is not EntryState.SENDING:
            with pytest.raises(ConfigurationError, match="must be one of fake, got 'gone'"):
                await session.advance("mine")


async def test_final_step_saves_the_picture_and_observes_the_task(
    provider: FakeProvider, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The step that finds the end saves the picture and trains the strategy before it returns."""
    saved: list[Character] = []
    observed: list[TaskSnapshot] = []

    async def save(self: Pictures, character: Character) -> None:
        del self
        await asyncio.sleep(3)
        saved.append(character)

    class ObservingInterval(FixedInterval):
        def observe_finished(self, snapshot: TaskSnapshot) -> None:
            observed.append(snapshot)

    monkeypatch.setattr(Pictures, "save", save)
    async with CharacterSession(provider, polling=ObservingInterval(10.0), pictures=tmp_path) as session:
        await session.register(**REQUEST)
        await session.advance("mine")
        assert (saved, observed) == ([], [])
        await session.advance("mine")
        assert (saved, observed) == ([provider.snapshot().character], [provider.snapshot()])
        provider.synchronous = True
        await session.register(**changed(key="another"))
        await session.advance("another")
        assert len(saved) == 2
