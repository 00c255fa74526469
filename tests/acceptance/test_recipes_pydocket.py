"""The pydocket worker of the page about workers, as real processes on a Redis-compatible server."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest

from sora_chars import CharacterRequest
from sora_chars.testing import Emulator
from tests.support.recipes import KEYS, blocks, check_paid_once, kill_all, running

docket = pytest.importorskip("docket")

if TYPE_CHECKING:
    from pathlib import Path

    from sora_chars import CharacterSession

pytestmark = pytest.mark.timeout(180)

FIELDS: dict[str, Any] = {"video": "https://example.com/dog.mp4", "name": "Rex", "prompt": "A friendly dog"}
RUN = """
import asyncio
asyncio.run(main())
"""


async def test_a_killed_worker_pays_nothing_twice(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Orders go on when a worker is killed; a registered request without a task is swept up."""
    worker, order = blocks("pydocket")
    worker = worker.replace("seconds=30", "seconds=2").replace("session.due()", "session.due(idle=1)")
    (tmp_path / "worker.py").write_text(worker + order + RUN)
    async with AsyncExitStack() as stack:
        emulator = await stack.enter_async_context(Emulator(durations=(1, 2)))
        environment = {
            "DATABASE_URL": f"sqlite:///{tmp_path}/characters.db",
            "REDIS_URL": redis_url,
            "SORA_CHARS_EMULATOR": emulator.url,
        }
        for name, value in (KEYS | environment).items():
            monkeypatch.setenv(name, value)
        program: dict[str, Any] = {"__name__": "orders"}
        exec(compile(worker + order, "workers.md", "exec", dont_inherit=True), program)  # our own page
        session: CharacterSession = await stack.enter_async_context(program["session"])
        tasks = await stack.enter_async_context(docket.Docket(url=redis_url))
        for number in range(12):
            await program["order"](number, FIELDS, tasks)
        await session.register(CharacterRequest.from_untrusted(FIELDS, key="order-12"))
        first = await stack.enter_async_context(running(tmp_path, ("worker.py",), environment))
        await emulator.until(lambda: emulator.counts.elements >= 6, timeout=60)
        kill_all(first)
        await stack.enter_async_context(running(tmp_path, ("worker.py",), environment))
        await check_paid_once(session, emulator, [f"order-{number}" for number in range(13)])
