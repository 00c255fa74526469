"""A ledger that was never closed releases its lock, its threads and its connections with its event loop."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
import warnings
from typing import TYPE_CHECKING, Any

import pytest

from sora_chars import EntryState, Ledger, open_ledger
from sora_chars.ledger.stores import postgres

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def caught(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[warnings.WarningMessage]]:
    """Collect the warnings of the test, in any thread."""
    monkeypatch.setattr(postgres, "OWNER_GRACE", 0.5)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield found


def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def threads() -> set[threading.Thread]:
    """Return the threads of the test's ledgers."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("sora_chars ledger")} - _EARLIER


_EARLIER: set[threading.Thread] = set()  # of ledgers of earlier tests


@pytest.fixture(autouse=True)
def _note_earlier_threads() -> None:
    _EARLIER.clear()
    _EARLIER.update(threads())


async def open_and_send(url: str) -> Ledger:
    """Open a ledger and record that a request is being sent."""
    ledger = open_ledger(url)
    await ledger.open()
    entry = await ledger.register(key="k-1", provider="kie", kind="character", request={})
    await ledger.transition(entry, EntryState.SENDING)
    return ledger


async def owner_is_dead(url: str) -> bool:
    """Return whether the owner of the entry has ended, as another process sees it."""
    async with open_ledger(url) as ledger:
        entry = await ledger.get("k-1")
        assert entry is not None
        return await ledger.is_dead(entry.owner or "")


def messages(caught: list[warnings.WarningMessage]) -> list[str]:
    """Return the warnings that a ledger was not closed."""
    return [str(one.message) for one in caught if "was not closed; it no longer owns" in str(one.message)]


def test_the_loop_ends(shared_url: str, caught: list[warnings.WarningMessage]) -> None:
    """After `asyncio.run` has ended, an open ledger that is still referenced owns nothing, and a warning names it."""
    ledger = asyncio.run(open_and_send(shared_url))
    until(lambda: bool(messages(caught)) and not threads())
    assert asyncio.run(owner_is_dead(shared_url))
    [message] = messages(caught)
    assert ("characters.db" if shared_url.startswith("sqlite") else "PostgreSQL") in message
    assert {one.category for one in caught if str(one.message) == message} == {ResourceWarning}
    assert ledger.is_open


def test_the_ledger_is_collected(shared_url: str, caught: list[warnings.WarningMessage]) -> None:
    """An open ledger that is no longer referenced owns nothing, although its loop was only closed."""
    loop = asyncio.new_event_loop()
    ledger = loop.run_until_complete(open_and_send(shared_url))
    loop.close()
    del ledger
    gc.collect()
    until(lambda: bool(messages(caught)) and not threads())
    assert asyncio.run(owner_is_dead(shared_url))
    del loop
    gc.collect()


def test_the_last_writes_are_recorded(shared_url: str, caught: list[warnings.WarningMessage]) -> None:
    """Tasks that the ending loop cancels can still record what they know."""

    async def record_when_cancelled(ledger: Ledger) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            entry = await ledger.get("k-1")
            assert entry is not None
            await ledger.transition(entry, EntryState.UNKNOWN, error={"message": "cancelled"})

    async def main() -> asyncio.Task[None]:
        recording = asyncio.create_task(record_when_cancelled(await open_and_send(shared_url)))
        await asyncio.sleep(0)
        return recording

    recording = asyncio.run(main())
    assert recording.done()
    until(lambda: bool(messages(caught)))

    async def read() -> Any:
        async with open_ledger(shared_url) as ledger:
            return await ledger.get("k-1")

    assert asyncio.run(read()).state is EntryState.UNKNOWN


async def test_a_cancelled_poller_releases_nothing(shared_url: str, caught: list[warnings.WarningMessage]) -> None:
    """While the loop runs, a ledger works on and closes as usual."""
    ledger = await open_and_send(shared_url)
    store: Any = ledger._store
    task: asyncio.Task[None] = store._polling if shared_url.startswith("sqlite") else store._listening
    task.cancel()
    await asyncio.wait((task,))
    assert await ledger.get("k-1")
    await ledger.aclose()
    until(lambda: not threads())
    assert messages(caught) == []


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # forking is the point
def test_a_forked_child_releases_nothing(shared_url: str) -> None:
    """A child that collects its copy of an open ledger leaves the parent's lock alone."""
    with asyncio.Runner() as runner:
        ledger = runner.run(open_and_send(shared_url))
        child = os.fork()
        if child == 0:
            try:
                ledger._store.abandon()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        other = open_ledger(shared_url)
        runner.run(other.open())
        assert not runner.run(other.is_dead(ledger.owner))
        runner.run(other.aclose())
        runner.run(ledger.aclose())


async def test_memory_keeps_its_entries(caught: list[warnings.WarningMessage]) -> None:
    """A ledger in memory has nothing to release."""
    ledger = await open_and_send("memory:")
    del ledger
    gc.collect()
    assert messages(caught) == []
