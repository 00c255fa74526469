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

if TYPE_CHECKING:
    from pathlib import Path

    from sora_chars.models import Character, Request, TaskSnapshot

pytestmark = pytest.mark.looptime

SENT_FOR = {0.5: "soon", 10.0: "after some looks whether the sender lives"}  # seconds

WISH: dict[str, Any] = {"from_task": "origin", "clip": "1,3", "prompt": "a dog", "key": "mine"}


@pytest.fixture
def store() -> FaultyStore:
    """Return a store that works so far."""
    return FaultyStore()


def session_of(provider: FakeProvider, store: FaultyStore | None = None, **options: Any) -> CharacterSession:
    """A session that looks every 10 s."""
    ledger = Ledger(store) if store else "memory:"
    return CharacterSession(provider, polling=FixedInterval(10.0), ledger=ledger, **options)


async def moved_on(session: CharacterSession, key: str = "mine") -> EntryState:
    """What the ledger says of a key after its next move."""
    return (await session.ledger.changed(await entry_of(session, key))).state


@pytest.mark.parametrize("seconds", SENT_FOR, ids=SENT_FOR.get)
async def test_one_key_asked_many_times_at_once_is_one_request(seconds: float) -> None:
    """All who ask for a key in the same instant get the one task that it becomes."""
    provider = FakeProvider(after=seconds)
    async with session_of(provider) as session:
        handles = await asyncio.gather(*(session.submit(**WISH) for _ in range(50)))
        assert {handle.task_id for handle in handles} == {"t1"}
        assert {(await handle).id for handle in handles} == {"ch_1"}
    assert len(provider.posts) == 1


@pytest.mark.parametrize("synchronous", [False, True])
async def test_a_finished_key_answers_without_a_request(store: FaultyStore, *, synchronous: bool) -> None:
    """A key that has ended gives its character again, in a later session too."""
    provider = FakeProvider(synchronous=synchronous)
    for _ in range(2):
        async with session_of(provider, store) as session:
            made = [await session.create(**WISH) for _ in range(2)]
            assert [(one.id, one.provider) for one in made] == [("ch_1", "fake")] * 2
    assert len(provider.posts) == 1


async def test_one_key_names_one_wish() -> None:
    """Another request under a key that was asked before sends nothing, and shows both."""
    provider = FakeProvider()
    async with session_of(provider) as session:
        await session.submit(**WISH)
        with pytest.raises(KeyConflictError) as caught:
            await session.submit(**WISH | {"prompt": "a cat"})
    assert (caught.value.first["prompt"], caught.value.second["prompt"]) == ("a dog", "a cat")
    assert len(provider.posts) == 1


async def test_an_unknown_outcome_is_never_sent_again() -> None:
    """Asked again, the key says that nobody knows, and why; nothing is sent."""
    provider = FakeProvider(fault=NoAnswerError("reset by peer"))
    async with session_of(provider) as session:
        for _ in range(3):
            with pytest.raises(SubmissionUnknownError, match=r"key mine\): reset by peer"):
                await session.submit(**WISH)
        assert await state_of(session) is EntryState.UNKNOWN
    assert len(provider.posts) == 1


async def test_a_refused_key_is_sent_when_asked_again() -> None:
    """A refusal cost nothing, and what was wrong may have been put right."""
    provider = FakeProvider(fault=RequestRejectedError("a real person"))
    async with session_of(provider) as session:
        with pytest.raises(RequestRejectedError):
            await session.submit(**WISH)
        assert await state_of(session) is EntryState.REJECTED
        provider.fault = None
        assert (await session.submit(**WISH)).task_id == "t2"
    assert len(provider.posts) == 2


@pytest.mark.parametrize("seconds", SENT_FOR, ids=SENT_FOR.get)
async def test_a_refusal_is_for_all_who_waited(seconds: float) -> None:
    """Whoever waited for another's try gets the refusal that it met, with its facts, and sends nothing."""
    refused = RequestRejectedError("a real person", hint="Take a cat.", status=200, code=422, provider="fake")
    provider = FakeProvider(fault=refused, after=seconds)
    async with session_of(provider) as session:
        tries = await asyncio.gather(*(session.submit(**WISH) for _ in range(3)), return_exceptions=True)
    errors = [one for one in tries if isinstance(one, RequestRejectedError)]
    facts = [(str(one), one.status, one.code, one.provider) for one in errors]
    assert facts == [("a real person. Take a cat.", 200, 422, "fake")] * 3
    assert len(provider.posts) == 1


