from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from sora_chars.callbacks.receiver import CallbackReceiver
from sora_chars.errors import (
    ConfigurationError,
    InvalidRequestError,
    LedgerError,
    MissingCharacterError,
    NoAnswerError,
    SubmissionUnknownError,
    TaskFailedError,
    TaskNotFoundError,
)
from sora_chars.ledger import EntryState, Ledger
from sora_chars.polling.strategies import FixedInterval
from sora_chars.session.session import CharacterSession
from tests.support.fake_providers import FakeProvider, FaultyStore, entry_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from sora_chars.ledger import Entry

pytestmark = pytest.mark.looptime

WISH: dict[str, Any] = {"from_task": "origin", "clip": "1,3", "prompt": "a dog", "key": "mine"}


@pytest.fixture
def provider() -> FakeProvider:
    """Return the provider, which loses its answers, at once: looptime leaves the time of fixtures as it is."""
    return FakeProvider(callback_url="https://a.invalid/hooks", before=0, after=0, fault=NoAnswerError("reset"))


@pytest.fixture
def store() -> FaultyStore:
    """Return a store that works so far."""
    return FaultyStore()


@pytest.fixture
async def session(provider: FakeProvider, store: FaultyStore) -> AsyncGenerator[CharacterSession]:
    """Return a session that looks every 10 s."""
    async with CharacterSession(provider, polling=FixedInterval(10.0), ledger=Ledger(store)) as session:
        yield session


@pytest.fixture
async def lost(session: CharacterSession) -> Entry:
    """Return an entry whose answer was lost."""
    with pytest.raises(SubmissionUnknownError):
        await session.submit(**WISH)
    return await entry_of(session)


async def recovered(session: CharacterSession) -> list[str]:
    """The ids of the tasks that recovery finds."""
    return [handle.task_id async for handle in session.recover()]


async def call_back(session: CharacterSession, url: str, task_id: str = "t1") -> int:
    """Bring a callback and return the status that answers it."""

    async def body() -> AsyncGenerator[bytes]:
        yield json.dumps({"code": 200, "data": {"taskId": task_id, "state": "success"}}).encode()

    receiver = CallbackReceiver(session)
    return (await receiver.handle("POST", url, {"content-type": "application/json"}, body()))[0]


@pytest.mark.usefixtures("lost")
@pytest.mark.parametrize("raw", [None, "own", {"param": "no URL"}])
async def test_a_callback_repairs_a_lost_answer(session: CharacterSession, provider: FakeProvider, raw: Any) -> None:
    """The callback's token names the entry, which gets its task and its end; nothing is sent again."""
    own = {"param": json.dumps({"callBackUrl": provider.posts[0]})}
    provider.seen = provider.snapshot(raw=own if raw == "own" else raw)
    assert await call_back(session, provider.posts[0]) == 200
    assert (await session.create(**WISH)).id == "ch_1"
    entry = await entry_of(session)
    assert (entry.state, entry.task_id, len(provider.posts)) == (EntryState.SUCCEEDED, "t1", 1)


@pytest.mark.parametrize(
    "raw",
    [
        {"param": '{"callBackUrl": "https://a.invalid/hooks/of-another"}'},
        {"callBackUrl": "https://a.invalid/hooks/of-another"},
    ],
)
async def test_a_callback_that_names_anothers_task(
    session: CharacterSession, provider: FakeProvider, lost: Entry, raw: Any
) -> None:
    """A token does not open a task whose record says that it was asked for under another one."""
    provider.seen = provider.snapshot("t9", raw=raw)
    assert await call_back(session, provider.posts[0], "t9") == 401
    assert await entry_of(session) == lost


async def test_a_callback_that_cannot_be_confirmed(
    session: CharacterSession, provider: FakeProvider, lost: Entry
) -> None:
    """A task that the provider does not know (yet) changes nothing, and its sender is told to come again."""
    provider.seen = TaskNotFoundError("no such task")
    assert await call_back(session, provider.posts[0]) == 503
    assert await entry_of(session) == lost


async def test_a_callback_for_a_success_without_a_character(
    session: CharacterSession, provider: FakeProvider, lost: Entry
) -> None:
    """Its record is of no help in telling whose it is, so that doubt remains; the sender is told to come again."""
    provider.seen = MissingCharacterError("none", provider="fake", task_id="t1", payload={"id": ""})
    assert await call_back(session, provider.posts[0]) == 503
    assert await entry_of(session) == lost


