"""Unknown outcomes: resolved by callbacks and by people, and what recovery does."""

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
from tests.support.log_events import event_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from sora_chars.ledger import Entry

pytestmark = pytest.mark.looptime

REQUEST: dict[str, Any] = {"from_task": "origin", "clip": "1,3", "prompt": "a dog", "key": "mine"}


@pytest.fixture
def provider() -> FakeProvider:
    """Return a provider that loses its responses, without delay: fixtures run in real time."""
    return FakeProvider(callback_url="https://a.invalid/hooks", before=0, after=0, fault=NoAnswerError("reset"))


@pytest.fixture
def store() -> FaultyStore:
    """Return a store without faults."""
    return FaultyStore()


@pytest.fixture
async def session(provider: FakeProvider, store: FaultyStore) -> AsyncGenerator[CharacterSession]:
    """Return a session that polls every 10 s."""
    async with CharacterSession(provider, polling=FixedInterval(10.0), ledger=Ledger(store)) as session:
        yield session


@pytest.fixture
async def unknown(session: CharacterSession) -> Entry:
    """Return an entry whose response was lost."""
    with pytest.raises(SubmissionUnknownError):
        await session.submit(**REQUEST)
    return await entry_of(session)


async def recovered(session: CharacterSession) -> list[str]:
    """Return the ids of the tasks that recovery finds."""
    return [handle.task_id async for handle in session.recover()]


async def call_back(session: CharacterSession, url: str, task_id: str = "t1") -> int:
    """Deliver a callback and return the status of the response."""

    async def body() -> AsyncGenerator[bytes]:
        yield json.dumps({"code": 200, "data": {"taskId": task_id, "state": "success"}}).encode()

    receiver = CallbackReceiver(session)
    return (await receiver.handle("POST", url, {"content-type": "application/json"}, body()))[0]


@pytest.mark.usefixtures("unknown")
@pytest.mark.parametrize("raw", [None, "own", {"param": "no URL"}])
async def test_callback_resolves_an_unknown_outcome(
    session: CharacterSession, provider: FakeProvider, raw: Any
) -> None:
    """The callback's token identifies the entry, which receives its task and its result."""
    own = {"param": json.dumps({"callBackUrl": provider.posts[0]})}
    provider.seen = provider.snapshot(raw=own if raw == "own" else raw)
    assert await call_back(session, provider.posts[0]) == 200
    assert (await session.create(**REQUEST)).id == "ch_1"
    entry = await entry_of(session)
    assert (entry.state, entry.task_id, len(provider.posts)) == (EntryState.SUCCEEDED, "t1", 1)


@pytest.mark.parametrize(
    "raw",
    [
        {"param": '{"callBackUrl": "https://a.invalid/hooks/of-another"}'},
        {"callBackUrl": "https://a.invalid/hooks/of-another"},
    ],
)
async def test_rejects_the_token_of_another_task(
    session: CharacterSession, provider: FakeProvider, unknown: Entry, raw: Any
) -> None:
    """A token is rejected for a task whose record names another token."""
    provider.seen = provider.snapshot("t9", raw=raw)
    assert await call_back(session, provider.posts[0], "t9") == 401
    assert await entry_of(session) == unknown


async def test_unconfirmed_callback_changes_nothing(
    session: CharacterSession, provider: FakeProvider, unknown: Entry
) -> None:
    """A task that the provider does not know yet changes nothing, and the sender receives 503."""
    provider.seen = TaskNotFoundError("no such task")
    assert await call_back(session, provider.posts[0]) == 503
    assert await entry_of(session) == unknown


async def test_callback_without_a_character_changes_nothing(
    session: CharacterSession, provider: FakeProvider, unknown: Entry
) -> None:
    """A success without a character does not confirm the task, and the sender receives 503."""
    provider.seen = MissingCharacterError("none", provider="fake", task_id="t1", payload={"id": ""})
    assert await call_back(session, provider.posts[0]) == 503
    assert await entry_of(session) == unknown


@pytest.mark.usefixtures("unknown")
async def test_callback_during_a_ledger_fault(
    session: CharacterSession, provider: FakeProvider, store: FaultyStore
) -> None:
    """If the ledger cannot be read or written, the sender receives 503."""
    store.away = True
    assert await call_back(session, provider.posts[0]) == 503
    store.away, store.full = False, {EntryState.RUNNING}
    assert await call_back(session, provider.posts[0]) == 503
    store.full = set()
    assert await call_back(session, provider.posts[0]) == 200


async def test_callback_for_a_given_up_entry(session: CharacterSession, provider: FakeProvider, unknown: Entry) -> None:
    """A callback for an entry that a person gave up is accepted and changes nothing."""
    given_up = await session.resolve(unknown.key, give_up=True)
    assert await call_back(session, provider.posts[0]) == 200
    assert await entry_of(session) == given_up
    assert provider.polls == []


