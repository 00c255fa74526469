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

WISH = {"from_task": "a" * 32, "clip": "1,3", "prompt": "A dog"}
KEYS = {"KIE_API_KEY": "key", "KIE_HMAC_KEY": "whsec"}


@pytest.fixture
async def emulator() -> AsyncGenerator[Emulator]:
    """Run kie.ai, with a key that signs callbacks and tasks of a second."""
    async with Emulator(durations=(1, 1), kie_key=KEYS["KIE_API_KEY"], hmac_key=KEYS["KIE_HMAC_KEY"]) as emulator:
        yield emulator


@pytest.fixture
async def app(emulator: Emulator) -> AsyncGenerator[httpx.AsyncClient]:
    """Start the app as a process of its own; stopped by SIGTERM it ends cleanly; it says nothing but refusals."""
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
    assert process.returncode in {0, -signal.SIGTERM}  # uvicorn raises the signal anew after a clean shutdown
    assert set(output.decode().split()) <= {"callback.rejected"}


async def test_character_by_callback(app: httpx.AsyncClient, emulator: Emulator) -> None:
    """A client gets its character as soon as kie.ai's signed callback has reached the app."""
    answer = await app.post("/characters", json=WISH)
    assert answer.status_code == 200
    made = answer.json()
    task = emulator.tasks[made["task_id"]]
    assert made["id"] in str(task.result_json)
    assert made["woken_by"] == "callback"
    assert [delivery.status for delivery in task.deliveries] == [200]
    assert task.polls == 1


async def test_several_at_once(app: httpx.AsyncClient) -> None:
    """Clients that wait at the same time get each their own."""
    answers = await asyncio.gather(*(app.post("/characters", json=WISH) for _ in range(5)))
    assert len({answer.json()["id"] for answer in answers}) == 5


async def test_errors(app: httpx.AsyncClient, emulator: Emulator) -> None:
    """A wish beyond the limits, a failed task and a refusal by kie.ai each become an answer."""
    answer = await app.post("/characters", json=WISH | {"clip": "1,9"})
    assert (answer.status_code, "clip" in answer.text) == (422, True)
    emulator.fault("fail_task", message="too dark")
    answer = await app.post("/characters", json=WISH)
    assert (answer.status_code, "too dark" in answer.text) == (502, True)
    emulator.fault("credits", on="create")
    answer = await app.post("/characters", json=WISH)
    assert (answer.status_code, "402" in answer.text) == (502, True)


async def test_forged_callback(app: httpx.AsyncClient) -> None:
    """Whoever guesses at the callback's address is turned away."""
    assert (await app.post("/hooks/kie/guess", json={"taskId": "x"})).status_code == 401