@pytest.mark.usefixtures("lost")
async def test_a_callback_while_the_ledger_is_away(
    session: CharacterSession, provider: FakeProvider, store: FaultyStore
) -> None:
    """Its sender is told to come again, whether the ledger cannot be read or cannot be written."""
    store.away = True
    assert await call_back(session, provider.posts[0]) == 503
    store.away, store.full = False, {EntryState.RUNNING}
    assert await call_back(session, provider.posts[0]) == 503
    store.full = set()
    assert await call_back(session, provider.posts[0]) == 200


async def test_a_callback_for_what_was_given_up(session: CharacterSession, provider: FakeProvider, lost: Entry) -> None:
    """It is taken, and changes nothing."""
    given_up = await session.resolve(lost.key, give_up=True)
    assert await call_back(session, provider.posts[0]) == 200
    assert await entry_of(session) == given_up
    assert provider.polls == []


@pytest.mark.parametrize("fault", [None, NoAnswerError("reset")])
async def test_a_callback_may_be_faster_than_the_answer(
    session: CharacterSession, provider: FakeProvider, fault: Exception | None
) -> None:
    """A task that ended before createTask answered, or failed to, is done when `submit` returns."""
    provider.fault, provider.after = fault, 10.0
    submitting = asyncio.create_task(session.submit(**WISH))
    await asyncio.sleep(5)
    assert await call_back(session, provider.posts[0]) == 200
    assert (await session.ledger.changed(await entry_of(session))).state is EntryState.SUCCEEDED
    assert not submitting.done()
    handle = await submitting
    assert handle.done()
    assert ((await handle).id, len(provider.posts), len(provider.polls)) == ("ch_1", 1, 2)


async def test_a_person_names_the_task(session: CharacterSession, provider: FakeProvider, lost: Entry) -> None:
    """The task is on record, watched by nobody until recovery, and its end is found."""
    entry = await session.resolve(lost.key, task_id="t7")
    assert (entry.state, entry.task_id, entry.owner) == (EntryState.RUNNING, "t7", None)
    assert provider.polls == []
    (handle,) = [handle async for handle in session.recover()]
    assert (await handle).id == "ch_1"
    assert ((await entry_of(session)).state, len(provider.posts)) == (EntryState.SUCCEEDED, 1)


async def test_a_person_says_that_it_never_arrived(
    session: CharacterSession, provider: FakeProvider, lost: Entry
) -> None:
    """Then the key is sent when it is asked for again, and not before."""
    assert (await session.resolve(lost.key, never_sent=True)).state is EntryState.PENDING
    assert (await recovered(session), len(provider.posts)) == ([], 1)
    provider.fault = None
    assert (await session.submit(**WISH)).task_id == "t2"
    assert len(provider.posts) == 2


async def test_a_person_gives_it_up(session: CharacterSession, provider: FakeProvider, lost: Entry) -> None:
    """It has failed then, for whoever asks; a running one can be given up as well."""
    assert (await session.resolve(lost.key, give_up=True)).state is EntryState.FAILED
    with pytest.raises(TaskFailedError, match="a person gave it up"):
        await session.create(**WISH)
    provider.fault = None
    running = await session.submit(**WISH | {"key": "other"})
    entry = await session.resolve("other", give_up=True)
    assert (entry.state, entry.task_id) == (EntryState.FAILED, running.task_id)
    assert len(provider.posts) == 2


async def test_what_cannot_be_resolved(session: CharacterSession, lost: Entry, store: FaultyStore) -> None:
    """Each misuse is named, and moves nothing."""
    await session.register(**WISH | {"key": "asked"})
    for key in ("sending", "running"):
        await session.register(**WISH | {"key": key})
        await store.elsewhere(key, EntryState.SENDING)
    await store.elsewhere("running", EntryState.RUNNING, task_id="t7")
    before = [entry async for entry in session.ledger.entries()]
    cases: list[tuple[str, dict[str, Any], str]] = [
        (lost.key, {}, "exactly one"),
        (lost.key, {"task_id": "t1", "give_up": True}, "exactly one"),
        ("none", {"task_id": "t1"}, "no entry 'none'"),
        ("none", {"give_up": True}, "no entry 'none'"),
        ("asked", {"never_sent": True}, "is pending, so there is nothing to resolve"),
        ("running", {"never_sent": True}, "is running, so there is nothing to resolve"),
        ("sending", {"give_up": True}, "is being sent by a living process"),
        (lost.key, {"task_id": "t7"}, "t7 is the task of key running already"),
        (lost.key, {"task_id": ""}, "must be the id of a task"),
        (lost.key, {"task_id": "a\nb"}, "must be the id of a task"),
    ]
    for key, how, why in cases:
        with pytest.raises(InvalidRequestError, match=why):
            await session.resolve(key, **how)
    assert [entry async for entry in session.ledger.entries()] == before


