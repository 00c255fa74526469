"""Several processes on one ledger: each request is sent once, and every process gets its result."""

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

pytestmark = pytest.mark.timeout(180)  # starting processes is slow on a busy machine

KEYS = 200

CREATOR = """
import asyncio, json, sys
from sora_chars import CharacterSession, FixedInterval, Kie

async def main(url, ledger, *keys):
    kie = Kie("key", base_url=url, limits=None)
    async with CharacterSession(kie, ledger=ledger, polling=FixedInterval(0.05)) as session:
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
    """Run a process, and kill it at the end of the block."""
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


async def start(started: Process) -> None:
    """Let a process start to create."""
    assert started.stdin
    started.stdin.write(b"go\n")
    await started.stdin.drain()


async def entry_in(ledger: Ledger, state: EntryState, *, not_owned_by: str = "") -> Entry:
    """Wait until key k-0 is in a state."""
    async with asyncio.timeout(30):
        while True:
            entry = await ledger.get("k-0")
            if entry and entry.state is state and entry.owner != not_owned_by:
                return entry
            await asyncio.sleep(0.01)


@pytest.fixture
async def emulator() -> AsyncGenerator[Emulator]:
    """Run an emulator in this process, whose tasks take up to 0.3 seconds."""
    async with Emulator(durations=(0.05, 0.3)) as running:
        yield running


async def test_four_processes_create_each_key_once(shared_url: str, emulator: Emulator) -> None:
    """Four processes that create the same keys at the same time get the same characters, each created once."""
    keys = [f"k-{number}" for number in range(KEYS)]
    async with AsyncExitStack() as stack:
        started = (
            process(CREATOR, emulator.url, shared_url, *keys),
            *(process(CREATOR, emulator.url, shared_url, *keys) for _ in range(3)),
        )
        processes = [await stack.enter_async_context(each) for each in started]
        owners = [await line(each) for each in processes]
        assert len(set(owners)) == len(processes)
        await asyncio.gather(*map(start, processes))
        results = [json.loads(await line(each)) for each in processes]
    assert emulator.counts.creates == len(emulator.tasks) == KEYS
    assert sorted(results[0]) == sorted(keys)
    assert len(set(results[0].values())) == KEYS
    assert results == [results[0]] * 4


async def test_another_process_takes_over(shared_url: str, emulator: Emulator) -> None:
    """When the process that polls a task is killed, another process that waits for it polls it to the end."""
    emulator.fault("stuck")
    async with (
        open_ledger(shared_url) as ledger,
        process(CREATOR, emulator.url, shared_url, "k-0") as first,
        process(CREATOR, emulator.url, shared_url, "k-0") as second,
    ):
        owner = await line(first)
        heir = await line(second)
        await start(first)
        entry = await entry_in(ledger, EntryState.RUNNING)
        assert (entry.owner, len(emulator.tasks)) == (owner, 1)
        await start(second)
        first.kill()
        entry = await entry_in(ledger, EntryState.RUNNING, not_owned_by=owner)
        assert entry.owner == heir
        assert entry.task_id
        emulator.finish(entry.task_id)
        assert list(json.loads(await line(second))) == ["k-0"]
    assert emulator.counts.creates == 1


async def test_stopped_poller_causes_no_second_create(shared_url: str, emulator: Emulator) -> None:
    """While the polling process is stopped nothing is sent again; both waits end when it continues."""
    emulator.fault("stuck")
    async with (
        open_ledger(shared_url) as ledger,
        process(CREATOR, emulator.url, shared_url, "k-0") as first,
        process(CREATOR, emulator.url, shared_url, "k-0") as second,
    ):
        await line(first)
        await line(second)
        await start(first)
        entry = await entry_in(ledger, EntryState.RUNNING)
        first.send_signal(signal.SIGSTOP)
        await start(second)
        assert entry.task_id
        emulator.finish(entry.task_id)
        first.send_signal(signal.SIGCONT)
        results = [json.loads(await line(each)) for each in (first, second)]
    assert results[0] == results[1]
    assert emulator.counts.creates == 1


async def test_stopped_sender_is_waited_for(shared_url: str, emulator: Emulator) -> None:
    """A second process waits for a sender that is stopped, and does not send the request again."""
    emulator.fault("delay", on="create", seconds=0.5)
    async with (
        open_ledger(shared_url) as ledger,
        process(CREATOR, emulator.url, shared_url, "k-0") as first,
        process(CREATOR, emulator.url, shared_url, "k-0") as second,
    ):
        owner = await line(first)
        await line(second)
        await start(first)
        await emulator.until(lambda: emulator.counts.creates)
        first.send_signal(signal.SIGSTOP)
        entry = await entry_in(ledger, EntryState.SENDING)
        assert entry.owner == owner
        await start(second)
        with pytest.raises(TimeoutError):  # longer than the interval at which a waiter checks its sender
            await asyncio.wait_for(asyncio.shield(second.wait()), 2.5)
        assert await ledger.get("k-0") == entry
        first.send_signal(signal.SIGCONT)
        results = [json.loads(await line(each)) for each in (first, second)]
    assert results[0] == results[1]
    assert emulator.counts.creates == 1


async def test_writes_after_another_process_closed_are_visible(shared_url: str) -> None:
    """A third process reads what the first writes after a second one has closed the same ledger."""
    async with open_ledger(shared_url) as ledger:
        for number in range(2):
            await ledger.register(key=f"k-{number}", provider="kie", kind="character", request={})
            assert await ledger.get(f"k-{number}")  # through another connection than the one that wrote
            async with process(OTHER, shared_url) as other:
                assert await line(other) == str([f"k-{n}" for n in range(number + 1)])
                await other.wait()