async def test_a_refusal_that_comes_while_one_who_waited_stands_in_line_is_for_it_too() -> None:
    """Of a try that did nothing, one who waited goes on to try itself; if a third is refused first, nothing is sent."""
    provider = FakeProvider(fault=RateLimitedError("busy"))
    async with session_of(provider) as session:
        first, waiting = (asyncio.create_task(session.submit(**WISH)) for _ in range(2))
        with pytest.raises(RateLimitedError):
            await first
        await asyncio.sleep(1.5)  # of the ten seconds that the other is in line by now
        provider.before, provider.after, provider.fault = 1.0, 1.0, RequestRejectedError("a real person")
        for one in (session.submit(**WISH), waiting):
            with pytest.raises(RequestRejectedError, match="a real person"):
                await one
    assert len(provider.posts) == 2


async def test_a_request_that_did_nothing_may_be_sent_again() -> None:
    """After "too many requests" the key is as if it had never been sent."""
    provider = FakeProvider(fault=RateLimitedError("busy", retry_after=7.0))
    async with session_of(provider) as session:
        with pytest.raises(RateLimitedError):
            await session.submit(**WISH)
        entry = await entry_of(session)
        assert (entry.state, entry.owner, entry.error["type"]) == (EntryState.PENDING, None, "RateLimitedError")
        provider.fault = None
        assert (await session.submit(**WISH)).task_id == "t2"


async def test_a_refusal_that_did_nothing_is_one_all_the_same() -> None:
    """A harmless error that no later try mends ends as refused, not as asked."""
    async with session_of(FakeProvider(fault=AuthenticationError("bad key", harmless=True))) as session:
        with pytest.raises(AuthenticationError):
            await session.submit(**WISH)
        assert await state_of(session) is EntryState.REJECTED


async def test_the_entry_is_sending_only_while_it_is() -> None:
    """Waiting for a slot is still `asked`; `sending` begins with the paid request."""
    async with session_of(FakeProvider()) as session:
        submitting = asyncio.create_task(session.submit(**WISH))
        await asyncio.sleep(9)
        assert await state_of(session) is EntryState.PENDING
        assert await moved_on(session) is EntryState.SENDING
        assert asyncio.get_running_loop().time() == 10
        assert await moved_on(session) is EntryState.RUNNING
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
async def test_a_fault_before_the_request_leaves_no_doubt(early: Exception, state: EntryState) -> None:
    """What fails before the paid request, such as an upload, never makes an entry `unknown`."""
    provider = FakeProvider(early=early)
    async with session_of(provider) as session:
        for _ in range(2):
            with pytest.raises(type(early)) as caught:
                await session.submit(**WISH)
            assert caught.value is early
            assert await state_of(session) is state
    assert provider.posts == []


@pytest.mark.parametrize("wait", [0, 60])
async def test_a_sender_that_never_moves_on_is_not_waited_for_without_end(store: FaultyStore, wait: int) -> None:
    """After `wait` seconds of another process's `sending` the caller is told so, and nothing is sent."""
    provider, loop = FakeProvider(), asyncio.get_running_loop()
    async with session_of(provider, store, timeout=wait) as session:
        await session.register(**WISH)
        await store.elsewhere("mine", EntryState.SENDING)
        with pytest.raises(SubmissionUnknownError, match=f"another process has been sending it for {wait} s"):
            await session.submit(**WISH)
        assert loop.time() == wait
        assert await state_of(session) is EntryState.SENDING
    assert provider.posts == []


async def test_another_process_may_have_sent_it(store: FaultyStore) -> None:
    """Whoever waits for another process's request gets its task."""
    provider = FakeProvider()
    async with session_of(provider, store) as session:
        await session.register(**WISH)
        await store.elsewhere("mine", EntryState.SENDING)
        submitting = asyncio.create_task(session.submit(**WISH))
        await asyncio.sleep(5)
        await store.elsewhere("mine", EntryState.RUNNING, task_id="t9")
        assert (await submitting).task_id == "t9"
    assert provider.posts == []