@pytest.mark.parametrize("fault", [None, NoAnswerError("reset")])
async def test_callback_before_the_response(
    session: CharacterSession, provider: FakeProvider, fault: Exception | None
) -> None:
    """If a callback arrives before the response or its loss, `submit` returns a done handle."""
    provider.fault, provider.after = fault, 10.0
    submitting = asyncio.create_task(session.submit(**REQUEST))
    await asyncio.sleep(5)
    assert await call_back(session, provider.posts[0]) == 200
    assert (await session.ledger.changed(await entry_of(session))).state is EntryState.SUCCEEDED
    assert not submitting.done()
    handle = await submitting
    assert handle.done()
    assert ((await handle).id, len(provider.posts), len(provider.polls)) == ("ch_1", 1, 2)


async def test_resolve_with_a_task_id(session: CharacterSession, provider: FakeProvider, unknown: Entry) -> None:
    """The named task is recorded without an owner, and recovery finds its end."""
    entry = await session.resolve(unknown.key, task_id="t7", unchecked=True)
    assert (entry.state, entry.task_id, entry.owner) == (EntryState.RUNNING, "t7", None)
    assert provider.polls == []
    (handle,) = [handle async for handle in session.recover()]
    assert (await handle).id == "ch_1"
    assert ((await entry_of(session)).state, len(provider.posts)) == (EntryState.SUCCEEDED, 1)


async def test_resolve_as_never_sent(session: CharacterSession, provider: FakeProvider, unknown: Entry) -> None:
    """The request is sent again by the next submit, and not before."""
    assert (await session.resolve(unknown.key, never_sent=True)).state is EntryState.PENDING
    assert (await recovered(session), len(provider.posts)) == ([], 1)
    provider.fault = None
    assert (await session.submit(**REQUEST)).task_id == "t2"
    assert len(provider.posts) == 2


async def test_resolve_by_giving_up(session: CharacterSession, provider: FakeProvider, unknown: Entry) -> None:
    """The entry is failed for every caller; a running task can be given up as well."""
    assert (await session.resolve(unknown.key, give_up=True)).state is EntryState.FAILED
    with pytest.raises(TaskFailedError, match="given up by the user"):
        await session.create(**REQUEST)
    provider.fault = None
    running = await session.submit(**REQUEST | {"key": "other"})
    entry = await session.resolve("other", give_up=True)
    assert (entry.state, entry.task_id) == (EntryState.FAILED, running.task_id)
    assert len(provider.posts) == 2


async def test_rejects_invalid_resolutions(session: CharacterSession, unknown: Entry, store: FaultyStore) -> None:
    """Each misuse is named in the error, and changes nothing."""
    for key in ("pending", "sending", "running"):
        fields: dict[str, Any] = REQUEST | {"key": key}
        await session.register(**fields)
    for key in ("sending", "running"):
        await store.elsewhere(key, EntryState.SENDING)
    await store.elsewhere("running", EntryState.RUNNING, task_id="t7")
    before = [entry async for entry in session.ledger.entries()]
    cases: list[tuple[str, dict[str, Any], str]] = [
        (unknown.key, {}, "exactly one"),
        (unknown.key, {"task_id": "t1", "give_up": True}, "exactly one"),
        ("none", {"task_id": "t1"}, "no entry 'none'"),
        ("none", {"give_up": True}, "no entry 'none'"),
        ("pending", {"never_sent": True}, "is pending, so there is nothing to resolve"),
        ("running", {"never_sent": True}, "is running, so there is nothing to resolve"),
        ("sending", {"give_up": True}, "is being sent by a living process"),
        (unknown.key, {"task_id": "t7"}, "t7 is the task of key running already"),
        (unknown.key, {"task_id": ""}, "must be the id of a task"),
        (unknown.key, {"task_id": "a\nb"}, "must be the id of a task"),
    ]
    for key, options, match in cases:
        with pytest.raises(InvalidRequestError, match=match):
            await session.resolve(key, **options)
    assert [entry async for entry in session.ledger.entries()] == before


async def test_synchronous_provider_rejects_a_task_id() -> None:
    """An unknown outcome of a synchronous provider is resolved as never sent or given up only."""
    async with CharacterSession(FakeProvider(synchronous=True, fault=NoAnswerError("reset"))) as session:
        with pytest.raises(SubmissionUnknownError):
            await session.submit(**REQUEST)
        with pytest.raises(InvalidRequestError, match="fake has no tasks; use never_sent or give_up"):
            await session.resolve("mine", task_id="t1")
        assert (await session.resolve("mine", never_sent=True)).state is EntryState.PENDING


