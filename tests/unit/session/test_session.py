"""Sessions: choosing a provider, creating, resuming, time-outs and callback tokens."""

from __future__ import annotations

import asyncio
import math
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from sora_chars.errors import (
    AuthenticationError,
    ConfigurationError,
    InvalidRequestError,
    NoAnswerError,
    RateLimitedError,
    SubmissionUnknownError,
    WaitTimeoutError,
)
from sora_chars.ids import token_digest
from sora_chars.ledger import Ledger
from sora_chars.ledger.stores.memory import MemoryStore
from sora_chars.models import Character, CharacterRequest, ModelInfo, TaskRequest, TaskSnapshot
from sora_chars.polling.strategies import FixedInterval
from sora_chars.polling.watcher import TaskWatcher
from sora_chars.session.session import CharacterSession
from tests.support.fake_providers import FakeProvider

if TYPE_CHECKING:
    from sora_chars.ledger import Entry

pytestmark = pytest.mark.looptime

REQUEST: dict[str, Any] = {"from_task": "origin", "clip": "1,3", "prompt": "a dog"}


def session_of(*providers: FakeProvider, **options: Any) -> CharacterSession:
    """Return a session that polls every 10 s."""
    return CharacterSession(*providers, polling=FixedInterval(10.0), **options)


async def test_create_submits_and_waits() -> None:
    """`create` sends a request made of its fields and returns the character."""
    provider = FakeProvider(end=3)
    async with session_of(provider) as session:
        character = await session.create(**REQUEST, name="rex")
    assert (character.id, character.name) == ("ch_1", "rex")
    assert (len(provider.posts), len(provider.polls)) == (1, 3)


async def test_submit_returns_before_the_end() -> None:
    """`submit` returns a handle with the key and the provider as soon as the request is answered."""
    async with session_of(FakeProvider()) as session:
        handle = await session.submit(**REQUEST, key="mine")
        assert (handle.task_id, handle.provider, handle.key, handle.done()) == ("t1", "fake", "mine", False)
        assert (await handle).id == "ch_1"
        assert len((await session.submit(**REQUEST)).key) == 36


@pytest.mark.parametrize(
    ("request_", "wants"),
    [
        (TaskRequest(model="m"), TaskSnapshot),
        (CharacterRequest(images=["https://a.invalid/a.png"], prompt="a dog", name="rex"), Character),
    ],
)
async def test_accepts_request_objects(request_: TaskRequest | CharacterRequest, wants: type) -> None:
    """A task request returns its snapshot, and a character request returns its character."""
    async with session_of(FakeProvider()) as session:
        assert type(await session.create(request_)) is wants


async def test_synchronous_tasks_are_not_polled() -> None:
    """The handle of a synchronous provider is done at once, and its request has no callback URL."""
    provider = FakeProvider(synchronous=True, callback_url="https://a.invalid")
    async with session_of(provider) as session:
        handle = await session.submit(**REQUEST)
        assert handle.done()
        assert (await session.create(**REQUEST, timeout=11)).id == "ch_1"  # sent after 10 s, answered after 20 s
    assert (provider.polls, provider.posts) == ([], ["", ""])


async def test_uses_the_first_provider_that_accepts() -> None:
    """A request goes to the first provider that accepts it, unless the call names one."""
    async with session_of(FakeProvider("a", ["clip: too long"]), FakeProvider("b"), FakeProvider("c")) as session:
        assert (await session.submit(**REQUEST)).provider == "b"
        assert (await session.submit(**REQUEST, provider="c")).provider == "c"


async def test_lists_the_problems_of_every_provider() -> None:
    """If no provider accepts a request, the error lists the problems of each; nothing is sent."""
    providers = [FakeProvider("a", ["clip: too long", "prompt: is missing"]), FakeProvider("b", ["video: is no mp4"])]
    async with session_of(*providers) as session:
        with pytest.raises(InvalidRequestError) as caught:
            await session.submit(**REQUEST)
        assert caught.value.problems == ("a: clip: too long", "a: prompt: is missing", "b: video: is no mp4")
        assert all(problem in str(caught.value) for problem in caught.value.problems)
        with pytest.raises(InvalidRequestError) as caught:
            await session.submit(**REQUEST, provider="b")
        assert caught.value.problems == ("b: video: is no mp4",)
    assert providers[0].posts == providers[1].posts == []


async def test_unknown_provider_lists_the_known_ones() -> None:
    """An unknown provider name raises an error that lists the names of the session."""
    async with session_of(FakeProvider("a"), FakeProvider("b")) as session:
        for call in (session.submit(**REQUEST, provider="c"), session.credit("c"), session.models("c")):
            with pytest.raises(ConfigurationError, match="must be one of a, b, got 'c'"):
                await call
        with pytest.raises(ConfigurationError, match="must be one of a, b, got 'c'"):
            session.resume("t1", provider="c")