async def test_a_sender_that_died_leaves_doubt(store: FaultyStore) -> None:
    """Whoever waits for a process that ends meanwhile is told that nobody knows, and nothing is sent."""
    provider = FakeProvider()
    async with session_of(provider, store) as session:
        await session.register(**WISH)
        await store.elsewhere("mine", EntryState.SENDING)
        submitting = asyncio.create_task(session.submit(**WISH))
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
async def test_a_late_answer_ends_the_doubt(store: FaultyStore, fault: Exception, end: EntryState, posts: int) -> None:
    """A sender that others took for dead records what it was answered, and is asked again as after any such answer."""
    provider = FakeProvider(fault=fault)
    async with session_of(provider, store) as session:
        submitting = asyncio.create_task(session.submit(**WISH))
        await asyncio.sleep(15)
        await store.elsewhere("mine", EntryState.UNKNOWN)
        with pytest.raises(SubmissionUnknownError):
            await session.submit(**WISH)
        with pytest.raises(SubmissionUnknownError if end is EntryState.UNKNOWN else type(fault)):
            await submitting
        assert await state_of(session) is end
        provider.fault = None
        again = await asyncio.gather(session.submit(**WISH), return_exceptions=True)
        assert (isinstance(again[0], SubmissionUnknownError), len(provider.posts)) == (end is EntryState.UNKNOWN, posts)


@pytest.mark.parametrize("harmless", [False, True])
@pytest.mark.parametrize("state", [EntryState.SENDING, EntryState.UNKNOWN])
async def test_a_late_answer_says_nothing_of_anothers_request(
    store: FaultyStore, state: EntryState, *, harmless: bool
) -> None:
    """What was sent under the same key since then may have been paid for, whatever an earlier try was answered."""
    async with session_of(FakeProvider(fault=AuthenticationError("bad key", harmless=harmless)), store) as session:
        submitting = asyncio.create_task(session.submit(**WISH))
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


async def test_a_try_again_is_none_once_others_send(store: FaultyStore) -> None:
    """A sender that others took for dead, and whose key was sent anew meanwhile, leaves it to them."""

    class Patient(FakeProvider):
        async def submit(self, request: Request, **options: Any) -> TaskSnapshot:
            try:
                return await super().submit(request, **options)
            except RateLimitedError:
                return await super().submit(request, **options)

    provider = Patient(fault=RateLimitedError("busy"))
    async with session_of(provider, store) as session:
        submitting = asyncio.create_task(session.submit(**WISH))
        await asyncio.sleep(15)
        await store.elsewhere("mine", EntryState.UNKNOWN)
        await session.resolve("mine", never_sent=True)
        await store.elsewhere("mine", EntryState.SENDING, token_digest="of another")
        await asyncio.sleep(60)
        await store.elsewhere("mine", EntryState.RUNNING, task_id="t9")
        assert (await submitting).task_id == "t9"
    assert len(provider.posts) == 1


async def test_a_sender_that_cannot_be_looked_for_is_left_alone(store: FaultyStore) -> None:
    """When the ledger cannot say whether another process still sends it, the error says that this one sent nothing."""
    provider = FakeProvider()
    async with session_of(provider, store) as session:
        await session.register(**WISH)
        await store.elsewhere("mine", EntryState.SENDING)
        store.others_live = None
        with pytest.raises(LedgerError, match=r"The disk fails\. Nothing was sent") as caught:
            await session.submit(**WISH)
        assert (caught.value.key, await state_of(session)) == ("mine", EntryState.SENDING)
    assert provider.posts == []


async def test_nothing_is_sent_that_cannot_be_recorded(store: FaultyStore) -> None:
    """A ledger that takes no new key ends the try, and the error says that nothing was sent."""
    provider = FakeProvider()
    store.full.add(EntryState.PENDING)
    async with session_of(provider, store) as session:
        with pytest.raises(LedgerError, match=r"The disk is full\. Nothing was sent.* Empty it\.") as caught:
            await session.submit(**WISH)
    assert (caught.value.key, caught.value.task_id, provider.posts) == ("mine", None, [])


@pytest.mark.parametrize("kept", [False, True])
async def test_nothing_is_sent_before_sending_is_on_record(store: FaultyStore, *, kept: bool) -> None:
    """A `sending` that failed, or was kept and not confirmed, sends nothing and is taken back."""
    provider = FakeProvider()
    (store.mute if kept else store.full).add(EntryState.SENDING)
    async with session_of(provider, store) as session:
        with pytest.raises(LedgerError, match=r"The disk is full\. Nothing was sent") as caught:
            await session.submit(**WISH)
        assert (caught.value.key, caught.value.task_id, provider.posts) == ("mine", None, [])
        if kept:
            assert await moved_on(session) is EntryState.PENDING
        store.full, store.mute = set(), set()
        assert (await session.submit(**WISH)).task_id == "t1"


async def test_a_bug_of_the_ledger_sends_nothing(store: FaultyStore) -> None:
    """What is no `LedgerError` comes as it is, and nothing was sent either."""
    provider = FakeProvider()
    store.full, store.bug = {EntryState.SENDING}, ZeroDivisionError()
    async with session_of(provider, store) as session:
        with pytest.raises(ZeroDivisionError):
            await session.submit(**WISH)
        assert await state_of(session) is EntryState.PENDING
    assert provider.posts == []


