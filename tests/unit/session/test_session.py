from __future__ import annotations

import asyncio
import math
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
from sora_chars.models import Character, ModelInfo, OmniCharacterRequest, TaskRequest, TaskSnapshot
from sora_chars.polling.strategies import FixedInterval
from sora_chars.polling.watcher import TaskWatcher
from sora_chars.session.session import CharacterSession, dispatcher_of
from tests.support.fake_providers import Fake

if TYPE_CHECKING:
    from sora_chars.ledger import Entry

pytestmark = pytest.mark.looptime

WISH: dict[str, Any] = {"from_task": "origin", "clip": "1,3", "prompt": "a dog"}


def session_of(*providers: Fake, **options: Any) -> CharacterSession:
    """A session that looks every 10 s."""
    return CharacterSession(*providers, polling=FixedInterval(10.0), **options)


async def test_create_submits_and_waits() -> None:
    """One call makes a character of the fields of a request."""
    provider = Fake(end=3)
    async with session_of(provider) as session:
        character = await session.create(**WISH, name="rex")
    assert (character.id, character.name) == ("ch_1", "rex")
    assert (len(provider.posts), len(provider.polls)) == (1, 3)


async def test_submit_returns_before_the_end() -> None:
    """The handle comes with the answer to the request, and knows the key and the provider."""
    async with session_of(Fake()) as session:
        handle = await session.submit(**WISH, key="mine")
        assert (handle.task_id, handle.provider, handle.key, handle.done()) == ("t1", "fake", "mine", False)
        assert (await handle).id == "ch_1"
        assert len((await session.submit(**WISH)).key) == 36


@pytest.mark.parametrize(
    ("request_", "wants"),
    [
        (TaskRequest(model="m"), TaskSnapshot),
        (OmniCharacterRequest(image="https://a.invalid/a.png", descriptions="a dog", name="rex"), Character),
    ],
)
async def test_a_request_may_come_whole(request_: TaskRequest | OmniCharacterRequest, wants: type) -> None:
    """A task request gives its snapshot, a character request its character."""
    async with session_of(Fake()) as session:
        assert type(await session.create(request_)) is wants


async def test_a_synchronous_provider_needs_no_look() -> None:
    """Its handle is done as it comes, and no callback is asked for."""
    provider = Fake(synchronous=True, callback_url="https://a.invalid")
    async with session_of(provider) as session:
        handle = await session.submit(**WISH)
        assert handle.done()
        assert (await session.create(**WISH, timeout=0)).id == "ch_1"
    assert (provider.polls, provider.posts) == ([], ["", ""])


async def test_the_first_provider_that_can_serves() -> None:
    """A request goes past those that cannot serve it."""
    async with session_of(Fake("a", ["clip: too long"]), Fake("b"), Fake("c")) as session:
        assert (await session.submit(**WISH)).provider == "b"
        assert (await session.submit(**WISH, provider="c")).provider == "c"


async def test_each_provider_says_why_it_cannot() -> None:
    """When none can serve, one error holds every reason of each, and nothing was sent."""
    providers = [Fake("a", ["clip: too long", "prompt: is missing"]), Fake("b", ["video: is no mp4"])]
    async with session_of(*providers) as session:
        with pytest.raises(InvalidRequestError) as caught:
            await session.submit(**WISH)
        assert caught.value.problems == ("a: clip: too long", "a: prompt: is missing", "b: video: is no mp4")
        assert all(problem in str(caught.value) for problem in caught.value.problems)
        with pytest.raises(InvalidRequestError) as caught:
            await session.submit(**WISH, provider="b")
        assert caught.value.problems == ("b: video: is no mp4",)
    assert providers[0].posts == providers[1].posts == []


async def test_an_unknown_provider_is_told_the_known_ones() -> None:
    """A name that is none lists those there are, wherever one may be given."""
    async with session_of(Fake("a"), Fake("b")) as session:
        for use in (session.submit(**WISH, provider="c"), session.credit("c"), session.models("c")):
            with pytest.raises(ConfigurationError, match="must be one of a, b, got 'c'"):
                await use
        with pytest.raises(ConfigurationError, match="must be one of a, b, got 'c'"):
            session.resume("t1", provider="c")


