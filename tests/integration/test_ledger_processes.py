"""Several real processes that share a ledger."""

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
from sora_chars.ledger.stores import postgres

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

OWNER = """
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
async def run_script(code: str, *arguments: str) -> AsyncGenerator[Process]:
    """Run a script in its own process, and end it."""
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
        await process.stdout.read()  # until the children that it forked have ended too
        await process.wait()


async def line(process: Process) -> str:
    """Return the next line that the process prints."""
    assert process.stdout
    return (await asyncio.wait_for(process.stdout.readline(), 30)).decode().strip()


async def until_dead(ledger: Ledger, owner: str) -> None:
    """Wait until the ledger sees that an owner has ended."""
    async with asyncio.timeout(10):
        while not await ledger.is_dead(owner):  # noqa: ASYNC110 # PostgreSQL notices a closed connection later
            await asyncio.sleep(0.01)


async def test_concurrent_processes(shared_url: str) -> None:
    """Four processes that register the same 500 keys in a new ledger send each key exactly once."""
    async with AsyncExitStack() as stack:
        processes = [await stack.enter_async_context(run_script(RACER, shared_url)) for _ in range(4)]
        for process in processes:
            assert await line(process) == "ready"
        outs = await asyncio.gather(*(process.communicate(b"go\n") for process in processes))
        assert [process.returncode for process in processes] == [0] * 4
    won = [key for out, _ in outs for key in out.decode().split()]
    assert sorted(won) == sorted(f"k-{number}" for number in range(500))


async def test_killed_process_is_dead(shared_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry names its owner, which is alive while it runs or is stopped, and dead once it is killed."""
    monkeypatch.setattr(postgres, "OWNER_GRACE", 1.0)
    async with open_ledger(shared_url) as ledger, run_script(OWNER, shared_url) as process:
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
        await until_dead(ledger, owner)
        assert await ledger.is_dead(owner)


@pytest.mark.parametrize("shared_url", ["sqlite"], indirect=True)
async def test_forked_child_releases_the_lock(shared_url: str) -> None:
    """A killed process is dead even if a child that it forked still runs."""
    async with open_ledger(shared_url) as ledger, run_script(OWNER, shared_url, "fork") as process:
        owner = await line(process)
        assert not await ledger.is_dead(owner)
        process.kill()
        await until_dead(ledger, owner)


@pytest.mark.parametrize("shared_url", ["sqlite"], indirect=True)
async def test_removes_lock_files_of_dead_processes(shared_url: str) -> None:
    """Opening removes the lock file of a killed process and keeps those of living ones."""
    async with open_ledger(shared_url) as ledger, run_script(OWNER, shared_url) as process:
        dead = await line(process)
        process.kill()
        await process.wait()
        path = Path(shared_url.removeprefix("sqlite:///"))
        assert path.with_name(f"{path.name}-{dead}.lock").exists()
        async with open_ledger(shared_url) as other:
            locks = {file.name for file in path.parent.iterdir()} - {path.name, f"{path.name}-wal", f"{path.name}-shm"}
            assert locks == {f"{path.name}-{owner}.lock" for owner in (ledger.owner, other.owner)}


async def test_changes_wake_other_processes(shared_url: str) -> None:
    """A waiter is woken by a change of its own entry through another opening, and by no other."""
    async with open_ledger(shared_url) as ours, open_ledger(shared_url) as theirs:
        entries = [await ours.register(key=f"k-{n}", provider="kie", kind="character", request={}) for n in range(3)]
        waits = [asyncio.create_task(ours.changed(entry, timeout=30)) for entry in entries]
        for entry, wait in list(zip(entries, waits, strict=True))[:2]:
            sending = await theirs.transition(entry, EntryState.SENDING)
            assert await wait == sending
        assert not waits[2].done()
        again = asyncio.create_task(ours.changed(await waits[0], timeout=30))
        unknown = await theirs.transition(await waits[0], EntryState.UNKNOWN)
        assert await again == unknown
        waits[2].cancel()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # forking is the point
def test_rejects_a_forked_child(shared_url: str) -> None:
    """A forked child cannot use its parent's ledger; the parent still can."""
    ledger = open_ledger(shared_url)
    with asyncio.Runner() as runner:
        runner.run(ledger.open())
        child = os.fork()
        if child == 0:
            status = 1
            try:
                runner.run(ledger.get("k-1"))
            except WrongLoopError as error:
                status = 0 if "before this process was forked" in str(error) else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert runner.run(ledger.get("k-1")) is None
        assert not runner.run(ledger.is_dead(ledger.owner))
        runner.run(ledger.aclose())