async def test_an_id_that_was_paid_for_is_told_whatever_happens(
    store: FaultyStore, caplog: pytest.LogCaptureFixture
) -> None:
    """When the ledger fails after the request, the id is in the error and the log, and on record later."""
    provider = FakeProvider()
    store.full.add(EntryState.RUNNING)
    async with session_of(provider, store) as session:
        with pytest.raises(LedgerError, match=r"fake made task t1 \(key mine\).*disk is full.*Empty it\.") as caught:
            await session.submit(**WISH)
        assert (caught.value.key, caught.value.task_id) == ("mine", "t1")
        assert caught.value.snapshot == provider.snapshot("t1", "waiting")
        (line,) = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert (line.message, line.__dict__["key"], line.__dict__["task_id"]) == ("ledger.write_failed", "mine", "t1")
        store.full.clear()
        assert await moved_on(session) is EntryState.RUNNING
        assert (await session.submit(**WISH)).task_id == "t1"
    assert len(provider.posts) == 1


@pytest.mark.parametrize(
    ("fault", "told", "to"),
    [
        (NoAnswerError("reset"), SubmissionUnknownError, EntryState.UNKNOWN),
        (RequestRejectedError("no"), RequestRejectedError, EntryState.REJECTED),
        (RateLimitedError("busy"), LedgerError, EntryState.PENDING),
        (MissingCharacterError("none", provider="fake", task_id=None), MissingCharacterError, EntryState.FAILED),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_an_answer_is_told_and_written_late(
    store: FaultyStore, fault: Exception, told: type[Exception], to: EntryState
) -> None:
    """When the ledger cannot take an answer, its caller still hears it, and it is written as soon as it can be."""
    provider = FakeProvider(fault=fault)
    async with session_of(provider, store) as session:
        submitting = asyncio.create_task(session.submit(**WISH))
        await asyncio.sleep(15)
        store.full.add(to)
        with pytest.raises(told):
            await submitting
        assert await state_of(session) is EntryState.SENDING
        store.full.clear()
        assert await moved_on(session) is to
    assert len(provider.posts) == 1


async def test_a_bug_after_sending_leaves_doubt() -> None:
    """A provider that breaks once it has sent may have made the task: the key is never sent again."""
    provider = FakeProvider(fault=KeyError("x"))
    async with session_of(provider) as session:
        with pytest.raises(KeyError):
            await session.submit(**WISH)
        with pytest.raises(SubmissionUnknownError, match="KeyError before an answer was read"):
            await session.submit(**WISH)
    assert len(provider.posts) == 1


async def test_a_synchronous_success_without_a_character_has_failed() -> None:
    """It was paid for and gave nothing: the same key says so again, and sends nothing."""
    fault = MissingCharacterError("none", provider="fake", task_id=None, payload={"id": ""})
    provider = FakeProvider(fault=fault, synchronous=True)
    async with session_of(provider) as session:
        for _ in range(2):
            with pytest.raises(MissingCharacterError) as caught:
                await session.create(**WISH)
            assert caught.value.payload == {"id": ""}
        assert await state_of(session) is EntryState.FAILED
    assert len(provider.posts) == 1


async def test_a_session_that_closes_sends_nothing_new(store: FaultyStore) -> None:
    """A request that reaches a closing session is not sent, though that still waits for an earlier one's answer."""
    provider = FakeProvider()
    session = await session_of(provider, store).open()
    first = asyncio.create_task(session.submit(**WISH))
    await asyncio.sleep(15)
    store.slow = 2.0
    late = asyncio.create_task(session.submit(**WISH | {"key": "late"}))
    await asyncio.sleep(1)
    await session.aclose()
    with pytest.raises(SessionClosedError, match="Nothing was sent"):
        await late
    assert (await first).task_id == "t1"
    assert len(provider.posts) == 1


async def test_a_picture_of_a_new_character_is_saved_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture is saved where a character is made, synchronously or not, and not again for a key that has ended."""
    saved: list[str] = []

    async def save(_: object, character: Character) -> None:
        saved.append(character.provider)

    monkeypatch.setattr("sora_chars.session.pictures.Pictures.save", save)
    for provider in (FakeProvider(synchronous=True, name="at once"), FakeProvider(name="later")):
        async with session_of(provider, pictures=tmp_path) as session:
            await session.create(**WISH)
            await session.create(**WISH)
    assert saved == ["at once", "later"]