@pytest.mark.parametrize("providers", [(), (Fake("a"), Fake("b"), Fake("a"))])
async def test_providers_need_names_of_their_own(providers: tuple[Fake, ...]) -> None:
    """No provider, or two of one name, is refused before anything is opened."""
    with pytest.raises(ConfigurationError, match="providers: one or more with different names"):
        CharacterSession(*providers)


async def test_a_request_is_given_in_one_way() -> None:
    """Unknown fields, a request with fields beside it, and what is no request are named."""
    async with session_of(Fake()) as session:
        with pytest.raises(InvalidRequestError, match=r"No such field: promt\. Allowed are from_task, .*prompt"):
            await session.submit(from_task="t", promt="a dog")
        fields: Any = {"prompt": "a dog"}
        with pytest.raises(InvalidRequestError, match="got TaskRequest with prompt"):
            await session.submit(TaskRequest(model="m"), **fields)
        with pytest.raises(InvalidRequestError, match="got str with no fields"):
            await session.submit("a dog")  # type: ignore[call-overload] # callers without a type checker do this


@pytest.mark.parametrize("task_id", ["", "a\nb", "a\x00"])
async def test_an_id_that_is_none_is_not_resumed(task_id: str) -> None:
    """An empty or unprintable id is refused before anything is asked."""
    async with session_of(Fake()) as session:
        with pytest.raises(InvalidRequestError, match="task_id: must be the id of a task"):
            session.resume(task_id)


async def test_a_task_is_resumed_by_its_id() -> None:
    """Polling starts at once, at the provider that has tasks, and nothing is paid."""
    synchronous, provider = Fake("sync", synchronous=True), Fake("jobs")
    async with session_of(synchronous, provider) as session:
        handle = session.resume("t1", key="mine")
        assert (handle.provider, handle.key) == ("jobs", "mine")
        assert (await handle).id == "ch_1"
        assert asyncio.get_running_loop().time() == 0
        assert session.resume("t1", provider="sync").provider == "sync"
    assert provider.posts == []


async def test_a_resumed_handle_shares_the_wait() -> None:
    """A handle made live again keeps its ids and its key, and joins those who wait for its task."""
    provider = Fake(end=5)
    async with session_of(provider) as session:
        first = await session.submit(**WISH, key="mine")
        second = session.resume(first)
        assert (second.task_id, second.key) == ("t1", "mine")
        assert await first == await second
        assert (await second.refresh()).finished
    assert len(provider.polls) == 5


async def test_credit_and_models_ask_the_provider_with_tasks() -> None:
    """Unnamed, the first provider that has tasks answers; with none of these, the first."""

    class Telling(Fake):
        async def credit(self) -> float:
            return 7.5

        async def models(self) -> list[ModelInfo]:
            return [ModelInfo("m")]

    async with session_of(Fake("sync", synchronous=True), Telling("jobs")) as session:
        assert await session.credit() == 7.5
        assert await session.models("jobs") == [ModelInfo("m")]
    async with session_of(Fake("sync", synchronous=True)) as session:
        assert session.resume("t1").provider == "sync"


async def test_the_wait_covers_the_submission() -> None:
    """`timeout` counts from the call; the request is answered all the same, and the error carries a live handle."""
    provider, loop = Fake(end=10), asyncio.get_running_loop()
    async with session_of(provider) as session:
        with pytest.raises(WaitTimeoutError) as caught:
            await session.create(**WISH, timeout=45)
        assert loop.time() == 45
        assert (await caught.value.handle).id == "ch_1"
        with pytest.raises(WaitTimeoutError):
            await session.create(**WISH, timeout=1)
        assert (await session.create(**WISH, timeout=math.inf)).id == "ch_1"
    assert len(provider.posts) == 3


async def test_the_default_wait_is_half_an_hour() -> None:
    """Recorded tasks ran 13 minutes; `wait` sets another default."""
    loop = asyncio.get_running_loop()
    for session, wait in ((session_of(Fake(end=999)), 1800.0), (session_of(Fake(end=999), timeout=70.0), 70.0)):
        async with session:
            began = loop.time()
            with pytest.raises(WaitTimeoutError):
                await session.create(**WISH)
            assert loop.time() - began == wait


