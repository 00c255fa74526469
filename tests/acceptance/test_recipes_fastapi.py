"""The FastAPI application of the page about workers, in several processes on one ledger."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from sora_chars.testing import Emulator
from tests.support.recipes import blocks, running

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

pytestmark = pytest.mark.timeout(180)

FIELDS: dict[str, Any] = {"from_task": "a" * 32, "clip": "1,3", "prompt": "A dog"}
WORKER = """
@app.middleware("http")
async def name_worker(request, call_next):
    response = await call_next(request)
    response.headers["X-Worker"] = str(os.getpid())
    return response
"""
SLOW_POLLS = """
from sora_chars import FixedInterval
session.watcher.polling = FixedInterval(3600.0)
"""


def write(folder: Path, *, more: str) -> None:
    """Write the application of the page, with more code at its end."""
    (folder / "app.py").write_text("\n".join((*blocks("FastAPI with several workers"), more)))


def serving(
    folder: Path, listening: socket.socket, environment: Mapping[str, str], *options: str
) -> AbstractAsyncContextManager[Any]:
    """Run uvicorn on a socket that listens already, so that clients may connect before it has started."""
    command = ("-m", "uvicorn", "app:app", "--fd", str(listening.fileno()), "--log-level", "warning", *options)
    return running(folder, command, environment, listening=listening)


def url_of(listening: socket.socket) -> str:
    """Return the URL of a server on a socket."""
    return f"http://127.0.0.1:{listening.getsockname()[1]}"


async def get(url: str) -> dict[str, str]:
    """Wait for a character as a client does, which repeats its call when it was not ready or the worker has ended."""
    async with httpx.AsyncClient(timeout=60) as client:
        while True:
            try:
                response = await client.get(url)
            except httpx.TransportError:
                continue
            if response.status_code != 504:
                found: dict[str, str] = response.json()
                assert response.status_code == 200, found
                return found


async def test_a_callback_in_another_worker(shared_url: str, tmp_path: Path) -> None:
    """A callback that reaches the second worker resumes the awaiters of the third; the task is polled once."""
    write(tmp_path, more=SLOW_POLLS)
    async with AsyncExitStack() as stack:
        emulator = await stack.enter_async_context(Emulator(durations=(600, 600)))
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        urls = [url_of(listening) for listening in sockets]
        environment = {"DATABASE_URL": shared_url, "PUBLIC_URL": urls[1], "SORA_CHARS_EMULATOR": emulator.url}
        for listening in sockets:
            await stack.enter_async_context(serving(tmp_path, listening, environment))
        async with httpx.AsyncClient(timeout=60) as client:
            put = await client.put(f"{urls[0]}/orders/17/character", json=FIELDS)
            assert (await client.put(f"{urls[2]}/orders/17/character", json=FIELDS)).json() == put.json()
            assert (
                await client.put(f"{urls[2]}/orders/18/character", json={"video": "/etc/passwd"})
            ).status_code == 422
            assert (await client.get(f"{urls[2]}/orders/18/character")).status_code == 404
        waiting = [asyncio.create_task(get(f"{url}/orders/17/character")) for url in urls for _ in range(3)]
        emulator.finish(put.json()["task"])
        found = await asyncio.gather(*waiting)
        task = emulator.tasks[put.json()["task"]]
        assert len({one["id"] for one in found}) == 1
        assert (emulator.counts.creates, task.polls, [one.status for one in task.deliveries]) == (1, 1, [200])


async def test_a_killed_worker_is_replaced(postgres_url: str, tmp_path: Path) -> None:
    """One of uvicorn's four workers is killed: every order gets its character, and is paid once."""
    write(tmp_path, more=WORKER)
    async with AsyncExitStack() as stack:
        emulator = await stack.enter_async_context(Emulator(durations=(2, 3)))
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        url = url_of(listening)
        environment = {"DATABASE_URL": postgres_url, "PUBLIC_URL": url, "SORA_CHARS_EMULATOR": emulator.url}
        await stack.enter_async_context(serving(tmp_path, listening, environment, "--workers", "4"))
        client = await stack.enter_async_context(httpx.AsyncClient(timeout=60))
        orders = [f"{url}/orders/{number}/character" for number in range(8)]
        puts = await asyncio.gather(*(client.put(order, json=FIELDS) for order in orders))
        assert {put.status_code for put in puts} == {202}
        os.kill(int(puts[0].headers["X-Worker"]), signal.SIGKILL)
        found = await asyncio.gather(*(get(order) for order in orders))
        assert len({one["id"] for one in found}) == 8
        assert emulator.counts.creates == 8