@pytest.mark.parametrize("providers", [(), (FakeProvider("a"), FakeProvider("b"), FakeProvider("a"))])
async def test_rejects_missing_and_duplicate_providers(providers: tuple[FakeProvider, ...]) -> None:
    """No provider, and two providers of the same name, are rejected before anything is opened."""
    with pytest.raises(ConfigurationError, match="providers: one or more with different names"):
        CharacterSession(*providers)


async def test_rejects_ambiguous_requests() -> None:
    """The error names unknown fields, fields beside a request, and objects of other types."""
    async with session_of(FakeProvider()) as session:
        with pytest.raises(InvalidRequestError, match=r"promt must not be given, .*; use prompt"):
            await session.submit(from_task="t", promt="a dog")  # type: ignore[call-overload]
        fields: Any = {"prompt": "a dog"}
        with pytest.raises(InvalidRequestError, match="got TaskRequest with prompt"):
            await session.submit(TaskRequest(model="m"), **fields)
        with pytest.raises(InvalidRequestError, match="got str with no fields"):
            await session.submit("a dog")  # type: ignore[call-overload] # callers without a type checker do this


@pytest.mark.parametrize("task_id", ["", "a\nb", "a\x00"])
async def test_resume_rejects_invalid_ids(task_id: str) -> None:
    """Empty and unprintable ids are rejected before anything is sent."""
    async with session_of(FakeProvider()) as session:
        with pytest.raises(InvalidRequestError, match="task_id: must be the id of a task"):
            session.resume(task_id)


async def test_resumes_by_id() -> None:
    """A resumed task is polled at once at the first provider with tasks, and nothing is paid."""
    synchronous, provider = FakeProvider("sync", synchronous=True), FakeProvider("jobs")
    async with session_of(synchronous, provider) as session:
        handle = session.resume("t1", key="mine")
        assert (handle.provider, handle.key) == ("jobs", "mine")
        assert (await handle).id == "ch_1"
        assert asyncio.get_running_loop().time() == 0
        assert session.resume("t1", provider="sync").provider == "sync"
    assert provider.posts == []


async def test_resumed_handle_shares_the_wait() -> None:
    """A resumed handle keeps its ids and its key, and shares the polls of its task."""
    provider = FakeProvider(end=5)
    async with session_of(provider) as session:
        first = await session.submit(**REQUEST, key="mine")
        second = session.resume(first)
        assert (second.task_id, second.key) == ("t1", "mine")
        assert await first == await second
        assert (await second.refresh()).finished
    assert len(provider.polls) == 5


async def test_credit_and_models_use_the_provider_with_tasks() -> None:
    """Without a name, the first provider that has tasks is used, or else the first provider."""

    class InformativeProvider(FakeProvider):
        async def credit(self) -> float:
            return 7.5

        async def models(self) -> list[ModelInfo]:
            return [ModelInfo("m")]

    async with session_of(FakeProvider("sync", synchronous=True), InformativeProvider("jobs")) as session:
        assert await session.credit() == 7.5
        assert await session.models("jobs") == [ModelInfo("m")]
    async with session_of(FakeProvider("sync", synchronous=True)) as session:
        assert session.resume("t1").provider == "sync"


async def test_timeout_includes_the_submission() -> None:
    """`timeout` counts from the call, and the error has a live handle of the sent request."""
    provider, loop = FakeProvider(end=10), asyncio.get_running_loop()
    async with session_of(provider) as session:
        with pytest.raises(WaitTimeoutError) as caught:
            await session.create(**REQUEST, timeout=45)
        assert loop.time() == 45
        assert (await caught.value.handle).id == "ch_1"
        assert (await session.create(**REQUEST, timeout=math.inf)).id == "ch_1"
    assert len(provider.posts) == 2


async def test_default_timeout_is_half_an_hour() -> None:
    """A session waits 30 minutes by default; `timeout` changes the default."""
    loop = asyncio.get_running_loop()
    for session, timeout in (
        (session_of(FakeProvider(end=999)), 1800.0),
        (session_of(FakeProvider(end=999), timeout=70.0), 70.0),
    ):
        async with session:
            began = loop.time()
            with pytest.raises(WaitTimeoutError):
                await session.create(**REQUEST)
            assert loop.time() - began == timeout


async def test_uses_a_given_watcher() -> None:
    """A given watcher keeps its own settings and its own polling strategy."""
    watcher = TaskWatcher(polling=FixedInterval(100.0))
    async with CharacterSession(FakeProvider(), watcher=watcher) as session:
        await session.create(**REQUEST)
    assert asyncio.get_running_loop().time() == 120


