"""Submissions: one key is sent at most once, and every outcome is recorded."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import pytest

from sora_chars.errors import (
    AuthenticationError,
    KeyConflictError,
    LedgerError,
    MissingCharacterError,
    NoAnswerError,
    RateLimitedError,
    RequestRejectedError,
    SessionClosedError,
    SubmissionUnknownError,
)
from sora_chars.ledger import EntryState, Ledger
from sora_chars.polling.strategies import FixedInterval
from sora_chars.session.session import CharacterSession
from tests.support.fake_providers import FakeProvider, FaultyStore, entry_of, state_of
from tests.support.log_events import event_of

if TYPE_CHECKING:
    from pathlib import Path

    from sora_chars.models import Character, Request, TaskSnapshot

pytestmark = pytest.mark.looptime

RESPONSE_TIMES = {0.5: "before the first owner check", 10.0: "after several owner checks"}  # by seconds

REQUEST: dict[str, Any] = {"from_task": "origin", "clip": "1,3", "prompt": "a dog", "key": "mine"}


@pytest.fixture
def store() -> FaultyStore:
    """Return a store without faults."""
    return FaultyStore()


def session_of(provider: FakeProvider, store: FaultyStore | None = None, **options: Any) -> CharacterSession:
    """Return a session that polls every 10 s."""
    ledger = Ledger(store) if store else "memory:"
    return CharacterSession(provider, polling=FixedInterval(10.0), ledger=ledger, **options)


async def next_state_of(session: CharacterSession, key: str = "mine") -> EntryState:
    """Return the state of a key's entry after its next transition."""
    return (await session.ledger.changed(await entry_of(session, key))).state


@pytest.mark.parametrize("seconds", RESPONSE_TIMES, ids=RESPONSE_TIMES.get)
async def test_concurrent_submits_of_one_key_send_once(seconds: float) -> None:
    """Concurrent submits of one key send one request and return the same task."""
    provider = FakeProvider(after=seconds)
    async with session_of(provider) as session:
        handles = await asyncio.gather(*(session.submit(**REQUEST) for _ in range(50)))
        assert {handle.task_id for handle in handles} == {"t1"}
        assert {(await handle).id for handle in handles} == {"ch_1"}
    assert len(provider.posts) == 1


@pytest.mark.parametrize("synchronous", [False, True])
async def test_finished_key_sends_nothing(store: FaultyStore, *, synchronous: bool) -> None:
    """A finished key returns its character without a request, also in a later session."""
    provider = FakeProvider(synchronous=synchronous)
    for _ in range(2):
        async with session_of(provider, store) as session:
            characters = [await session.create(**REQUEST) for _ in range(2)]
            assert [(character.id, character.provider) for character in characters] == [("ch_1", "fake")] * 2
    assert len(provider.posts) == 1


async def test_rejects_another_request_under_one_key() -> None:
    """A different request under a known key sends nothing, and the error shows both requests."""
    provider = FakeProvider()
    async with session_of(provider) as session:
        await session.submit(**REQUEST)
        with pytest.raises(KeyConflictError) as caught:
            await session.submit(**REQUEST | {"prompt": "a cat"})
    assert (caught.value.first["prompt"], caught.value.second["prompt"]) == ("a dog", "a cat")
    assert len(provider.posts) == 1


async def test_unknown_outcome_is_never_sent_again() -> None:
    """A key with an unknown outcome raises its reason at every submit, and nothing is sent."""
    provider = FakeProvider(fault=NoAnswerError("reset by peer"))
    async with session_of(provider) as session:
        for _ in range(3):
            with pytest.raises(SubmissionUnknownError, match=r"key mine\): reset by peer"):
                await session.submit(**REQUEST)
        assert await state_of(session) is EntryState.UNKNOWN
    assert len(provider.posts) == 1


async def test_rejected_key_is_sent_again() -> None:
    """A rejected request cost nothing, so a later submit sends it again."""
    provider = FakeProvider(fault=RequestRejectedError("a real person"))
    async with session_of(provider) as session:
        with pytest.raises(RequestRejectedError):
            await session.submit(**REQUEST)
        assert await state_of(session) is EntryState.REJECTED
        provider.fault = None
        assert (await session.submit(**REQUEST)).task_id == "t2"
    assert len(provider.posts) == 2


