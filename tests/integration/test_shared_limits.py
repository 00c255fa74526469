"""Rate limits against a strict server: with network delays, and shared by several processes."""

from __future__ import annotations

import asyncio
import random
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from sora_chars import CharacterSession, FixedInterval, Kie, Limits
from sora_chars.testing import Emulator
from sora_chars.testing.proxy import FaultProxy

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncGenerator

    from sora_chars.testing.proxy import ProxiedRequest, Step

REQUEST: dict[str, Any] = {"from_task": "7118f712" * 4, "clip": "1,3", "prompt": "A dog"}

WORKER = """
import asyncio, sys
from sora_chars import CharacterSession, FixedInterval, Kie, Limits

async def main(url, ledger, speed, name, count):
    limits = Limits(creates=(20, 10 / float(speed)))
    provider = Kie("key", base_url=url, limits=limits)
    async with CharacterSession(provider, ledger=ledger, polling=FixedInterval(1000.0)) as session:
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        request = {"from_task": "7118f712" * 4, "clip": "1,3", "prompt": "A dog"}
        await asyncio.gather(*(session.submit(**request, key=f"{name} {number}") for number in range(int(count))))

asyncio.run(main(*sys.argv[1:]))
"""


@asynccontextmanager
async def worker(*arguments: object) -> AsyncGenerator[Process]:
    """Run a worker process and wait until it is ready."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-c", WORKER, *map(str, arguments)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout
    try:
        assert await process.stdout.readline() == b"ready\n"
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.mark.parametrize("seed", range(2))
async def test_delayed_requests_stay_under_limit(seed: int) -> None:
    """Requests and responses delayed by up to a whole window stay within the limits of the server."""
    rng = random.Random(seed)
    speed = 100.0
    delays: dict[Step, float] = {"forward_head": 10 / speed, "return_half": 3 / speed}

    async def on_step(step: Step, request: ProxiedRequest) -> None:
        del request
        if step in delays and rng.random() < 0.5:
            await asyncio.sleep(rng.uniform(0, delays[step]))

    async with (
        Emulator(speed=speed, strict_limits=True) as emulator,
        FaultProxy(emulator.url, on_step=on_step) as proxy,
        CharacterSession(
            Kie("key", base_url=proxy.url, limits=Limits(creates=(20, 10 / speed))), polling=FixedInterval(1000.0)
        ) as session,
    ):
        await asyncio.gather(*(session.submit(**REQUEST) for _ in range(100)))
    assert (emulator.counts.creates, emulator.counts.rate_limited) == (100, {})


@pytest.mark.parametrize("form", ["http_429", "body_429"])
async def test_429_pauses_all_sessions_until_probe(form: str) -> None:
    """After a 429 in either form no session of the process sends until one probe succeeds."""
    sent: list[int] = []

    async def on_step(step: Step, request: ProxiedRequest) -> None:
        del request
        if step == "return_half" and proxy.steps["POST", step] == 2:
            await asyncio.sleep(0.3)  # time in which other requests would arrive
            sent.append(proxy.steps["POST", "forward_head"])

    async with AsyncExitStack() as stack:
        emulator = await stack.enter_async_context(Emulator())
        proxy = await stack.enter_async_context(FaultProxy(emulator.url, on_step=on_step))
        providers = [Kie("key", base_url=proxy.url, limits=None) for _ in range(2)]
        sessions = [
            await stack.enter_async_context(CharacterSession(provider, polling=FixedInterval(1000.0)))
            for provider in providers
        ]
        fault = emulator.fault(form, on="create")
        first = asyncio.create_task(sessions[0].submit(**REQUEST))
        account = providers[1].account
        assert account
        await emulator.until(lambda: account.cooldown.consecutive_429s)
        await asyncio.gather(first, *(session.submit(**REQUEST) for session in sessions for _ in range(4)))
    assert (fault.hits, emulator.counts.creates, sent) == (1, 9, [2])


async def test_processes_share_limit(postgres_url: str) -> None:
    """Four processes send 75 creates each, and together stay under the limit of one account."""
    speed = 40.0
    async with Emulator(speed=speed, strict_limits=True) as emulator, AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(worker(emulator.url, postgres_url, speed, name, 75)) for name in "abcd"
        ]
        await asyncio.gather(*(process.communicate(b"go\n") for process in workers))
        assert [process.returncode for process in workers] == [0] * 4
    assert (emulator.counts.creates, emulator.counts.rate_limited) == (300, {})
