"""What every ledger does, in each of its stores."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from sora_chars import (
    Entry,
    EntryState,
    InvalidTransitionError,
    KeyConflictError,
    Ledger,
    LedgerError,
    StaleEntryError,
    WrongLoopError,
    open_ledger,
)

if TYPE_CHECKING:
    from collections.abc import Coroutine

REQUEST: dict[str, Any] = {"from_task": "t-0", "clip": [1, 3.5], "prompt": "Ein fröhlicher \ud800\x00 Hund"}


def register(ledger: Ledger, key: str = "k-1", **changes: Any) -> Coroutine[Any, Any, Entry]:
    """Register the same request every time, except for `changes`."""
    facts: dict[str, Any] = {"provider": "kie", "kind": "character", "request": REQUEST}
    return ledger.register(key=key, **facts | changes)


async def running(ledger: Ledger, key: str = "k-1", **facts: Any) -> Entry:
    """Register a request and take its entry to running."""
    sending = await ledger.transition(await register(ledger, key), EntryState.SENDING, token_digest=f"digest-{key}")
    return await ledger.transition(sending, EntryState.RUNNING, task_id=f"task-{key}", **facts)


async def keys(ledger: Ledger, **options: Any) -> list[str]:
    """List the keys of the entries that `Ledger.entries` yields."""
    return [entry.key async for entry in ledger.entries(**options)]


async def test_life_of_an_entry(ledger_url: str) -> None:
    """Every transition is recorded when it returns, and the entry is found by key, task and token."""
    ticks = iter((100.25, 101.5, 102.5, 103.125))
    async with open_ledger(ledger_url, clock=lambda: next(ticks)) as ledger:
        pending = await register(ledger)
        assert (pending.state, pending.version, pending.owner, pending.request) == (
            EntryState.PENDING,
            1,
            None,
            REQUEST,
        )
        assert (pending.result, pending.error, pending.created_at, pending.updated_at) == (None, None, 100.25, 100.25)
        assert await ledger.get("k-1") == pending

        sending = await ledger.transition(pending, EntryState.SENDING, token_digest="d-1")
        assert (sending.state, sending.version, sending.owner) == (EntryState.SENDING, 2, ledger.owner)
        assert await ledger.by_token("d-1") == sending

        run = await ledger.transition(sending, EntryState.RUNNING, task_id="t-1")
        assert await ledger.by_task("kie", "t-1") == run
        assert run.token_digest == "d-1"

        done = await ledger.transition(run, EntryState.SUCCEEDED, result={"id": ["ch_1", None, 2.5]}, credits=2.0)
        assert (done.state, done.owner, done.result, done.credits) == (
            "succeeded",
            None,
            {"id": ["ch_1", None, 2.5]},
            2.0,
        )
        assert (done.task_id, done.token_digest, done.version) == ("t-1", "d-1", 4)
        assert (done.created_at, done.updated_at) == (100.25, 103.125)
        found = [await ledger.get("k-1"), await ledger.by_task("kie", "t-1"), await ledger.by_token("d-1")]
        assert found == [done, done, done]


async def test_missing_entries(ledger_url: str) -> None:
    """A lookup of unrecorded text returns None, even for text that a database cannot store."""
    async with open_ledger(ledger_url) as ledger:
        await register(ledger)
        for text in ("k-2", "", "\x00", "\ud800", "' OR 1=1 --"):
            assert await ledger.get(text) is None
            assert await ledger.by_task("kie", text) is None
            assert await ledger.by_token(text) is None


async def test_task_ids_belong_to_a_provider(ledger_url: str) -> None:
    """A task id finds entries of its own provider only."""
    async with open_ledger(ledger_url) as ledger:
        await running(ledger)
        assert await ledger.by_task("kkiai", "task-k-1") is None


async def test_replaced_token(ledger_url: str) -> None:
    """An entry that is sent again with a new token is found by the old one, too."""
    async with open_ledger(ledger_url) as ledger:
        sending = await ledger.transition(await register(ledger), EntryState.SENDING, token_digest="d-1")
        again = await ledger.transition(
            await ledger.transition(sending, EntryState.PENDING), EntryState.SENDING, token_digest="d-2"
        )
        assert [await ledger.by_token("d-1"), await ledger.by_token("d-2")] == [again, again]


async def test_repeated_request_returns_its_entry(ledger_url: str) -> None:
    """Registering the same request again returns the present entry, whatever the order of its fields."""
    async with open_ledger(ledger_url) as ledger:
        run = await running(ledger)
        assert await register(ledger, request=dict(reversed(REQUEST.items()))) == run


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"request": {"from_task": "t-9"}}, 'Given: character at kie {"from_task":"t-9"}.'),
        ({"provider": "kkiai"}, "Given: character at kkiai {"),
        ({"kind": "omni"}, "Given: omni at kie {"),
    ],
)
async def test_rejects_another_request_for_a_key(ledger_url: str, change: dict[str, Any], shown: str) -> None:
    """Registering another request under a used key raises an error that shows both, and changes nothing."""
    async with open_ledger(ledger_url) as ledger:
        first = await register(ledger)
        with pytest.raises(KeyConflictError, match="k-1 already belongs to another request") as caught:
            await register(ledger, **change)
        assert (caught.value.key, caught.value.first) == ("k-1", REQUEST)
        assert caught.value.second == change.get("request", REQUEST)
        assert shown in str(caught.value)
        assert await ledger.get("k-1") == first


async def test_concurrent_transitions(ledger_url: str) -> None:
    """Of 20 concurrent transitions of one entry one succeeds; the others get the present entry."""
    async with open_ledger(ledger_url) as ledger:
        pending = await register(ledger)
        outcomes = await asyncio.gather(
            *(ledger.transition(pending, EntryState.SENDING) for _ in range(20)), return_exceptions=True
        )
        [winner] = [outcome for outcome in outcomes if isinstance(outcome, Entry)]
        losers = [outcome for outcome in outcomes if isinstance(outcome, StaleEntryError)]
        assert [error.entry for error in losers] == [winner] * 19
        assert await ledger.get("k-1") == winner


async def test_rejects_an_invalid_transition(ledger_url: str) -> None:
    """A transition that the states do not allow raises and changes nothing."""
    async with open_ledger(ledger_url) as ledger:
        pending = await register(ledger)
        with pytest.raises(InvalidTransitionError):
            await ledger.transition(pending, EntryState.RUNNING, task_id="t-1")
        assert await ledger.get("k-1") == pending


async def test_claim(ledger_url: str) -> None:
    """Without `claim` a running entry has no owner; the next transition to running claims it."""
    async with open_ledger(ledger_url) as ledger:
        unowned = await running(ledger, claim=False)
        assert unowned.owner is None
        assert (await ledger.transition(unowned, EntryState.RUNNING)).owner == ledger.owner


async def test_rejects_unprintable_text(ledger_url: str) -> None:
    """Empty or unprintable text raises an error that names the field, and changes nothing."""
    async with open_ledger(ledger_url) as ledger:
        for text in ("", "a\x00b", "\ud800"):
            with pytest.raises(LedgerError, match="key"):
                await register(ledger, text)
        sending = await ledger.transition(await register(ledger), EntryState.SENDING)
        with pytest.raises(LedgerError, match="task_id"):
            await ledger.transition(sending, EntryState.RUNNING, task_id="t\x00")
        assert await ledger.get("k-1") == sending


async def test_rejects_an_entry_of_another_ledger(ledger_url: str) -> None:
    """A transition of an entry that the ledger does not have raises."""
    async with open_ledger("memory:") as other, open_ledger(ledger_url) as ledger:
        with pytest.raises(LedgerError, match="no longer has the entry of key k-1"):
            await ledger.transition(await register(other), EntryState.SENDING)


async def test_entries_are_ordered(ledger_url: str) -> None:
    """Entries come in the order of registration or in reverse, over several pages, up to a limit."""
    async with open_ledger(ledger_url) as ledger:
        assert await keys(ledger) == []
        order = [f"k-{number}" for number in range(450)]
        for key in order:
            await register(ledger, key)
        assert await keys(ledger) == order
        assert await keys(ledger, newest_first=True) == order[::-1]
        assert await keys(ledger, limit=0) == []
        assert await keys(ledger, limit=1) == order[:1]
        assert await keys(ledger, limit=200) == order[:200]
        assert await keys(ledger, newest_first=True, limit=401) == order[:48:-1]


async def test_entries_are_filtered(ledger_url: str) -> None:
    """Entries are filtered by state and by text in the values of request and result, ignoring case."""
    async with open_ledger(ledger_url) as ledger:
        await register(ledger, "k-1")
        await running(ledger, "k-2")
        done = await running(ledger, "k-3")
        await ledger.transition(done, EntryState.SUCCEEDED, result={"mentions": ["@Ärger"], "count": 3})
        assert await keys(ledger, states={EntryState.RUNNING}) == ["k-2"]
        assert await keys(ledger, states={EntryState.PENDING, EntryState.SUCCEEDED}) == ["k-1", "k-3"]
        assert await keys(ledger, states=()) == []
        assert await keys(ledger, query="ärger") == ["k-3"]
        assert await keys(ledger, query="FRÖHLICH") == ["k-1", "k-2", "k-3"]
        assert await keys(ledger, query="TASK-K") == ["k-2", "k-3"]
        assert await keys(ledger, query="k-1") == ["k-1"]
        assert await keys(ledger, query="prompt") == []
        assert await keys(
            ledger, query="fröh", states={EntryState.RUNNING, EntryState.PENDING}, limit=1, newest_first=True
        ) == ["k-2"]


async def test_changed(ledger_url: str) -> None:
    """`changed` returns the entry after its next transition, at once if that has happened already."""
    async with open_ledger(ledger_url) as ledger:
        pending = await register(ledger)
        waits = [asyncio.create_task(ledger.changed(pending, timeout=30)) for _ in range(2)]
        other = asyncio.create_task(ledger.changed(await register(ledger, "k-2"), timeout=30))
        await asyncio.sleep(0)
        sending = await ledger.transition(pending, EntryState.SENDING)
        assert await asyncio.gather(*waits) == [sending, sending]
        assert await ledger.changed(pending) == sending
        assert not other.done()
        other.cancel()


async def test_changed_times_out(ledger_url: str) -> None:
    """`changed` returns the same entry after its timeout."""
    async with open_ledger(ledger_url) as ledger:
        pending = await register(ledger)
        assert await ledger.changed(pending, timeout=0.01) is pending


async def test_owner_names(ledger_url: str) -> None:
    """An owner is dead once its ledger is closed; opening again takes a new name."""
    async with open_ledger(ledger_url) as ledger:
        assert not await ledger.is_dead(ledger.owner)
        first = ledger.owner
        await ledger.aclose()
        await ledger.open()
        assert ledger.owner != first
        async with asyncio.timeout(10):
            while not await ledger.is_dead(first):  # noqa: ASYNC110 # PostgreSQL notices a closed connection later
                await asyncio.sleep(0.01)


async def test_not_open(ledger_url: str) -> None:
    """Using a ledger that is not open raises, and so does opening it twice; closing it twice does not."""
    ledger = open_ledger(ledger_url)
    with pytest.raises(LedgerError, match="not open"):
        await register(ledger)
    async with ledger:
        with pytest.raises(LedgerError, match="already open"):
            await ledger.open()
    await ledger.aclose()
    with pytest.raises(LedgerError, match="not open"):
        await ledger.get("k-1")


def test_rejects_another_event_loop(ledger_url: str) -> None:
    """A ledger raises in another event loop and still works in its own."""
    ledger = open_ledger(ledger_url)
    with asyncio.Runner() as home:
        home.run(ledger.open())
        with asyncio.Runner() as other, pytest.raises(WrongLoopError, match="another event loop"):
            other.run(ledger.get("k-1"))
        home.run(ledger.aclose())


async def test_cancelled_callers(ledger_url: str) -> None:
    """Of 50 concurrent writes every second is cancelled; all others succeed."""
    async with open_ledger(ledger_url) as ledger:
        tasks = [asyncio.create_task(register(ledger, f"k-{number}")) for number in range(50)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.wait(tasks)
        assert all(task.cancelled() or task.result() for task in tasks[::2])
        assert [task.result().key for task in tasks[1::2]] == [f"k-{number}" for number in range(1, 50, 2)]
        assert set(await keys(ledger)) >= {f"k-{number}" for number in range(1, 50, 2)}


async def test_entries_survive_closing(ledger_url: str) -> None:
    """A ledger that is closed and opened again has the same entries."""
    ledger = open_ledger(ledger_url)
    async with ledger:
        run = await running(ledger)
    async with ledger:
        assert await ledger.get("k-1") == run
        assert await ledger.by_task("kie", "task-k-1") == run


async def test_entries_with_one_task(ledger_url: str) -> None:
    """All entries with one task are found, in the order of registration, and no other entry."""
    async with open_ledger(ledger_url) as ledger:
        for key in ("k-1", "k-2", "k-3"):
            sending = await ledger.transition(await register(ledger, key), EntryState.SENDING)
            task_id = "t-2" if key == "k-2" else "t-1"
            await ledger.transition(sending, EntryState.RUNNING, task_id=task_id)
        found = {task: [entry.key for entry in await ledger.all_by_task("kie", task)] for task in ("t-1", "t-2")}
        assert found == {"t-1": ["k-1", "k-3"], "t-2": ["k-2"]}
        for provider, task in (("kkiai", "t-1"), ("kie", "t-3"), ("kie", "\x00")):
            assert await ledger.all_by_task(provider, task) == []