async def test_a_provider_without_tasks_names_none() -> None:
    """An unknown outcome of a synchronous provider is never sent, or given up."""
    async with CharacterSession(FakeProvider(synchronous=True, fault=NoAnswerError("reset"))) as session:
        with pytest.raises(SubmissionUnknownError):
            await session.submit(**WISH)
        with pytest.raises(InvalidRequestError, match="fake has no tasks; use never_sent or give_up"):
            await session.resolve("mine", task_id="t1")
        assert (await session.resolve("mine", never_sent=True)).state is EntryState.PENDING


async def test_recovery(session: CharacterSession, store: FaultyStore, caplog: pytest.LogCaptureFixture) -> None:
    """Running tasks are watched again; what was being sent is in doubt; what belongs to others is left alone."""
    for provider, key in (("fake", "sending"), ("fake", "running"), ("gone", "foreign"), ("fake", "asked")):
        await session.ledger.register(key=key, provider=provider, kind="task", request={"model": "m"})
        if key != "asked":
            await store.elsewhere(key, EntryState.SENDING)
    await store.elsewhere("running", EntryState.RUNNING, task_id="t7")
    await store.elsewhere("foreign", EntryState.RUNNING, task_id="t8")
    assert await recovered(session) == ["t7"]
    assert (await entry_of(session, "sending")).state is EntryState.SENDING  # its process lives
    store.others_live = False
    assert await recovered(session) == ["t7"]
    states = {entry.key: str(entry.state) async for entry in session.ledger.entries()}
    assert states == {"sending": "unknown", "running": "running", "foreign": "running", "asked": "pending"}
    told = [(line.message, line.__dict__["key"]) for line in caplog.records if line.name == "sora_chars.session"]
    assert told == [
        ("recovery.no_provider", "foreign"),
        ("recovery.unknown", "sending"),
        ("recovery.no_provider", "foreign"),
    ]
    with pytest.raises(ConfigurationError, match="must be one of fake, got 'gone'"):
        await session.resolve("foreign", task_id="t8")


async def test_a_task_that_another_process_polls_is_taken_over(
    session: CharacterSession, provider: FakeProvider, store: FaultyStore
) -> None:
    """While its poller lives a task is followed with hardly a look; when that ends, it is polled here."""
    provider.seen = TaskNotFoundError("no such task")
    await session.register(**WISH)
    await store.elsewhere("mine", EntryState.SENDING)
    await store.elsewhere("mine", EntryState.RUNNING, task_id="t1")
    (handle,) = [handle async for handle in session.recover()]
    await asyncio.sleep(29)
    assert provider.polls == []
    store.others_live, provider.seen = False, None
    assert (await handle).id == "ch_1"
    assert asyncio.get_running_loop().time() < 30  # no look was due before
    assert (await entry_of(session)).state is EntryState.SUCCEEDED


async def test_a_success_without_a_character_is_on_record(session: CharacterSession, provider: FakeProvider) -> None:
    """The watcher's finding is kept, so that the same key says it again without a look."""
    provider.fault = None
    provider.seen = MissingCharacterError("none", provider="fake", task_id="t1", payload={"id": ""})
    for _ in range(2):
        with pytest.raises(MissingCharacterError) as caught:
            await session.create(**WISH)
        assert caught.value.payload == {"id": ""}
    assert ((await entry_of(session)).state, len(provider.polls), len(provider.posts)) == (EntryState.FAILED, 1, 1)


async def test_a_ledger_that_is_open_already_is_left_open(store: FaultyStore) -> None:
    """Sessions may share a ledger, and its keys, at once; who opened it closes it."""
    provider = FakeProvider()
    async with Ledger(store) as ledger:
        async with CharacterSession(provider, ledger=ledger) as one, CharacterSession(provider, ledger=ledger) as two:
            made = await asyncio.gather(one.create(**WISH), two.create(**WISH))
        assert [character.id for character in made] == ["ch_1"] * 2
        assert await ledger.get("mine")
    assert len(provider.posts) == 1


async def test_what_stays_unwritten_is_told_at_the_end(store: FaultyStore, caplog: pytest.LogCaptureFixture) -> None:
    """A ledger that never comes back is tried until the session closes, and the log names what is lost."""
    provider = FakeProvider()
    store.full = {EntryState.RUNNING}
    async with CharacterSession(provider, ledger=Ledger(store)) as session:
        with pytest.raises(LedgerError):
            await session.submit(**WISH)
        await asyncio.sleep(100)
    told = [(line.message, line.__dict__["task_id"]) for line in caplog.records if line.name == "sora_chars.session"]
    assert told == [("ledger.write_failed", "t1"), ("ledger.write_lost", "t1")]
