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

WISH: dict[str, Any] = {"from_task": "a" * 32, "clip": "1,3", "prompt": "a dog"}
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
def milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look again soon after a fault, and wait half a second for an answer."""
    monkeypatch.setattr("sora_chars.polling.watcher._FAULT_DELAYS", (0.01, 0.05))
    monkeypatch.setattr("sora_chars.transport._TIMEOUTS", {"poll": 0.5, "other": 10.0})


def session_at(proxy: FaultProxy, *, budget: float = 300.0) -> CharacterSession:
    """A session that looks every 20 ms and bears `budget` seconds of nothing but faults."""
    kie = Kie("kie-key", base_url=proxy.url, limits=None, timeout=10.0)
    return CharacterSession(kie, watcher=TaskWatcher(polling=FixedInterval(0.02), fault_budget=budget))


async def test_all_faults_in_turn_end_no_wait(emulator: Emulator, proxy: FaultProxy) -> None:
    """One task meets every fault there is, without a good answer in between, and its character comes."""
    emulator.fault("stuck")
    async with session_at(proxy) as session:
        creating = asyncio.create_task(session.create(**WISH))
        await proxy.seen("passed", method="GET")
        proxy.faults += FAULTS
        await emulator.until(lambda: not proxy.faults, timeout=50)
        assert not creating.done()
        emulator.finish(*emulator.tasks)
        assert (await creating).id
    assert proxy.steps["GET", "forward_head"] > len(FAULTS)
    assert proxy.steps["POST", "forward_head"] == len(emulator.tasks) == 1


@pytest.mark.parametrize("seed", [1, 2])
async def test_many_waits_under_faults_of_every_kind_all_end_well(
    seed: int, emulator: Emulator, proxy: FaultProxy
) -> None:
    """Thirty tasks share three of each fault in any order, and each gives its own character."""
    proxy.faults += 3 * FAULTS
    random.Random(seed).shuffle(proxy.faults)
    async with session_at(proxy) as session:
        characters = await asyncio.gather(*(session.create(**WISH) for _ in range(30)))
    assert len({character.id for character in characters}) == 30
    assert proxy.faults == []
    assert proxy.steps["POST", "forward_head"] == len(emulator.tasks) == 30


UNLIMITED = [
    (NetworkFault("cut_before_request"), "Server disconnected"),
    (NetworkFault("cut_mid_answer", reset=True), "reset by peer"),
    (NetworkFault("half_open"), "no answer within 0.5 s"),
    (NetworkFault("page", status=524), "unreadable response.*524"),
]


@pytest.mark.parametrize(("fault", "name"), UNLIMITED, ids=[name for _, name in UNLIMITED])
async def test_beyond_the_budget_the_wait_ends_with_what_was_met(
    fault: NetworkFault, name: str, emulator: Emulator, proxy: FaultProxy
) -> None:
    """Once the budget is spent the last fault is told; the task goes on and can be taken up again."""
    proxy.faults += [attrs.evolve(fault, method="GET")] * 1000
    async with session_at(proxy, budget=0.6) as session:
        handle = await session.submit(**WISH)
        with pytest.raises(NoAnswerError, match=rf"{name}.*for 0\.6 s; the task may still run"):
            await handle
        assert proxy.steps["GET", "forward_head"] > 1
        proxy.faults.clear()
        assert (await session.resume(handle.task_id)).id
    assert emulator.counts.creates == 1
