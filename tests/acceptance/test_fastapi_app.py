"""A FastAPI application that creates characters, served by uvicorn in its own process."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from sora_chars.testing import Emulator

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

REQUEST = {"from_task": "a" * 32, "clip": "1,3", "prompt": "A dog"}
KEYS = {"KIE_API_KEY": "key", "KIE_HMAC_KEY": "whsec"}


@pytest.fixture
async def emulator() -> AsyncGenerator[Emulator]:
    """Run an emulator of kie.ai that signs callbacks, and whose tasks take one second."""
    async with Emulator(durations=(1, 1), kie_key=KEYS["KIE_API_KEY"], hmac_key=KEYS["KIE_HMAC_KEY"]) as emulator:
        yield emulator


@pytest.fixture
async def app(emulator: Emulator) -> AsyncGenerator[httpx.AsyncClient]:
    """Run the application in its own process; SIGTERM ends it, and it logs rejected callbacks only."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "error", "-m", "uvicorn", "app_fastapi:app"),
            *("--fd", str(listening.fileno()), "--log-level", "warning"),
            cwd=Path(__file__).parent,
            env=os.environ | KEYS | {"KIE_BASE_URL": emulator.url, "PUBLIC_URL": url},
            pass_fds=[listening.fileno()],
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        yield client
    process.send_signal(signal.SIGTERM)
    output, _ = await process.communicate()
    assert process.returncode in {0, -signal.SIGTERM}  # uvicorn raises the signal again after a clean shutdown
    assert all(line.startswith("A callback was rejected") for line in output.decode().splitlines())


async def test_character_by_callback(app: httpx.AsyncClient, emulator: Emulator) -> None:
    """A client gets its character when the signed callback has reached the application."""
    response = await app.post("/characters", json=REQUEST)
    assert response.status_code == 200
    made = response.json()
    task = emulator.tasks[made["task_id"]]
    assert made["id"] in str(task.result_json)
    assert made["woken_by"] == "callback"
    assert [delivery.status for delivery in task.deliveries] == [200]
    assert task.polls == 1


async def test_several_at_once(app: httpx.AsyncClient) -> None:
    """Five concurrent clients get five different characters."""
    responses = await asyncio.gather(*(app.post("/characters", json=REQUEST) for _ in range(5)))
    assert len({response.json()["id"] for response in responses}) == 5


async def test_errors_are_responses(app: httpx.AsyncClient, emulator: Emulator) -> None:
    """An invalid request, a failed task and a rejection by kie.ai have their own HTTP statuses."""
    response = await app.post("/characters", json=REQUEST | {"clip": "1,9"})
    assert (response.status_code, "clip" in response.text) == (422, True)
    emulator.fault("fail_task", message="too dark")
    response = await app.post("/characters", json=REQUEST)
    assert (response.status_code, "too dark" in response.text) == (502, True)
    emulator.fault("credits", on="create")
    response = await app.post("/characters", json=REQUEST)
    assert (response.status_code, "402" in response.text) == (502, True)


async def test_guessed_callback_path(app: httpx.AsyncClient) -> None:
    """A callback to a guessed path is rejected with 401."""
    assert (await app.post("/hooks/kie/guess", json={"taskId": "x"})).status_code == 401
