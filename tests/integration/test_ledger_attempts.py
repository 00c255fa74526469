"""Earlier attempts of an entry, in each of the stores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import pytest

from sora_chars import Attempt, Entry, EntryState, InvalidTransitionError, Ledger, StaleEntryError, open_ledger

if TYPE_CHECKING:
    from collections.abc import Callable

REQUEST: dict[str, Any] = {"from_task": "t-0"}
CLOCK = 100.25


async def sending(ledger: Ledger, key: str = "k-1", digest: str = "d-1") -> Entry:
    """Register a request and take its entry to sending."""
    entry = await ledger.register(key=key, provider="kie", kind="character", request=REQUEST)
    return await ledger.transition(entry, EntryState.SENDING, token_digest=digest)


async def send_again(ledger: Ledger, entry: Entry, digest: str) -> Entry:
    """Record that the request of an entry was rejected, and that it is sent again."""
    rejected = await ledger.transition(entry, EntryState.REJECTED, error={"code": 402})
    return await ledger.transition(rejected, EntryState.SENDING, token_digest=digest)


@pytest.fixture
def make_ledger(ledger_url: str) -> Callable[[], Ledger]:
    """A function that makes a ledger with a fixed clock, always in the same place."""
    ledger = open_ledger(ledger_url, clock=lambda: CLOCK)
    return lambda: ledger if ledger_url == "memory:" else open_ledger(ledger_url, clock=lambda: CLOCK)


async def test_a_replaced_token_is_kept(make_ledger: Callable[[], Ledger]) -> None:
    """The token digest of a rejected request is stored in an attempt, with the error, and finds the entry."""
    async with make_ledger() as ledger:
        await send_again(ledger, await sending(ledger), "d-2")
    async with make_ledger() as ledger:
        entry = await ledger.get("k-1")
        assert entry is not None
        assert (entry.token_digest, entry.state) == ("d-2", EntryState.SENDING)
        assert [await ledger.by_token(digest) for digest in ("d-1", "d-2", "d-3")] == [entry, entry, None]
        assert await ledger.attempts("k-1") == [
            Attempt(
                key="k-1",
                number=1,
                token_digest="d-1",
                provider="kie",
                state=EntryState.REJECTED,
                request_json=entry.request_json,
                error_json='{"code":402}',
                ended_at=CLOCK,
            )
        ]


async def test_attempts_are_numbered(make_ledger: Callable[[], Ledger]) -> None:
    """The attempts of each entry are counted from 1."""
    async with make_ledger() as ledger:
        for key in ("a", "b"):
            entry = await sending(ledger, key, f"{key}-1")
            for number in range(2, 5):
                entry = await send_again(ledger, entry, f"{key}-{number}")
        for key in ("a", "b"):
            attempts = await ledger.attempts(key)
            assert [(one.number, one.token_digest) for one in attempts] == [(n, f"{key}-{n}") for n in (1, 2, 3)]


async def test_an_archived_attempt_finds_its_entry(make_ledger: Callable[[], Ledger]) -> None:
    """An attempt that a transition archives finds the entry by its task id and its token digest."""
    async with make_ledger() as ledger:
        entry = await sending(ledger)
        earlier = attrs.evolve(
            Attempt.of(entry, at=99.5), token_digest="d-0", task_id="t-0", result_json='{"a":1}', credits=2.5
        )
        running = await ledger.transition(entry, EntryState.RUNNING, task_id="t-1", archive=earlier)
        assert await ledger.attempts("k-1") == [attrs.evolve(earlier, number=1)]
        assert await ledger.by_task("kie", "t-0") == await ledger.by_task("kie", "t-1") == running
        assert await ledger.by_token("d-0") == await ledger.by_token("d-1") == running
        assert await ledger.by_task("kkiai", "t-0") is None


async def test_an_attempt_is_stored_once(make_ledger: Callable[[], Ledger]) -> None:
    """An attempt that was archived by hand is not stored again when its token is replaced."""
    async with make_ledger() as ledger:
        entry = await sending(ledger)
        rejected = await ledger.transition(entry, EntryState.REJECTED, archive=Attempt.of(entry, at=99.5))
        await ledger.transition(rejected, EntryState.SENDING, token_digest="d-2")
        assert [one.ended_at for one in await ledger.attempts("k-1")] == [99.5]


async def test_a_task_under_an_archived_token_is_stored(make_ledger: Callable[[], Ledger]) -> None:
    """A request that was archived before its task was known is stored again with its task, its result and its cost."""
    async with make_ledger() as ledger:
        unknown = await ledger.transition(await sending(ledger), EntryState.UNKNOWN)
        earlier = Attempt.of(unknown, at=99.5)
        running = await ledger.transition(unknown, EntryState.RUNNING, task_id="t-1", archive=earlier)
        ended = await ledger.transition(running, EntryState.FAILED, result={"a": 1}, credits=2.5)
        await ledger.restart(ended, EntryState.PENDING)
    async with make_ledger() as ledger:
        last = attrs.evolve(Attempt.of(ended, at=CLOCK), number=2)
        assert await ledger.attempts("k-1") == [attrs.evolve(earlier, number=1), last]
        assert await ledger.by_task("kie", "t-1") == await ledger.get("k-1")


async def test_attempts_without_a_token(make_ledger: Callable[[], Ledger]) -> None:
    """Attempts that have no token digest are all stored."""
    async with make_ledger() as ledger:
        entry = await ledger.register(key="k-1", provider="kie", kind="character", request=REQUEST)
        for to in (EntryState.SENDING, EntryState.REJECTED):
            entry = await ledger.transition(entry, to, archive=Attempt.of(entry, at=99.5))
        assert [one.number for one in await ledger.attempts("k-1")] == [1, 2]


async def test_a_stale_transition_archives_nothing(make_ledger: Callable[[], Ledger]) -> None:
    """An attempt is stored with its transition, or not at all."""
    async with make_ledger() as ledger:
        entry = await sending(ledger)
        await ledger.transition(entry, EntryState.UNKNOWN)
        with pytest.raises(StaleEntryError):
            await ledger.transition(entry, EntryState.REJECTED, archive=Attempt.of(entry, at=99.5))
        assert await ledger.attempts("k-1") == []


async def test_a_first_send_archives_nothing(make_ledger: Callable[[], Ledger]) -> None:
    """An entry whose request was sent once has no earlier attempts; neither has an unknown key."""
    async with make_ledger() as ledger:
        entry = await sending(ledger)
        await ledger.transition(entry, EntryState.RUNNING, task_id="t-1", token_digest="d-1")
        assert [await ledger.attempts(key) for key in ("k-1", "k-2", "\x00")] == [[], [], []]


async def failed(ledger: Ledger) -> Entry:
    """Take an entry to failed, with a task, a token, a result and a cost."""
    entry = await ledger.transition(await sending(ledger), EntryState.RUNNING, task_id="t-1")
    return await ledger.transition(entry, EntryState.FAILED, result={"a": 1}, error={"code": "501"}, credits=2.5)


async def test_restart_begins_anew(make_ledger: Callable[[], Ledger]) -> None:
    """A restarted entry has another request and nothing of the attempt before, which stays on record as it was."""
    async with make_ledger() as ledger:
        before = await failed(ledger)
        after = await ledger.restart(before, EntryState.PENDING, request={"from_task": "t-9"})
    async with make_ledger() as ledger:
        assert await ledger.get("k-1") == after
        assert (after.state, after.request, after.version) == (EntryState.PENDING, {"from_task": "t-9"}, 5)
        assert {after.token_digest, after.task_id, after.owner, after.result, after.error, after.credits} == {None}
        assert await ledger.attempts("k-1") == [attrs.evolve(Attempt.of(before, at=CLOCK), number=1)]
        assert await ledger.by_token("d-1") == await ledger.by_task("kie", "t-1") == after
        again = await ledger.transition(after, EntryState.SENDING, token_digest="d-2")
        assert len(await ledger.attempts("k-1")) == 1
        assert (await ledger.transition(again, EntryState.RUNNING, task_id="t-2")).task_id == "t-2"


async def test_restart_as_unknown_keeps_the_token(make_ledger: Callable[[], Ledger]) -> None:
    """An entry that returns to unknown is still settled by the callback of its request."""
    async with make_ledger() as ledger:
        entry = await ledger.transition(await sending(ledger), EntryState.RUNNING, task_id="t-1")
        unknown = await ledger.restart(entry, EntryState.UNKNOWN)
        assert (unknown.state, unknown.token_digest, unknown.task_id) == (EntryState.UNKNOWN, "d-1", None)
        assert await ledger.get("k-1") == unknown


async def test_only_some_states_restart(make_ledger: Callable[[], Ledger]) -> None:
    """A restart that the table does not allow, or of a version that has changed, writes nothing."""
    async with make_ledger() as ledger:
        entry = await sending(ledger)
        with pytest.raises(InvalidTransitionError, match="from sending it may go to no other state"):
            await ledger.restart(entry, EntryState.PENDING)
        rejected = await ledger.transition(entry, EntryState.REJECTED)
        pending = await ledger.restart(rejected, EntryState.PENDING)
        await ledger.transition(pending, EntryState.SENDING, token_digest="d-2")
        with pytest.raises(StaleEntryError):
            await ledger.restart(rejected, EntryState.PENDING)
        assert len(await ledger.attempts("k-1")) == 1
