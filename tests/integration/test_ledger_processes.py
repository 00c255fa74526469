"""Several real processes on one ledger."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sora_chars import EntryState, WrongLoopError, open_ledger

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncGenerator

    from sora_chars import Ledger

RACER = """
import asyncio, contextlib, sys
from sora_chars import StaleEntryError, EntryState, open_ledger

async def race(ledger, key):
    entry = await ledger.register(key=key, provider="kie", kind="character", request={})
    if entry.state is EntryState.PENDING:
        with contextlib.suppress(StaleEntryError):
            await ledger.transition(entry, EntryState.SENDING)
            print(key)

async def main():
    async with open_ledger(sys.argv[1]) as ledger:
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        await asyncio.gather(*(race(ledger, f"k-{number}") for number in range(500)))

asyncio.run(main())
"""

HOLDER = """
import asyncio, os, sys
from sora_chars import EntryState, open_ledger

async def main():
    async with open_ledger(sys.argv[1]) as ledger:
        entry = await ledger.register(key="k-1", provider="kie", kind="character", request={})
        await ledger.transition(entry, EntryState.SENDING)
        if len(sys.argv) > 2 and os.fork() == 0:
            sys.stdin.read()  # as long as the test's end of the pipe is open
            os._exit(0)
        print(ledger.owner, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@asynccontextmanager
async def worker(code: str, *arguments: str) -> AsyncGenerator[Process]:
    """Run a worker, and see that it ends."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "ignore", "-c", code, *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        assert process.stdin
        assert process.stdout
        process.stdin.close()
        await process.stdout.read()  # until the last child that it forked has ended, too
        await process.wait()


async def line(process: Process) -> str:
    """Return the next line that a worker prints."""
    assert process.stdout
    return (await asyncio.wait_for(process.stdout.readline(), 30)).decode().strip()


async def seen_gone(ledger: Ledger, owner: str) -> None:
    """Wait until a owner is known to be gone."""
    async with asyncio.timeout(10):
        while not await ledger.is_dead(owner):  # noqa: ASYNC110 # a server takes a moment to see who hung up
            await asyncio.sleep(0.01)


async def test_of_four_processes_one_sends(shared_url: str) -> None:
    """Four processes that open a new ledger and ask for the same 500 keys at once send each key exactly once."""
    async with AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(worker(RACER, shared_url)) for _ in range(4)]
        for process in workers:
            assert await line(process) == "ready"
        outs = await asyncio.gather(*(process.communicate(b"go\n") for process in workers))
        assert [process.returncode for process in workers] == [0] * 4
    won = [key for out, _ in outs for key in out.decode().split()]
    assert sorted(won) == sorted(f"k-{number}" for number in range(500))


async def test_a_killed_process_is_gone(shared_url: str) -> None:
    """A process is not gone while it lives or is stopped, and is once it was killed; its entry names it."""
    async with open_ledger(shared_url) as ledger, worker(HOLDER, shared_url) as process:
        owner = await line(process)
        entry = await ledger.get("k-1")
        assert entry is not None
        assert (entry.state, entry.owner) == (EntryState.SENDING, owner)
        assert not await ledger.is_dead(owner)
        process.send_signal(signal.SIGSTOP)
        assert not await ledger.is_dead(owner)
        process.send_signal(signal.SIGCONT)
        assert not await ledger.is_dead(owner)
        process.kill()
        await seen_gone(ledger, owner)
        assert await ledger.is_dead(owner)


@pytest.mark.parametrize("shared_url", ["sqlite"], indirect=True)
async def test_a_forked_child_does_not_keep_its_parent_alive(shared_url: str) -> None:
    """A killed process is gone although a child that it forked lives on."""
    async with open_ledger(shared_url) as ledger, worker(HOLDER, shared_url, "fork") as process:
        owner = await line(process)
        assert not await ledger.is_dead(owner)
        process.kill()
        await seen_gone(ledger, owner)


@pytest.mark.parametrize("shared_url", ["sqlite"], indirect=True)
async def test_what_the_dead_left_is_cleared(shared_url: str) -> None:
    """The lock file of a killed process is removed by the next who opens the ledger, those of the living stay."""
    async with open_ledger(shared_url) as ledger, worker(HOLDER, shared_url) as process:
        dead = await line(process)
        process.kill()
        await process.wait()
        path = Path(shared_url.removeprefix("sqlite:///"))
        assert path.with_name(f"{path.name}-{dead}.lock").exists()
        async with open_ledger(shared_url) as other:
            locks = {file.name for file in path.parent.iterdir()} - {path.name, f"{path.name}-wal", f"{path.name}-shm"}
            assert locks == {f"{path.name}-{owner}.lock" for owner in (ledger.owner, other.owner)}


async def test_a_move_in_one_process_wakes_another(shared_url: str) -> None:
    """Whoever waits through one opening hears of moves through another, each of those who wait of its own entry."""
    async with open_ledger(shared_url) as ours, open_ledger(shared_url) as theirs:
        entries = [await ours.register(key=f"k-{n}", provider="kie", kind="character", request={}) for n in range(3)]
        waits = [asyncio.create_task(ours.changed(entry, timeout=30)) for entry in entries]
        for entry, wait in list(zip(entries, waits, strict=True))[:2]:
            moved = await theirs.transition(entry, EntryState.SENDING)
            assert await wait == moved
        assert not waits[2].done()
        again = asyncio.create_task(ours.changed(await waits[0], timeout=30))
        moved = await theirs.transition(await waits[0], EntryState.UNKNOWN)
        assert await again == moved
        waits[2].cancel()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # forking is the point
def test_a_fork_is_told(shared_url: str) -> None:
    """A child that goes on with its parent's ledger, in its parent's loop, is told so; the parent's goes on."""
    ledger = open_ledger(shared_url)
    with asyncio.Runner() as runner:
        runner.run(ledger.open())
        child = os.fork()
        if child == 0:
            ended = 1
            try:
                runner.run(ledger.get("k-1"))
            except WrongLoopError as error:
                ended = 0 if "before this process was forked" in str(error) else 2
            finally:
                os._exit(ended)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert runner.run(ledger.get("k-1")) is None
        assert not runner.run(ledger.is_dead(ledger.owner))
        runner.run(ledger.aclose())