async def test_recover(session: CharacterSession, store: FaultyStore, caplog: pytest.LogCaptureFixture) -> None:
    """Running tasks are watched, and orphaned requests become unknown."""
    for provider, key in (("fake", "sending"), ("fake", "running"), ("gone", "foreign"), ("fake", "pending")):
        await session.ledger.register(key=key, provider=provider, kind="task", request={"model": "m"})
        if key != "pending":
            await store.elsewhere(key, EntryState.SENDING)
    await store.elsewhere("running", EntryState.RUNNING, task_id="t7")
    await store.elsewhere("foreign", EntryState.RUNNING, task_id="t8")
    assert await recovered(session) == ["t7"]
    assert (await entry_of(session, "sending")).state is EntryState.SENDING  # its owner is alive
    store.others_live = False
    assert await recovered(session) == ["t7"]
    states = {entry.key: str(entry.state) async for entry in session.ledger.entries()}
    assert states == {"sending": "unknown", "running": "running", "foreign": "running", "pending": "pending"}
    logged = [(event_of(line), line.__dict__["key"]) for line in caplog.records if line.name == "sora_chars.session"]
    assert logged == [
        ("recovery.no_provider", "foreign"),
        ("recovery.unknown", "sending"),
        ("recovery.no_provider", "foreign"),
    ]
    with pytest.raises(ConfigurationError, match="must be one of fake, got 'gone'"):
        await session.resolve("foreign", task_id="t8")


async def test_recovered_task_is_taken_over(
    session: CharacterSession, provider: FakeProvider, store: FaultyStore
) -> None:
    """A recovered task is hardly polled while its owner is alive, and taken over afterwards."""
    provider.seen = TaskNotFoundError("no such task")
    await session.register(**REQUEST)
    await store.elsewhere("mine", EntryState.SENDING)
    await store.elsewhere("mine", EntryState.RUNNING, task_id="t1")
    (handle,) = [handle async for handle in session.recover()]
    await asyncio.sleep(29)
    assert provider.polls == []
    store.others_live, provider.seen = False, None
    assert (await handle).id == "ch_1"
    assert asyncio.get_running_loop().time() < 30  # no poll was due before
    assert (await entry_of(session)).state is EntryState.SUCCEEDED


async def test_records_a_success_without_a_character(session: CharacterSession, provider: FakeProvider) -> None:
    """A success without a character is recorded, and the same key raises it again without a poll."""
    provider.fault = None
    provider.seen = MissingCharacterError("none", provider="fake", task_id="t1", payload={"id": ""})
    for _ in range(2):
        with pytest.raises(MissingCharacterError) as caught:
            await session.create(**REQUEST)
        assert caught.value.payload == {"id": ""}
    assert ((await entry_of(session)).state, len(provider.polls), len(provider.posts)) == (EntryState.FAILED, 1, 1)


async def test_leaves_an_open_ledger_open(store: FaultyStore) -> None:
    """Sessions can share an open ledger and its keys, and do not close it."""
    provider = FakeProvider()
    async with Ledger(store) as ledger:
        async with CharacterSession(provider, ledger=ledger) as one, CharacterSession(provider, ledger=ledger) as two:
            characters = await asyncio.gather(one.create(**REQUEST), two.create(**REQUEST))
        assert [character.id for character in characters] == ["ch_1"] * 2
        assert await ledger.get("mine")
    assert len(provider.posts) == 1


async def test_logs_lost_writes_on_closing(store: FaultyStore, caplog: pytest.LogCaptureFixture) -> None:
    """A failing write is repeated until the session closes, and then logged with its task id."""
    provider = FakeProvider()
    store.full = {EntryState.RUNNING}
    async with CharacterSession(provider, ledger=Ledger(store)) as session:
        with pytest.raises(LedgerError):
            await session.submit(**REQUEST)
        await asyncio.sleep(100)
    logged = [
        (event_of(line), line.__dict__["task_id"]) for line in caplog.records if line.name == "sora_chars.session"
    ]
    assert logged == [("ledger.write_failed", "t1"), ("ledger.write_lost", "t1")]


@pytest.mark.parametrize("returned", [{"taskId": "t1"}, None, "t1"])
async def test_a_provider_that_returns_no_snapshot(returned: object) -> None:
    """What a provider of the user's own returns by mistake leaves the key unknown, with an error that names it."""

    class Wrong(FakeProvider):
        async def submit(self, request: Any, **options: Any) -> Any:
            await super().submit(request, **options)
            return returned

    async with CharacterSession(Wrong(before=0, after=0)) as session:
        with pytest.raises(SubmissionUnknownError, match=f"returned a {type(returned).__name__} in place of"):
            await session.submit(**REQUEST)
        assert (await entry_of(session)).state is EntryState.UNKNOWN


@pytest.mark.parametrize(
    ("changes", "hint"),
    [({}, "Its callback settles it; "), ({"callback_url": None}, "ly. Check"), ({"synchronous": True}, "ly. Check")],
)
async def test_the_hint_names_a_callback_that_can_come(
    provider: FakeProvider, changes: dict[str, Any], hint: str
) -> None:
    """The error refers to a callback only if the provider was given its URL."""
    for name, value in changes.items():
        setattr(provider, name, value)
    async with CharacterSession(provider) as session:
        with pytest.raises(SubmissionUnknownError, match=hint):
            await session.submit(**REQUEST)
