"""Creates under network faults: a request that may have been sent is never sent again."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import attrs
import pytest

from sora_chars import Character, CharacterSession, FixedInterval, Kie, Kkiai
from sora_chars.errors import ModelUnavailableError, SubmissionUnknownError
from sora_chars.testing import Emulator
from sora_chars.testing.proxy import FaultName, FaultProxy, NetworkFault

SOURCE: dict[str, Any] = {"from_task": "a" * 32, "clip": "1,3"}
REQUESTS: dict[str, dict[str, Any]] = {
    "kie": SOURCE | {"prompt": "a dog", "provider": "kie"},
    "kkiai": SOURCE | {"provider": "kkiai"},
}
NOT_FORWARDED = [  # the server receives no complete request, but the client cannot know that
    NetworkFault("cut_before_request"),
    NetworkFault("cut_before_request", reset=True),
    NetworkFault("half_open"),
    NetworkFault("cut_after_headers"),
    NetworkFault("cut_after_headers", reset=True),
]
CARRIED_OUT = [
    NetworkFault("cut_after_body"),
    NetworkFault("cut_after_body", reset=True),
    NetworkFault("cut_before_response"),
    NetworkFault("cut_before_response", reset=True),
    NetworkFault("cut_mid_response"),
    NetworkFault("cut_mid_response", reset=True),
    NetworkFault("delay", seconds=60),
    NetworkFault("slow_bytes", seconds=60),
    NetworkFault("page", status=502),
    NetworkFault("page", status=504),
    NetworkFault("page", status=524),
]
TIMES_OUT = {"half_open", "delay", "slow_bytes"}
PAGE_200 = NetworkFault("page", status=200)  # from kkiai it means that the gateway lacks the route
CASES = [(provider, fault) for provider in REQUESTS for fault in NOT_FORWARDED + CARRIED_OUT] + [("kie", PAGE_200)]


def fault_id(part: object) -> str | None:
    """Return the part of a test's id that names a fault."""
    if not isinstance(part, NetworkFault):
        return None
    if part.name == "page":
        return f"page-{part.status}"
    return f"{part.name}-{'reset' if part.reset else 'plain'}"


def session_at(url: str, *, timeout: float = 10.0) -> CharacterSession:
    """Return a session of both providers that polls every 5 ms; creates time out after `timeout`."""
    kie = Kie("kie-key", base_url=url, limits=None, timeout=timeout)
    return CharacterSession(kie, Kkiai("kkiai-key", base_url=url, timeout=timeout), polling=FixedInterval(0.005))


def count_tasks(emulator: Emulator) -> int:
    """Return the number of paid tasks."""
    return emulator.counts.creates + emulator.counts.characters


@pytest.mark.parametrize("reused", [False, True], ids=["new connection", "reused"])
@pytest.mark.parametrize(("provider", "fault"), CASES, ids=fault_id)
async def test_create_is_never_sent_twice(
    provider: str,
    fault: NetworkFault,
    *,
    reused: bool,
    emulator: Emulator,
    proxy: FaultProxy,
) -> None:
    """A failed create sends one POST; repeating its key raises the same error without a POST."""
    request = REQUESTS[provider]
    async with session_at(proxy.url, timeout=0.5 if fault.name in TIMES_OUT else 10.0) as session:
        if reused:
            await session.create(**request)
        proxy.faults.append(fault)
        with pytest.raises(SubmissionUnknownError, match="key mine") as caught:
            await session.create(**request, key="mine")
        with pytest.raises(SubmissionUnknownError, match="key mine"):
            await session.create(**request, key="mine")
    assert (caught.value.key, caught.value.provider) == ("mine", provider)
    assert proxy.faults == []
    assert proxy.steps["POST", "forward_head"] == 1 + reused
    expected = reused + (fault not in NOT_FORWARDED)
    await emulator.until(lambda: count_tasks(emulator) >= expected)
    assert count_tasks(emulator) == expected


async def test_page_of_kkiai_with_status_200(emulator: Emulator, proxy: FaultProxy) -> None:
    """HTML with status 200 means that the route does not exist: an error after one POST."""
    proxy.faults.append(PAGE_200)
    async with session_at(proxy.url) as session:
        with pytest.raises(ModelUnavailableError):
            await session.create(**REQUESTS["kkiai"])
    assert (proxy.steps["POST", "forward_head"], count_tasks(emulator)) == (1, 1)


@pytest.mark.parametrize("name", ["delay", "slow_bytes"])
@pytest.mark.parametrize("provider", REQUESTS)
async def test_slow_response_succeeds(
    provider: str,
    name: FaultName,
    emulator: Emulator,
    proxy: FaultProxy,
) -> None:
    """A slow response to the only POST makes a character."""
    proxy.faults.append(NetworkFault(name, method="POST", seconds=0.1))
    async with session_at(proxy.url) as session:
        assert (await session.create(**REQUESTS[provider])).id
    assert (proxy.faults, proxy.steps["POST", "response_returned"], count_tasks(emulator)) == ([], 1, 1)


@pytest.mark.parametrize("provider", REQUESTS)
async def test_refused_connection_is_retried(
    provider: str,
    unused_tcp_port: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A refused connection has sent nothing, so the create is retried until the server listens."""
    caplog.set_level("DEBUG", logger="sora_chars.transport")
    emulator = Emulator(port=unused_tcp_port, durations=(0.0, 0.0))
    emulator.add_origin("a" * 32)
    async with session_at(f"http://127.0.0.1:{unused_tcp_port}") as session:
        creating = asyncio.create_task(session.create(**REQUESTS[provider]))
        await emulator.until(lambda: caplog.records)
        assert vars(caplog.records[0])["status"] == "ClientConnectorError"
        async with emulator:
            assert (await creating).id
    assert count_tasks(emulator) == 1


async def test_concurrent_creates_are_sent_once(emulator: Emulator, proxy: FaultProxy) -> None:
    """A hundred concurrent creates are sent once each; those without a fault succeed."""
    faults = [attrs.evolve(fault, method="POST") for fault in 4 * (NOT_FORWARDED + CARRIED_OUT)]
    random.Random(3).shuffle(faults)
    proxy.faults += faults
    async with session_at(proxy.url, timeout=2.0) as session:
        creating = [session.create(**REQUESTS["kie"], key=f"key {number}") for number in range(100)]
        outcomes = await asyncio.gather(*creating, return_exceptions=True)
    unknown = {outcome.key for outcome in outcomes if isinstance(outcome, SubmissionUnknownError)}
    characters = {outcome.id for outcome in outcomes if isinstance(outcome, Character)}
    assert (len(unknown), len(characters)) == (len(faults), 100 - len(faults))
    assert proxy.steps["POST", "forward_head"] == 100
    expected = len(characters) + 4 * len(CARRIED_OUT)
    await emulator.until(lambda: count_tasks(emulator) >= expected)
    assert count_tasks(emulator) == expected
