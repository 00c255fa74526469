"""Polls under network faults: a transient fault never ends a wait."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any, get_args

import attrs
import pytest

from sora_chars import CharacterSession, FixedInterval, Kie, TaskWatcher
from sora_chars.errors import NoAnswerError
from sora_chars.testing.proxy import FaultName, FaultProxy, NetworkFault

if TYPE_CHECKING:
    from sora_chars.testing import Emulator

REQUEST: dict[str, Any] = {"from_task": "a" * 32, "clip": "1,3", "prompt": "a dog"}
CUTS: list[FaultName] = [name for name in get_args(FaultName) if name.startswith("cut_")]
FAULTS = [
    *(NetworkFault(name, method="GET", reset=reset) for name in CUTS for reset in (False, True)),
    *(NetworkFault("page", method="GET", status=status) for status in (200, 502, 504, 524)),
    NetworkFault("delay", method="GET"),
    NetworkFault("slow_bytes", method="GET"),
    NetworkFault("delay", method="GET", seconds=60),
    NetworkFault("slow_bytes", method="GET", seconds=60),
    NetworkFault("half_open", method="GET"),
]


@pytest.fixture(autouse=True)
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry soon after a fault, and time polls out after half a second."""
    monkeypatch.setattr("sora_chars.polling.poller._FAULT_DELAYS", (0.01, 0.05))
    monkeypatch.setattr("sora_chars.transport._TIMEOUTS", {"poll": 0.5, "other": 10.0})


def session_at(proxy: FaultProxy, *, budget: float = 300.0) -> CharacterSession:
    """Return a session that polls every 20 ms and tolerates faults for `budget` seconds."""
    kie = Kie("kie-key", base_url=proxy.url, limits=None, timeout=10.0)
    return CharacterSession(kie, watcher=TaskWatcher(polling=FixedInterval(0.02), fault_budget=budget))


async def test_faults_in_a_row(emulator: Emulator, proxy: FaultProxy) -> None:
    """A wait survives every fault in a row without a successful poll in between."""
    emulator.fault("stuck")
    async with session_at(proxy) as session:
        creating = asyncio.create_task(session.create(**REQUEST))
        await proxy.wait_for_step("response_returned", method="GET")
        proxy.faults += FAULTS
        await emulator.until(lambda: not proxy.faults, timeout=50)
        assert not creating.done()
        emulator.finish(*emulator.tasks)
        assert (await creating).id
    assert proxy.steps["GET", "forward_head"] > len(FAULTS)
    assert proxy.steps["POST", "forward_head"] == len(emulator.tasks) == 1


@pytest.mark.parametrize("seed", [1, 2])
async def test_faults_of_many_tasks(seed: int, emulator: Emulator, proxy: FaultProxy) -> None:
    """Thirty tasks meet three faults of each kind in random order, and all succeed."""
    proxy.faults += 3 * FAULTS
    random.Random(seed).shuffle(proxy.faults)
    async with session_at(proxy) as session:
        characters = await asyncio.gather(*(session.create(**REQUEST) for _ in range(30)))
    assert len({character.id for character in characters}) == 30
    assert proxy.faults == []
    assert proxy.steps["POST", "forward_head"] == len(emulator.tasks) == 30


LASTING = [
    (NetworkFault("cut_before_request"), "Server disconnected"),
    (NetworkFault("cut_mid_response", reset=True), "reset by peer"),
    (NetworkFault("half_open"), "no answer within 0.5 s"),
    (NetworkFault("page", status=524), "unreadable response.*524"),
]


@pytest.mark.parametrize(("fault", "message"), LASTING, ids=[message for _, message in LASTING])
async def test_wait_ends_when_the_fault_budget_is_spent(
    fault: NetworkFault, message: str, emulator: Emulator, proxy: FaultProxy
) -> None:
    """The error names the last fault; the task keeps running and can be resumed."""
    proxy.faults += [attrs.evolve(fault, method="GET")] * 1000
    async with session_at(proxy, budget=0.6) as session:
        handle = await session.submit(**REQUEST)
        with pytest.raises(NoAnswerError, match=rf"{message}.*for 0\.6 s; the task may still run"):
            await handle
        assert proxy.steps["GET", "forward_head"] > 1
        proxy.faults.clear()
        assert (await session.resume(handle.task_id)).id
    assert emulator.counts.creates == 1
