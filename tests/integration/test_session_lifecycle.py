"""Sessions against the emulator: lost responses, limits, closing, several event loops, forks."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import warnings
from typing import Any

import pytest

from sora_chars import CharacterSession, FixedInterval, Kie, Kkiai, Limits
from sora_chars.errors import SubmissionUnknownError
from sora_chars.testing import Emulator

CREATE = ("POST", "/api/v1/jobs/createTask")
SOURCE: dict[str, Any] = {"from_task": "a" * 32, "clip": "1,3"}
REQUEST: dict[str, Any] = SOURCE | {"prompt": "a dog", "provider": "kie"}
REQUESTS: dict[str, dict[str, Any]] = {"kie": REQUEST, "kkiai": SOURCE | {"provider": "kkiai"}}


def session_with(emulator: Emulator, *, timeout: float = 5.0, limits: Limits | None = None) -> CharacterSession:
    """Return a session of both providers that uses the emulator."""
    kie = Kie("kie-key", base_url=emulator.url, limits=limits, timeout=timeout)
    kkiai = Kkiai("kkiai-key", base_url=emulator.url, timeout=timeout)
    return CharacterSession(kie, kkiai, polling=FixedInterval(0.005))


LOST: list[tuple[str, dict[str, Any]]] = [
    ("html", {"status": 502}),
    ("html", {"status": 504}),
    ("html", {"status": 524}),
    ("status", {"status": 502, "code": 502}),
    ("lost_response", {}),
    ("reset", {}),
    ("truncated", {}),
    ("junk_json", {}),
    ("delay", {"seconds": 5.0}),
    ("slow_body", {"seconds": 5.0}),
]


@pytest.mark.parametrize(("fault", "settings"), LOST, ids=str)
@pytest.mark.parametrize("provider", ["kie", "kkiai"])
async def test_lost_response_is_never_sent_again(
    provider: str, fault: str, settings: dict[str, Any], emulator: Emulator
) -> None:
    """Without a valid response there is one POST, and an error with the request's key."""
    active = emulator.fault(fault, on="any", times=None, **settings)
    async with session_with(emulator, timeout=0.2) as session:
        with pytest.raises(SubmissionUnknownError, match="key mine") as caught:
            await session.create(**REQUESTS[provider], key="mine")
    assert (caught.value.key, caught.value.provider) == ("mine", provider)
    assert active.hits == 1
    assert sum(emulator.request_counts.values()) == 1


@pytest.mark.parametrize("form", ["http_429", "body_429"])
async def test_rate_limited_create_is_sent_again(form: str, emulator: Emulator) -> None:
    """429 in either form means that nothing was created; the second POST creates the task."""
    emulator.fault(form, on="create")
    async with session_with(emulator) as session:
        await session.create(**REQUEST)
    assert (emulator.request_counts[CREATE], emulator.counts.creates) == (2, 1)


async def test_keeps_the_rate_limits(emulator: Emulator) -> None:
    """Sixty concurrent tasks under the documented limits, at fifty times the speed, get no 429."""
    async with Emulator(durations=(1.0, 2.0), speed=50, strict_limits=True) as strict:
        limits = Limits(creates=(20, 10 / 50), polls=(10, 1 / 50))
        async with session_with(strict, limits=limits) as session:
            await asyncio.gather(*(session.create(**REQUEST) for _ in range(60)))
        assert strict.counts.creates == 60
        assert not strict.counts.rate_limited
    assert not emulator.request_counts


async def test_closing_leaves_nothing_open(emulator: Emulator) -> None:
    """Closing leaves no connection, no asyncio task and no warning."""
    before = asyncio.all_tasks()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        async with session_with(emulator) as session:
            await session.create(**REQUEST)
            await session.submit(**REQUEST)
            await session.create(**REQUESTS["kkiai"])
        gc.collect()
    server = emulator._runner.server if emulator._runner else None
    assert server
    await emulator.until(lambda: not server.connections)
    assert {task for task in asyncio.all_tasks() if "sora_chars" in task.get_name()} == set()
    await emulator.until(lambda: asyncio.all_tasks() <= before)


def test_session_is_reused_in_another_event_loop(sora_emulator: Emulator) -> None:
    """A session that was closed in one `asyncio.run` works in the next."""
    session = session_with(sora_emulator)

    async def use() -> str:
        async with session:
            return (await session.create(**REQUEST)).id

    assert len({asyncio.run(use()) for _ in range(2)}) == 2


FORKS = """
import asyncio, os, sys
from sora_chars import CharacterSession, FixedInterval, Kie

session = CharacterSession(Kie("kie-key", base_url=sys.argv[1]), polling=FixedInterval(0.005))

async def use():
    async with session:
        character = await session.create(from_task="a" * 32, clip="1,3", prompt="a dog")
        os.write(1, f"{character.id}\\n".encode())  # one write: two processes share this pipe

asyncio.run(use())
child = os.fork()
asyncio.run(use())
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_session_is_reused_after_a_fork(sora_emulator: Emulator) -> None:
    """Parent and child each use the session that was closed before the fork."""
    command = [sys.executable, "-W", "error", "-c", FORKS, sora_emulator.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(set(done.stdout.split())) == 3
    assert sora_emulator.counts.creates == 3
