"""Characters as Temporal workflows, on a real Temporal server."""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
import subprocess
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import AsyncMock, Mock, patch

import pytest

from sora_chars import CharacterRequest, CharacterSession, EntryState, FixedInterval, Kie, Kling, open_ledger
from sora_chars.testing import Emulator

pytest.importorskip("temporalio")

from temporalio.client import Client, WorkflowFailureError
from temporalio.exceptions import ActivityError
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import Worker

from sora_chars.contrib.temporal import WORKFLOW_ID, CharacterActivities, CharacterWorkflow, callback_signal

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

    from temporalio.client import WorkflowHandle

    from sora_chars import Entry

SERVER = shutil.which("temporal")
QUEUE = "characters"
REQUEST: Any = {"from_task": "7118f712" * 4, "clip": "1,3", "prompt": "A dog"}

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.xdist_group("temporal"),
    pytest.mark.skipif(SERVER is None, reason="the program `temporal` is not installed"),
]


@pytest.fixture(scope="module")
def address() -> Generator[str]:
    """Run a Temporal server in memory, and return its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ("--headless", "--ip", "127.0.0.1", "--port", str(port), "--log-level", "never")
    server = subprocess.Popen([str(SERVER), "server", "start-dev", *arguments], stdout=subprocess.DEVNULL)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
async def client(address: str) -> Client:
    """Return a client of the server, once the server has started."""
    while True:
        try:
            return await Client.connect(address)
        except RuntimeError:
            await asyncio.sleep(0.1)


@pytest.fixture
async def entry() -> Entry:
    """Return a registered entry."""
    async with open_ledger("memory:") as ledger:
        return await ledger.register(key="one", provider="kie", kind="character", request={})


@asynccontextmanager
async def serving(client: Client, emulator: Emulator, ledger: Path) -> AsyncGenerator[CharacterSession]:
    """Run a worker in this process, and give its session."""
    kie = Kie("key", base_url=emulator.url, limits=None)
    async with CharacterSession(kie, ledger=ledger, polling=FixedInterval(0.2)) as session:
        activities = CharacterActivities(session)
        async with Worker(client, task_queue=QUEUE, workflows=[CharacterWorkflow], activities=[activities.advance]):
            yield session


async def start(client: Client, key: str) -> WorkflowHandle[CharacterWorkflow, Any]:
    """Start the workflow of a registered key."""
    return await client.start_workflow(CharacterWorkflow.run, key, id=WORKFLOW_ID.format(key=key), task_queue=QUEUE)


async def test_a_workflow_returns_its_character(client: Client, tmp_path: Path) -> None:
    """A workflow ends with the character, and a signal that comes afterwards raises nothing."""
    async with Emulator(durations=(0.5, 0.5)) as emulator, serving(client, emulator, tmp_path / "l.db") as session:
        entry = await session.register(**REQUEST, key="one")
        workflow = await start(client, entry.key)
        result = await workflow.result()
        assert (result["state"], result["retry_in"], result["error"]) == ("succeeded", None, None)
        character = await session.create(**REQUEST, key="one")
        assert (result["character"]["id"], "raw" in result["character"]) == (character.id, False)
        assert await workflow.query(CharacterWorkflow.state) == "succeeded"
        await callback_signal(client)(None, entry)
        assert emulator.counts.creates == 1


async def test_the_page(client: Client, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker and the order on the page about workers run as they stand there."""
    page = (Path(__file__).parents[2] / "docs/workers.md").read_text().split("## Temporal")[1].split("\n## ")[0]
    program: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(block, "workers.md", "exec", dont_inherit=True), program)  # our own page
    async with Emulator(durations=(0.1, 0.1)) as emulator:
        monkeypatch.setenv("SORA_CHARS_EMULATOR", emulator.url)
        worker = asyncio.create_task(program["main"](str(tmp_path / "l.db"), address))
        async with CharacterSession(Kling(), ledger=tmp_path / "l.db") as session:
            assert await asyncio.wait_for(program["order"](session, client), 60)
        worker.cancel()
        await asyncio.wait((worker,))