async def test_unknown_outcome_names_the_key() -> None:
    """The error for a lost response names the key and the provider; nothing is sent again."""
    provider = FakeProvider(fault=NoAnswerError("reset by peer"))
    async with session_of(provider) as session:
        with pytest.raises(SubmissionUnknownError, match=r"key mine.*reset by peer.*never sent again") as caught:
            await session.create(**REQUEST, key="mine")
    assert (caught.value.provider, caught.value.key) == ("fake", "mine")
    assert caught.value.__cause__ is provider.fault
    assert len(provider.posts) == 1


@pytest.mark.parametrize(
    "fault",
    [NoAnswerError("refused", harmless=True), AuthenticationError("bad key"), RateLimitedError("busy"), KeyError("x")],
    ids=lambda fault: type(fault).__name__,
)
async def test_known_outcomes_are_raised_unchanged(fault: Exception) -> None:
    """An error whose outcome is known is raised unchanged."""
    async with session_of(FakeProvider(fault=fault)) as session:
        with pytest.raises(type(fault)) as caught:
            await session.create(**REQUEST)
    assert caught.value is fault


async def test_lost_upload_is_not_an_unknown_outcome() -> None:
    """A connection that is lost during an upload, before the paid request, is raised as it is."""
    async with session_of(FakeProvider(early=NoAnswerError("the upload was reset"))) as session:
        with pytest.raises(NoAnswerError, match="upload"):
            await session.create(**REQUEST)


async def test_each_task_has_its_own_callback_token() -> None:
    """The ledger finds an entry by the token of its callback URL, even after its task ended."""
    provider = FakeProvider(callback_url="https://a.invalid/cb")
    async with session_of(provider) as session:
        first, second = await session.submit(**REQUEST), await session.submit(**REQUEST)
        tokens = [str(url).removeprefix("https://a.invalid/cb/") for url in provider.posts]
        assert len({*tokens}) == 2
        assert min(map(len, tokens)) >= 32
        await asyncio.gather(first, second)
        entries = [await session.ledger.by_token(token_digest(token)) for token in tokens]
        assert [entry and entry.key for entry in entries] == [first.key, second.key]


async def test_early_callback_triggers_a_poll() -> None:
    """A callback that arrives before the response triggers a poll once the task is known."""
    provider, loop = FakeProvider(callback_url="https://a.invalid/cb"), asyncio.get_running_loop()
    async with session_of(provider) as session:
        submitting = asyncio.create_task(session.submit(**REQUEST))
        await asyncio.sleep(15)
        entry = await session.ledger.by_token(token_digest(str(provider.posts[0]).rpartition("/")[2]))
        assert entry
        await session.dispatcher().handle_callback(entry, "t1", entry.token_digest)
        handle = await submitting
        await handle
        assert loop.time() == 20


@attrs.define(eq=False)
class SlowStore(MemoryStore):
    """Memory store that takes a second per insert.

    Attributes:
        inserting: Inserts in progress.
        peak: Highest number of inserts in progress.
    """

    inserting: int = 0
    peak: int = 0

    async def insert(self, entry: Entry) -> Entry:
        """See `LedgerStore`."""
        self.inserting += 1
        self.peak = max(self.peak, self.inserting)
        try:
            await asyncio.sleep(1)
        finally:
            self.inserting -= 1
        return await super().insert(entry)


async def test_registers_at_most_64_requests_at_once() -> None:
    """At most 64 requests are being inserted at once, and a cancelled one frees its slot."""
    store = SlowStore()
    async with session_of(FakeProvider(), ledger=Ledger(store)) as session:
        creates = [asyncio.create_task(session.create(**REQUEST)) for _ in range(250)]
        await asyncio.sleep(0.5)
        for create in creates[50:150]:
            create.cancel()
        results = await asyncio.gather(*creates, return_exceptions=True)
    assert store.peak == 64
    assert sum(isinstance(result, Character) for result in results) == 150


async def test_blanks_around_a_key_mean_nothing() -> None:
    """A key that comes with blanks or a line end is the same key: one request is sent, and every call finds it."""
    provider = FakeProvider()
    async with session_of(provider) as session:
        first = await session.submit(**REQUEST, key="rex")
        again = await session.submit(**REQUEST, key=" rex\n")
        entry = await session.entry("rex ")
        assert entry is not None
        assert (again.task_id, entry.task_id, len(provider.posts)) == (first.task_id, first.task_id, 1)
        assert (await session.advance("rex\n")).entry.key == "rex"
        assert session.resume(" t1\n").task_id == "t1"


async def test_a_key_that_is_no_text() -> None:
    """Every method that takes a key names one that is no text."""
    number: Any = 5
    async with CharacterSession(FakeProvider()) as session:
        for call in (session.entry, session.advance, session.retry, partial(session.resolve, give_up=True)):
            with pytest.raises(InvalidRequestError, match="key must be text, got 5"):
                await call(number)