@pytest.mark.parametrize("seconds", RESPONSE_TIMES, ids=RESPONSE_TIMES.get)
async def test_rejection_is_raised_for_every_waiter(seconds: float) -> None:
    """Submits that wait for another submit of their key receive its rejection and send nothing."""
    rejection = RequestRejectedError("a real person", hint="Take a cat.", status=200, code=422, provider="fake")
    provider = FakeProvider(fault=rejection, after=seconds)
    async with session_of(provider) as session:
        results = await asyncio.gather(*(session.submit(**REQUEST) for _ in range(3)), return_exceptions=True)
    errors = [error for error in results if isinstance(error, RequestRejectedError)]
    facts = [(str(error), error.status, error.code, error.provider) for error in errors]
    assert facts == [("a real person. Take a cat.", 200, 422, "fake")] * 3
    assert len(provider.posts) == 1


async def test_rejection_reaches_a_submit_waiting_for_a_slot() -> None:
    """A submit that waits for its slot sends nothing if its key is rejected first."""
    provider = FakeProvider(fault=RateLimitedError("busy"))
    async with session_of(provider) as session:
        first, waiting = (asyncio.create_task(session.submit(**REQUEST)) for _ in range(2))
        with pytest.raises(RateLimitedError):
            await first
        await asyncio.sleep(1.5)  # into the ten seconds that the other submit waits for its slot
        provider.before, provider.after, provider.fault = 1.0, 1.0, RequestRejectedError("a real person")
        for submit in (session.submit(**REQUEST), waiting):
            with pytest.raises(RequestRejectedError, match="a real person"):
                await submit
    assert len(provider.posts) == 2


async def test_harmless_transient_error_leaves_the_key_pending() -> None:
    """After "too many requests" the entry is pending again, and a later submit sends it."""
    provider = FakeProvider(fault=RateLimitedError("busy", retry_after=7.0))
    async with session_of(provider) as session:
        with pytest.raises(RateLimitedError):
            await session.submit(**REQUEST)
        entry = await entry_of(session)
        assert (entry.state, entry.owner, entry.error["type"]) == (EntryState.PENDING, None, "RateLimitedError")
        provider.fault = None
        assert (await session.submit(**REQUEST)).task_id == "t2"


async def test_harmless_permanent_error_rejects_the_key() -> None:
    """A harmless error that is not transient is recorded as rejected, not as pending."""
    async with session_of(FakeProvider(fault=AuthenticationError("bad key", harmless=True))) as session:
        with pytest.raises(AuthenticationError):
            await session.submit(**REQUEST)
        assert await state_of(session) is EntryState.REJECTED


async def test_entry_is_sending_only_during_the_request() -> None:
    """An entry is pending until the paid request starts, even while that waits for a slot."""
    async with session_of(FakeProvider()) as session:
        submitting = asyncio.create_task(session.submit(**REQUEST))
        await asyncio.sleep(9)
        assert await state_of(session) is EntryState.PENDING
        assert await next_state_of(session) is EntryState.SENDING
        assert asyncio.get_running_loop().time() == 10
        assert await next_state_of(session) is EntryState.RUNNING
        assert (await submitting).task_id == "t1"