async def test_a_callback_is_a_step(client: Client, tmp_path: Path) -> None:
    """The signal of a callback ends the durable timer; other faults of the server are raised."""
    async with Emulator(durations=(0.5, 0.5)) as emulator, serving(client, emulator, tmp_path / "l.db") as session:
        session.watcher.polling = FixedInterval(3600.0)
        entry = await session.register(**REQUEST, key="callback")
        workflow = await start(client, entry.key)
        await emulator.until(lambda: emulator.counts.creates == 1)
        await emulator.until(lambda: all(task.finished for task in emulator.tasks.values()))
        while await workflow.query(CharacterWorkflow.state) != "running":
            pass
        await callback_signal(client)(None, entry)
        assert (await workflow.result())["state"] == "succeeded"


async def test_a_server_that_is_gone(client: Client, entry: Entry) -> None:
    """A signal that did not reach the server raises, so that the provider delivers its callback again."""
    handle = AsyncMock()
    handle.signal.side_effect = RPCError("gone", RPCStatusCode.UNAVAILABLE, b"")
    with patch.object(client, "get_workflow_handle", Mock(return_value=handle)), pytest.raises(RPCError, match="gone"):
        await callback_signal(client)(None, entry)


async def test_other_ends_are_results(client: Client, tmp_path: Path) -> None:
    """A request that failed or whose response was lost is a result; a key that does not exist fails the workflow."""
    async with Emulator(durations=(0.1, 0.1)) as emulator, serving(client, emulator, tmp_path / "l.db") as session:
        for fault, state in (("fail_task", "failed"), ("lost_response", "unknown")):
            emulator.fault(fault, on="create", times=1)
            await session.register(**REQUEST, key=state)
            result = await (await start(client, state)).result()
            assert (result["state"], result["character"], bool(result["error"])) == (state, None, True)
        with pytest.raises(WorkflowFailureError) as caught:
            await (await start(client, "nosuch")).result()
        assert isinstance(caught.value.cause, ActivityError)
        assert "the ledger has no entry 'nosuch'" in str(caught.value.cause.cause)


def kill(process: asyncio.subprocess.Process) -> None:
    """Kill a process that has not ended."""
    if process.returncode is None:
        process.kill()


async def test_a_killed_worker_pays_nothing_twice(client: Client, address: str, tmp_path: Path) -> None:
    """Workflows go on when a worker is killed: each key is sent once, and ends."""
    worker = Path(__file__).with_name("temporal_worker.py")
    keys = [f"k{number}" for number in range(12)]
    async with Emulator(durations=(0.5, 1.0)) as emulator, AsyncExitStack() as stack:
        ledger = tmp_path / "l.db"

        async def run_worker() -> asyncio.subprocess.Process:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, str(worker), address, emulator.url, str(ledger)), stdout=asyncio.subprocess.PIPE
            )
            stack.push_async_callback(process.communicate)
            stack.callback(kill, process)
            assert process.stdout
            assert await process.stdout.readline() == b"ready\n"
            return process

        entries = await stack.enter_async_context(open_ledger(ledger))
        async with CharacterSession(Kie("key", base_url=emulator.url), ledger=ledger) as session:
            for key in keys:
                await session.register(CharacterRequest(**REQUEST, key=key))
        workflows = [await start(client, key) for key in keys]
        first = await run_worker()
        await emulator.until(lambda: emulator.counts.creates >= len(keys) // 2, timeout=60)
        first.kill()
        await run_worker()
        results = await asyncio.gather(*(workflow.result() for workflow in workflows))

        assert emulator.counts.creates <= len(keys)
        states = {result["state"] for result in results}
        assert states <= {"succeeded", "unknown"}
        assert [entry.state async for entry in entries.entries(states={EntryState.RUNNING, EntryState.PENDING})] == []