async def test_a_watcher_of_ones_own_is_used() -> None:
    """The watcher's own settings and pace hold."""
    watcher = TaskWatcher(polling=FixedInterval(100.0))
    async with CharacterSession(Fake(), watcher=watcher) as session:
        await session.create(**WISH)
    assert asyncio.get_running_loop().time() == 120


async def test_an_unknown_outcome_is_told_with_the_key() -> None:
    """A lost answer is never sent again, and the error names the key and the provider."""
    provider = Fake(fault=NoAnswerError("reset by peer"))
    async with session_of(provider) as session:
        with pytest.raises(SubmissionUnknownError, match=r"key mine.*reset by peer.*never sent again") as caught:
            await session.create(**WISH, key="mine")
    assert (caught.value.provider, caught.value.key) == ("fake", "mine")
    assert caught.value.__cause__ is provider.fault
    assert len(provider.posts) == 1


@pytest.mark.parametrize(
    "fault",
    [NoAnswerError("refused", harmless=True), AuthenticationError("bad key"), RateLimitedError("busy"), KeyError("x")],
    ids=lambda fault: type(fault).__name__,
)
async def test_a_known_outcome_is_told_as_it_is(fault: Exception) -> None:
    """An error that says what happened is not turned into doubt."""
    async with session_of(Fake(fault=fault)) as session:
        with pytest.raises(type(fault)) as caught:
            await session.create(**WISH)
    assert caught.value is fault


async def test_no_answer_before_sending_is_no_doubt() -> None:
    """A lost upload, before the paid request, leaves no doubt about that one."""
    async with session_of(Fake(early=NoAnswerError("the upload was reset"))) as session:
        with pytest.raises(NoAnswerError, match="upload"):
            await session.create(**WISH)


async def test_callbacks_carry_a_token_of_their_own() -> None:
    """Each task has an unguessable URL; the ledger keeps the digest of its token, also when the task has ended."""
    provider = Fake(callback_url="https://a.invalid/cb")
    async with session_of(provider) as session:
        first, second = await session.submit(**WISH), await session.submit(**WISH)
        tokens = [str(url).removeprefix("https://a.invalid/cb/") for url in provider.posts]
        assert len({*tokens}) == 2
        assert min(map(len, tokens)) >= 32
        await asyncio.gather(first, second)
        entries = [await session.ledger.by_token(token_digest(token)) for token in tokens]
        assert [entry and entry.key for entry in entries] == [first.key, second.key]


async def test_an_early_callback_brings_a_look_at_once() -> None:
    """A callback that came before the answer to its request is not lost."""
    provider, loop = Fake(callback_url="https://a.invalid/cb"), asyncio.get_running_loop()
    async with session_of(provider) as session:
        submitting = asyncio.create_task(session.submit(**WISH))
        await asyncio.sleep(15)
        entry = await session.ledger.by_token(token_digest(str(provider.posts[0]).rpartition("/")[2]))
        assert entry
        await dispatcher_of(session).handle_callback(entry, "t1")
        handle = await submitting
        await handle
        assert loop.time() == 20


@attrs.define(eq=False)
class Slow(MemoryStore):
    """A store that takes a second to keep a wish; `most`: wishes it was told of at once."""

    asking: int = 0
    most: int = 0

    async def insert(self, entry: Entry) -> Entry:
        """See `LedgerStore`."""
        self.asking += 1
        self.most = max(self.most, self.asking)
        try:
            await asyncio.sleep(1)
        finally:
            self.asking -= 1
        return await super().insert(entry)


async def test_thousands_of_wishes_do_not_all_go_on_in_one_turn_of_the_loop() -> None:
    """At most 64 are on their way into the ledger, and whoever is cancelled makes place for the next."""
    store = Slow()
    async with session_of(Fake(), ledger=Ledger(store)) as session:
        creates = [asyncio.create_task(session.create(**WISH)) for _ in range(250)]
        await asyncio.sleep(0.5)
        for create in creates[50:150]:
            create.cancel()
        ended = await asyncio.gather(*creates, return_exceptions=True)
    assert store.most == 64
    assert sum(isinstance(end, Character) for end in ended) == 150