@pytest.mark.parametrize(
    ("early", "state"),
    [
        (NoAnswerError("reset"), EntryState.PENDING),
        (RateLimitedError("busy"), EntryState.PENDING),
        (RequestRejectedError("no such clip"), EntryState.REJECTED),
        (KeyError("x"), EntryState.PENDING),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_error_before_the_paid_request_is_not_unknown(early: Exception, state: EntryState) -> None:
    """An error before the paid request, such as in an upload, never makes an entry unknown."""
    provider = FakeProvider(early=early)
    async with session_of(provider) as session:
        for _ in range(2):
            with pytest.raises(type(early)) as caught:
                await session.submit(**REQUEST)
            assert caught.value is early
            assert await state_of(session) is state
    assert provider.posts == []


@pytest.mark.parametrize("timeout", [0, 60])
async def test_waiting_for_another_sender_times_out(store: FaultyStore, timeout: int) -> None:
    """A submit waits at most `timeout` seconds for another sender, and sends nothing."""
    provider, loop = FakeProvider(), asyncio.get_running_loop()
    async with session_of(provider, store, timeout=timeout) as session:
        await session.register(**REQUEST)
        await store.elsewhere("mine", EntryState.SENDING)
        with pytest.raises(SubmissionUnknownError, match=f"another process has been sending it for {timeout} s"):
            await session.submit(**REQUEST)
        assert loop.time() == timeout
        assert await state_of(session) is EntryState.SENDING
    assert provider.posts == []


async def test_returns_the_task_of_another_sender(store: FaultyStore) -> None:
    """A submit that waits for another process's request returns the task of that request."""
    provider = FakeProvider()
    async with session_of(provider, store) as session:
        await session.register(**REQUEST)
        await store.elsewhere("mine", EntryState.SENDING)
        submitting = asyncio.create_task(session.submit(**REQUEST))
        await asyncio.sleep(5)
        await store.elsewhere("mine", EntryState.RUNNING, task_id="t9")
        assert (await submitting).task_id == "t9"
    assert provider.posts == []


async def test_dead_sender_leaves_an_unknown_outcome(store: FaultyStore) -> None:
    """A submit that waits for a sender which dies raises an unknown outcome and sends nothing."""
    provider = FakeProvider()
    async with session_of(provider, store) as session:
        await session.register(**REQUEST)
        await store.elsewhere("mine", EntryState.SENDING)
        submitting = asyncio.create_task(session.submit(**REQUEST))
        await asyncio.sleep(5)
        store.others_live = False
        with pytest.raises(SubmissionUnknownError, match="the process that sent it ended"):
            await submitting
        assert await state_of(session) is EntryState.UNKNOWN
    assert provider.posts == []


@pytest.mark.parametrize(
    ("fault", "end", "posts"),
    [
        (RequestRejectedError("a real person"), EntryState.REJECTED, 2),
        (AuthenticationError("bad key", harmless=True), EntryState.REJECTED, 2),
        (RateLimitedError("busy"), EntryState.PENDING, 2),
        (MissingCharacterError("none", provider="fake", task_id=None), EntryState.FAILED, 1),
        (NoAnswerError("reset"), EntryState.UNKNOWN, 1),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_late_response_resolves_an_unknown_outcome(
    store: FaultyStore, fault: Exception, end: EntryState, posts: int
) -> None:
    """A sender that was presumed dead records its response, and later submits act on it."""
    provider = FakeProvider(fault=fault)
    async with session_of(provider, store) as session:
        submitting = asyncio.create_task(session.submit(**REQUEST))
        await asyncio.sleep(15)
        await store.elsewhere("mine", EntryState.UNKNOWN)
        with pytest.raises(SubmissionUnknownError):
            await session.submit(**REQUEST)
        with pytest.raises(SubmissionUnknownError if end is EntryState.UNKNOWN else type(fault)):
            await submitting
        assert await state_of(session) is end
        provider.fault = None
        [result] = await asyncio.gather(session.submit(**REQUEST), return_exceptions=True)
        assert (isinstance(result, SubmissionUnknownError), len(provider.posts)) == (end is EntryState.UNKNOWN, posts)


@pytest.mark.parametrize("harmless", [False, True])
@pytest.mark.parametrize("state", [EntryState.SENDING, EntryState.UNKNOWN])
async def test_late_response_does_not_change_another_request(
    store: FaultyStore, state: EntryState, *, harmless: bool
) -> None:
    """A late response does not move an entry under which another request has been sent since."""
    async with session_of(FakeProvider(fault=AuthenticationError("bad key", harmless=harmless)), store) as session:
        submitting = asyncio.create_task(session.submit(**REQUEST))
        await asyncio.sleep(15)
        await store.elsewhere("mine", EntryState.UNKNOWN)
        await session.resolve("mine", never_sent=True)
        await store.elsewhere("mine", EntryState.SENDING, token_digest="of another")
        if state is EntryState.UNKNOWN:
            await store.elsewhere("mine", EntryState.UNKNOWN)
        before = await session.entry("mine")
        with pytest.raises(AuthenticationError):
            await submitting
        assert await session.entry("mine") == before


async def test_does_not_retry_after_another_process_sent(store: FaultyStore) -> None:
    """A sender that was presumed dead does not retry a key that another process has sent since."""

    class RetryingProvider(FakeProvider):
        async def submit(self, request: Request, **options: Any) -> TaskSnapshot:
            try:
                return await super().submit(request, **options)
            except RateLimitedError:
                return await super().submit(request, **options)

    provider = RetryingProvider(fault=RateLimitedError("busy"))
    async with session_of(provider, store) as session:
        submitting = asyncio.create_task(session.submit(**REQUEST))
        await asyncio.sleep(15)
        await store.elsewhere("mine", EntryState.UNKNOWN)
        await session.resolve("mine", never_sent=True)
        await store.elsewhere("mine", EntryState.SENDING, token_digest="of another")
        await asyncio.sleep(60)
        await store.elsewhere("mine", EntryState.RUNNING, task_id="t9")
        assert (await submitting).task_id == "t9"
    assert len(provider.posts) == 1


async def test_failed_owner_check_sends_nothing(store: FaultyStore) -> None:
    """If the owner of a key cannot be checked, the error says that nothing was sent."""
    provider = FakeProvider()
    async with session_of(provider, store) as session:
        await session.register(**REQUEST)
        await store.elsewhere("mine", EntryState.SENDING)
        store.others_live = None
        with pytest.raises(LedgerError, match=r"The disk fails\. Nothing was sent") as caught:
            await session.submit(**REQUEST)
        assert (caught.value.key, await state_of(session)) == ("mine", EntryState.SENDING)
    assert provider.posts == []


async def test_nothing_is_sent_without_an_entry(store: FaultyStore) -> None:
    """If the ledger cannot insert a new key, the error says that nothing was sent."""
    provider = FakeProvider()
    store.full.add(EntryState.PENDING)
    async with session_of(provider, store) as session:
        with pytest.raises(LedgerError, match=r"The disk is full\. Nothing was sent.* Empty it\.") as caught:
            await session.submit(**REQUEST)
    error = caught.value
    assert (error.key, error.provider, error.task_id, provider.posts) == ("mine", "fake", None, [])


@pytest.mark.parametrize("written", [False, True])
async def test_nothing_is_sent_before_sending_is_recorded(store: FaultyStore, *, written: bool) -> None:
    """If `sending` is not written and confirmed, nothing is sent and the entry is reverted."""
    provider = FakeProvider()
    (store.mute if written else store.full).add(EntryState.SENDING)
    async with session_of(provider, store) as session:
        with pytest.raises(LedgerError, match=r"The disk is full\. Nothing was sent") as caught:
            await session.submit(**REQUEST)
        assert (caught.value.key, caught.value.task_id, provider.posts) == ("mine", None, [])
        if written:
            assert await next_state_of(session) is EntryState.PENDING
        store.full, store.mute = set(), set()
        assert (await session.submit(**REQUEST)).task_id == "t1"


async def test_ledger_bug_sends_nothing(store: FaultyStore) -> None:
    """An error other than `LedgerError` is raised unchanged, and nothing is sent."""
    provider = FakeProvider()
    store.full, store.bug = {EntryState.SENDING}, ZeroDivisionError()
    async with session_of(provider, store) as session:
        with pytest.raises(ZeroDivisionError):
            await session.submit(**REQUEST)
        assert await state_of(session) is EntryState.PENDING
    assert provider.posts == []


async def test_unrecorded_task_id_is_raised_and_logged(store: FaultyStore, caplog: pytest.LogCaptureFixture) -> None:
    """If the ledger fails after the request, the task id is raised, logged and recorded later."""
    provider = FakeProvider()
    store.full.add(EntryState.RUNNING)
    async with session_of(provider, store) as session:
        with pytest.raises(LedgerError, match=r"fake made task t1 \(key mine\).*disk is full.*Empty it\.") as caught:
            await session.submit(**REQUEST)
        assert (caught.value.key, caught.value.task_id) == ("mine", "t1")
        assert caught.value.snapshot == provider.snapshot("t1", "waiting")
        (line,) = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert (event_of(line), line.__dict__["key"], line.__dict__["task_id"]) == ("ledger.write_failed", "mine", "t1")
        store.full.clear()
        assert await next_state_of(session) is EntryState.RUNNING
        assert (await session.submit(**REQUEST)).task_id == "t1"
    assert len(provider.posts) == 1


@pytest.mark.parametrize(
    ("fault", "raised", "state"),
    [
        (NoAnswerError("reset"), SubmissionUnknownError, EntryState.UNKNOWN),
        (RequestRejectedError("no"), RequestRejectedError, EntryState.REJECTED),
        (RateLimitedError("busy"), LedgerError, EntryState.PENDING),
        (MissingCharacterError("none", provider="fake", task_id=None), MissingCharacterError, EntryState.FAILED),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_unrecorded_response_is_raised_and_recorded_later(
    store: FaultyStore, fault: Exception, raised: type[Exception], state: EntryState
) -> None:
    """A response that the ledger cannot record is raised all the same, and recorded later."""
    provider = FakeProvider(fault=fault)
    async with session_of(provider, store) as session:
        submitting = asyncio.create_task(session.submit(**REQUEST))
        await asyncio.sleep(15)
        store.full.add(state)
        with pytest.raises(raised):
            await submitting
        assert await state_of(session) is EntryState.SENDING
        store.full.clear()
        assert await next_state_of(session) is state
    assert len(provider.posts) == 1


async def test_bug_after_sending_leaves_an_unknown_outcome() -> None:
    """If a provider raises an unexpected error after sending, its key is never sent again."""
    provider = FakeProvider(fault=KeyError("x"))
    async with session_of(provider) as session:
        with pytest.raises(KeyError):
            await session.submit(**REQUEST)
        with pytest.raises(SubmissionUnknownError, match="KeyError before an answer was read"):
            await session.submit(**REQUEST)
    assert len(provider.posts) == 1


async def test_synchronous_success_without_a_character_fails() -> None:
    """A success without a character is failed; a later `create` raises it and sends nothing."""
    fault = MissingCharacterError("none", provider="fake", task_id=None, payload={"id": ""})
    provider = FakeProvider(fault=fault, synchronous=True)
    async with session_of(provider) as session:
        for _ in range(2):
            with pytest.raises(MissingCharacterError) as caught:
                await session.create(**REQUEST)
            assert caught.value.payload == {"id": ""}
        assert await state_of(session) is EntryState.FAILED
    assert len(provider.posts) == 1


async def test_closing_session_sends_nothing_new(store: FaultyStore) -> None:
    """A request is not sent while the session closes, even if closing waits for a response."""
    provider = FakeProvider()
    session = await session_of(provider, store).open()
    first = asyncio.create_task(session.submit(**REQUEST))
    await asyncio.sleep(15)
    store.slow = 2.0
    late = asyncio.create_task(session.submit(**REQUEST | {"key": "late"}))
    await asyncio.sleep(1)
    await session.aclose()
    with pytest.raises(SessionClosedError, match="Nothing was sent"):
        await late
    assert (await first).task_id == "t1"
    assert len(provider.posts) == 1


async def test_saves_the_picture_of_a_new_character_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture is saved when a character is made, and not again for a finished key."""
    saved: list[str] = []

    async def save(_: object, character: Character) -> None:
        saved.append(character.provider)

    monkeypatch.setattr("sora_chars.session.pictures.Pictures.save", save)
    for provider in (FakeProvider(synchronous=True, name="synchronous"), FakeProvider(name="polled")):
        async with session_of(provider, pictures=tmp_path) as session:
            await session.create(**REQUEST)
            await session.create(**REQUEST)
    assert saved == ["synchronous", "polled"]
