"""Several processes on one ledger: what they ask for together is made once, and each of them gets it."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from sora_chars import EntryState, open_ledger
from sora_chars.testing import Emulator

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncGenerator

    from sora_chars import Entry, Ledger

pytestmark = pytest.mark.timeout(180)  # processes take their time on a busy machine

KEYS = 200

CREATOR = """
import asyncio, json, sys
from sora_chars import CharacterSession, FixedInterval, Kie

async def main(url, ledger, *keys):
    async with CharacterSession(Kie("key", base_url=url, limits=None), ledger=ledger, polling=FixedInterval(0.05)) as session:
        async def create(key):
            character = await session.create(from_task="7118f712" * 4, clip="1,3", prompt="A dog", key=key, timeout=150)
            return character.id
        print(session.ledger.owner, flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        print(json.dumps(dict(zip(keys, await asyncio.gather(*map(create, keys))))))

asyncio.run(main(*sys.argv[1:]))
"""

OTHER = """
import asyncio, sys
from sora_chars import open_ledger

async def main():
    async with open_ledger(sys.argv[1]) as ledger:
        print([entry.key async for entry in ledger.entries()])

asyncio.run(main())
"""


@asynccontextmanager
async def process(code: str, *arguments: str) -> AsyncGenerator[Process]:
    """Run a process, and see that it ends."""
    pipe = asyncio.subprocess.PIPE
    started = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-c", code, *arguments), stdin=pipe, stdout=pipe
    )
    try:
        yield started
    finally:
        if started.returncode is None:
            started.kill()
        await started.communicate()


async def line(started: Process) -> str:
    """Return the next line that a process prints."""
    assert started.stdout
    return (await asyncio.wait_for(started.stdout.readline(), 120)).decode().strip()


async def go(started: Process) -> None:
    """Let a creator begin."""
    assert started.stdin
    started.stdin.write(b"go\n")
    await started.stdin.drain()


async def entry_in(ledger: Ledger, state: EntryState, *, not_held_by: str = "") -> Entry:
    """Wait until key k-0 is in a state."""
    async with asyncio.timeout(30):
        while True:
            entry = await ledger.get("k-0")
            if entry and entry.state is state and entry.owner != not_held_by:
                return entry
            await asyncio.sleep(0.01)


@pytest.fixture
async def emulator() -> AsyncGenerator[Emulator]:
    """An emulator in this process, whose tasks end when the test ends them or soon."""
    async with Emulator(durations=(0.05, 0.3)) as running:
        yield running


async def test_four_processes_make_each_key_once(shared_url: str, emulator: Emulator) -> None:
    """Four processes that want the same keys in the same instant get the same characters, each made once."""
    keys = [f"k-{number}" for number in range(KEYS)]
    async with AsyncExitStack() as stack:
        code = (
            process(CREATOR, emulator.url, shared_url, *keys),
            *(process(CREATOR, emulator.url, shared_url, *keys) for _ in range(3)),
        )
        crew = [await stack.enter_async_context(one) for one in code]
        owners = [await line(one) for one in crew]
        assert len(set(owners)) == len(crew)
        await asyncio.gather(*map(go, crew))
        results = [json.loads(await line(one)) for one in crew]
    assert emulator.counts.creates == len(emulator.tasks) == KEYS
    assert sorted(results[0]) == sorted(keys)
    assert len(set(results[0].values())) == KEYS
    assert results == [results[0]] * 4


async def test_another_process_takes_over(shared_url: str, emulator: Emulator) -> None:
    """When the process that polls a task is killed, another one that waits for it polls on to the end."""
    emulator.fault("stuck")
    async with (
        open_ledger(shared_url) as ledger,
        process(CREATOR, emulator.url, shared_url, "k-0") as first,
        process(CREATOR, emulator.url, shared_url, "k-0") as second,
    ):
        owner, heir = await line(first), await line(second)
        await go(first)
        entry = await entry_in(ledger, EntryState.RUNNING)
        assert (entry.owner, len(emulator.tasks)) == (owner, 1)
        await go(second)
        first.kill()
        entry = await entry_in(ledger, EntryState.RUNNING, not_held_by=owner)
        assert entry.owner == heir
        assert entry.task_id
        emulator.finish(entry.task_id)
        assert list(json.loads(await line(second))) == ["k-0"]
    assert emulator.counts.creates == 1


async def test_a_stopped_poller_creates_nothing_twice(shared_url: str, emulator: Emulator) -> None:
    """While the process that polls is stopped nothing is made again, and both waiters end once it goes on."""
    emulator.fault("stuck")
    async with (
        open_ledger(shared_url) as ledger,
        process(CREATOR, emulator.url, shared_url, "k-0") as first,
        process(CREATOR, emulator.url, shared_url, "k-0") as second,
    ):
        await line(first)
        await line(second)
        await go(first)
        entry = await entry_in(ledger, EntryState.RUNNING)
        first.send_signal(signal.SIGSTOP)
        await go(second)
        assert entry.task_id
        emulator.finish(entry.task_id)
        first.send_signal(signal.SIGCONT)
        results = [json.loads(await line(one)) for one in (first, second)]
    assert results[0] == results[1]
    assert emulator.counts.creates == 1


async def test_a_stopped_sender_is_waited_for(shared_url: str, emulator: Emulator) -> None:
    """A process that is stopped while it sends is waited for by whoever asks for the same, and nobody sends again."""
    emulator.fault("delay", on="create", seconds=0.5)
    async with (
        open_ledger(shared_url) as ledger,
        process(CREATOR, emulator.url, shared_url, "k-0") as first,
        process(CREATOR, emulator.url, shared_url, "k-0") as second,
    ):
        owner, _ = await line(first), await line(second)
        await go(first)
        await emulator.until(lambda: emulator.counts.creates)
        first.send_signal(signal.SIGSTOP)
        entry = await entry_in(ledger, EntryState.SENDING)
        assert entry.owner == owner
        await go(second)
        with pytest.raises(TimeoutError):  # longer than the looks of a waiter whether the sender lives
            await asyncio.wait_for(asyncio.shield(second.wait()), 2.5)
        assert await ledger.get("k-0") == entry
        first.send_signal(signal.SIGCONT)
        results = [json.loads(await line(one)) for one in (first, second)]
    assert results[0] == results[1]
    assert emulator.counts.creates == 1


async def test_what_the_first_writes_after_another_closed_is_kept(shared_url: str) -> None:
    """What a process writes after another one has opened and closed the same ledger is seen by a third."""
    async with open_ledger(shared_url) as ledger:
        for number in range(2):
            await ledger.register(key=f"k-{number}", provider="kie", kind="character", request={})
            assert await ledger.get(f"k-{number}")  # through another connection than the one that wrote
            async with process(OTHER, shared_url) as other:
                assert await line(other) == str([f"k-{n}" for n in range(number + 1)])
                await other.wait()
