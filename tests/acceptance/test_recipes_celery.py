"""The Celery tasks of the page about workers, in a real worker on a Redis-compatible server."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest

from sora_chars import CharacterSession, Kling
from sora_chars.testing import Emulator
from tests.support.recipes import KEYS, blocks, check_paid_once, kill_all, running

pytest.importorskip("celery")

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(180)

ORDERS = 12
FIELDS: dict[str, Any] = {"video": "https://example.com/dog.mp4", "name": "Rex", "prompt": "A friendly dog"}
HURRIED = """
app.conf.beat_schedule["sweep"]["schedule"] = 1.0
app.conf.broker_transport_options = {
    "visibility_timeout": 6, "unacked_restore_interval": 1, "unacked_restore_throttle": 1
}
"""
ORDER = f"""
from tasks import FIELDS, order, session
for number in range({ORDERS}):
    order(number, FIELDS)
session.register(**FIELDS, key="order-{ORDERS}")
"""
WORKER = ("-m", "celery", "-A", "tasks", "worker", "-B", "--concurrency=4", "--loglevel=warning", "--schedule")


async def test_a_killed_worker_pays_nothing_twice(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Orders go on when a worker is killed with its processes; a request without a message is swept up."""
    (program,) = blocks("Celery")
    program = program.replace("LONGEST_TASK = 1800.0", "LONGEST_TASK = 8.0")
    (tmp_path / "tasks.py").write_text(f"{program}{HURRIED}\nFIELDS = {FIELDS}\n")
    async with AsyncExitStack() as stack:
        emulator = await stack.enter_async_context(Emulator(durations=(1, 2)))
        environment = {
            "DATABASE_URL": f"sqlite:///{tmp_path}/characters.db",
            "REDIS_URL": redis_url,
            "SORA_CHARS_EMULATOR": emulator.url,
        }
        async with running(tmp_path, ("-c", ORDER), environment) as ordering:
            assert await ordering.wait() == 0
        first = await stack.enter_async_context(running(tmp_path, (*WORKER, str(tmp_path / "first")), environment))
        await emulator.until(lambda: emulator.counts.elements >= ORDERS // 2, timeout=60)
        kill_all(first)
        await stack.enter_async_context(running(tmp_path, (*WORKER, str(tmp_path / "second")), environment))
        for name, value in (KEYS | environment).items():
            monkeypatch.setenv(name, value)
        session = await stack.enter_async_context(CharacterSession(Kling(), ledger=environment["DATABASE_URL"]))
        await check_paid_once(session, emulator, [f"order-{number}" for number in range(ORDERS + 1)])
