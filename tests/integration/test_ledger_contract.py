"""What every ledger does, whatever it is stored in."""

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


def ask(ledger: Ledger, key: str = "k-1", **changes: Any) -> Coroutine[Any, Any, Entry]:
    """Ask for something, `changes` aside always for the same."""
    wish: dict[str, Any] = {"provider": "kie", "kind": "character", "request": REQUEST}
    return ledger.register(key=key, **wish | changes)


async def running(ledger: Ledger, key: str = "k-1", **facts: Any) -> Entry:
    """Bring an entry as far as its task."""
    sending = await ledger.transition(await ask(ledger, key), EntryState.SENDING, token_digest=f"digest-{key}")
    return await ledger.transition(sending, EntryState.RUNNING, task_id=f"task-{key}", **facts)


async def keys(ledger: Ledger, **choice: Any) -> list[str]:
    """List the keys of the entries of a choice."""
    return [entry.key async for entry in ledger.entries(**choice)]


async def test_an_entry_goes_from_wish_to_result(ledger_url: str) -> None:
    """Every fact of every move is on record at once, and can be looked up by key, task and token."""
    ticks = iter((100.25, 101.5, 102.5, 103.125))
    async with open_ledger(ledger_url, clock=lambda: next(ticks)) as ledger:
        asked = await ask(ledger)
        assert (asked.state, asked.version, asked.owner, asked.request) == (EntryState.PENDING, 1, None, REQUEST)
        assert (asked.result, asked.error, asked.created_at, asked.updated_at) == (None, None, 100.25, 100.25)
        assert await ledger.get("k-1") == asked

        sending = await ledger.transition(asked, EntryState.SENDING, token_digest="d-1")
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


async def test_what_is_not_there_is_none(ledger_url: str) -> None:
    """Looking up what was never recorded gives None, also when the database could not even hold it."""
    async with open_ledger(ledger_url) as ledger:
        await ask(ledger)
        for odd in ("k-2", "", "\x00", "\ud800", "' OR 1=1 --"):
            assert await ledger.get(odd) is None
            assert await ledger.by_task("kie", odd) is None
            assert await ledger.by_token(odd) is None


async def test_a_task_is_one_of_a_provider(ledger_url: str) -> None:
    """Two providers may use the same task id."""
    async with open_ledger(ledger_url) as ledger:
        await running(ledger)
        assert await ledger.by_task("kkiai", "task-k-1") is None


async def test_a_token_that_was_replaced_is_nobodys(ledger_url: str) -> None:
    """When an entry is sent again with another token, only that one finds it."""
    async with open_ledger(ledger_url) as ledger:
        sending = await ledger.transition(await ask(ledger), EntryState.SENDING, token_digest="d-1")
        again = await ledger.transition(
            await ledger.transition(sending, EntryState.PENDING), EntryState.SENDING, token_digest="d-2"
        )
        assert [await ledger.by_token("d-1"), await ledger.by_token("d-2")] == [None, again]


async def test_the_same_wish_is_the_same_entry(ledger_url: str) -> None:
    """A key asked again for the same gives the entry as it is by now, in whatever order its fields come."""
    async with open_ledger(ledger_url) as ledger:
        run = await running(ledger)
        assert await ask(ledger, request=dict(reversed(REQUEST.items()))) == run


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"request": {"from_task": "t-9"}}, 'now character at kie {"from_task":"t-9"}.'),
        ({"provider": "kkiai"}, "now character at kkiai {"),
        ({"kind": "omni"}, "now omni at kie {"),
    ],
)
async def test_another_wish_under_the_same_key_is_refused(ledger_url: str, change: dict[str, Any], shown: str) -> None:
    """A key asked again for anything else is an error that shows both, and the entry stays as it was."""
    async with open_ledger(ledger_url) as ledger:
        first = await ask(ledger)
        with pytest.raises(KeyConflictError, match="k-1 was registered before") as caught:
            await ask(ledger, **change)
        assert (caught.value.key, caught.value.first) == ("k-1", REQUEST)
        assert caught.value.second == change.get("request", REQUEST)
        assert shown in str(caught.value)
        assert await ledger.get("k-1") == first


async def test_of_two_who_move_an_entry_one_does(ledger_url: str) -> None:
    """Of many who move the same entry at once one succeeds, and the others are shown what it is now."""
    async with open_ledger(ledger_url) as ledger:
        asked = await ask(ledger)
        ends = await asyncio.gather(
            *(ledger.transition(asked, EntryState.SENDING) for _ in range(20)), return_exceptions=True
        )
        [winner] = [end for end in ends if isinstance(end, Entry)]
        losers = [end for end in ends if isinstance(end, StaleEntryError)]
        assert [loser.entry for loser in losers] == [winner] * 19
        assert await ledger.get("k-1") == winner


async def test_an_illegal_move_changes_nothing(ledger_url: str) -> None:
    """A move that the states do not allow raises and leaves the entry as it was."""
    async with open_ledger(ledger_url) as ledger:
        asked = await ask(ledger)
        with pytest.raises(InvalidTransitionError):
            await ledger.transition(asked, EntryState.RUNNING, task_id="t-1")
        assert await ledger.get("k-1") == asked


async def test_a_task_can_be_taken_over(ledger_url: str) -> None:
    """A running entry let go has no owner, and whoever moves it to running again holds it."""
    async with open_ledger(ledger_url) as ledger:
        free = await running(ledger, claim=False)
        assert free.owner is None
        assert (await ledger.transition(free, EntryState.RUNNING)).owner == ledger.owner


async def test_what_cannot_be_recorded_is_said(ledger_url: str) -> None:
    """Text that not every database keeps is refused by name, and the ledger goes on."""
    async with open_ledger(ledger_url) as ledger:
        for bad in ("", "a\x00b", "\ud800"):
            with pytest.raises(LedgerError, match="key"):
                await ask(ledger, bad)
        sending = await ledger.transition(await ask(ledger), EntryState.SENDING)
        with pytest.raises(LedgerError, match="task_id"):
            await ledger.transition(sending, EntryState.RUNNING, task_id="t\x00")
        assert await ledger.get("k-1") == sending


async def test_an_entry_of_another_ledger_cannot_be_moved(ledger_url: str) -> None:
    """Moving an entry that the ledger does not hold is an error of the ledger."""
    async with open_ledger("memory:") as other, open_ledger(ledger_url) as ledger:
        with pytest.raises(LedgerError, match="no longer has the entry of key k-1"):
            await ledger.transition(await ask(other), EntryState.SENDING)


async def test_entries_stream_in_order(ledger_url: str) -> None:
    """Entries come in the order in which they were asked or the other way round, over many pages, up to a limit."""
    async with open_ledger(ledger_url) as ledger:
        assert await keys(ledger) == []
        order = [f"k-{number}" for number in range(450)]
        for key in order:
            await ask(ledger, key)
        assert await keys(ledger) == order
        assert await keys(ledger, newest_first=True) == order[::-1]
        assert await keys(ledger, limit=0) == []
        assert await keys(ledger, limit=1) == order[:1]
        assert await keys(ledger, limit=200) == order[:200]
        assert await keys(ledger, newest_first=True, limit=401) == order[:48:-1]


async def test_entries_are_chosen(ledger_url: str) -> None:
    """Entries are chosen by state and by a word in what was asked or came, in any case, and not by names of fields."""
    async with open_ledger(ledger_url) as ledger:
        await ask(ledger, "k-1")
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


async def test_who_waits_hears_of_a_move(ledger_url: str) -> None:
    """Waiting for a change gives the entry after it, at once when it has changed before."""
    async with open_ledger(ledger_url) as ledger:
        asked = await ask(ledger)
        waits = [asyncio.create_task(ledger.changed(asked, timeout=30)) for _ in range(2)]
        other = asyncio.create_task(ledger.changed(await ask(ledger, "k-2"), timeout=30))
        await asyncio.sleep(0)
        sending = await ledger.transition(asked, EntryState.SENDING)
        assert await asyncio.gather(*waits) == [sending, sending]
        assert await ledger.changed(asked) == sending
        assert not other.done()
        other.cancel()


async def test_a_wait_for_a_change_ends(ledger_url: str) -> None:
    """When nothing changes in time, the entry comes back as it was."""
    async with open_ledger(ledger_url) as ledger:
        asked = await ask(ledger)
        assert await ledger.changed(asked, timeout=0.01) is asked


async def test_two_ledgers_have_two_holders(ledger_url: str) -> None:
    """A owner is not gone before it has closed, and no other ever bears its name."""
    async with open_ledger(ledger_url) as ledger:
        assert not await ledger.is_dead(ledger.owner)
        first = ledger.owner
        await ledger.aclose()
        await ledger.open()
        assert ledger.owner != first
        async with asyncio.timeout(10):
            while not await ledger.is_dead(first):  # noqa: ASYNC110 # PostgreSQL takes a moment to see who hung up
                await asyncio.sleep(0.01)


async def test_a_ledger_says_that_it_is_not_open(ledger_url: str) -> None:
    """A ledger that is closed, not yet open, or opened twice says so; closing it twice does no harm."""
    ledger = open_ledger(ledger_url)
    with pytest.raises(LedgerError, match="not open"):
        await ask(ledger)
    async with ledger:
        with pytest.raises(LedgerError, match="already open"):
            await ledger.open()
    await ledger.aclose()
    with pytest.raises(LedgerError, match="not open"):
        await ledger.get("k-1")


def test_a_second_event_loop_is_told(ledger_url: str) -> None:
    """A ledger used from another event loop than its own says so, and goes on in its own."""
    ledger = open_ledger(ledger_url)
    with asyncio.Runner() as home:
        home.run(ledger.open())
        with asyncio.Runner() as other, pytest.raises(WrongLoopError, match="another event loop"):
            other.run(ledger.get("k-1"))
        home.run(ledger.aclose())


async def test_a_cancelled_caller_disturbs_nobody(ledger_url: str) -> None:
    """Of many who write at once, those who are cancelled leave the others' writes alone."""
    async with open_ledger(ledger_url) as ledger:
        tasks = [asyncio.create_task(ask(ledger, f"k-{number}")) for number in range(50)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.wait(tasks)
        assert all(task.cancelled() or task.result() for task in tasks[::2])
        assert [task.result().key for task in tasks[1::2]] == [f"k-{number}" for number in range(1, 50, 2)]
        assert set(await keys(ledger)) >= {f"k-{number}" for number in range(1, 50, 2)}


async def test_closing_keeps_what_was_written(ledger_url: str) -> None:
    """Entries are there after closing and opening again."""
    ledger = open_ledger(ledger_url)
    async with ledger:
        run = await running(ledger)
    async with ledger:
        assert await ledger.get("k-1") == run
        assert await ledger.by_task("kie", "task-k-1") == run
