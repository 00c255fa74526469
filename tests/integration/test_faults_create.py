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
WISHES: dict[str, dict[str, Any]] = {
    "kie": SOURCE | {"prompt": "a dog", "provider": "kie"},
    "kkiai": SOURCE | {"provider": "kkiai"},
}
NOTHING_LEFT = [  # of the proxy; but the client has sent all of it, and cannot know
    NetworkFault("cut_before_request"),
    NetworkFault("cut_before_request", reset=True),
    NetworkFault("half_open"),
    NetworkFault("cut_after_headers"),
    NetworkFault("cut_after_headers", reset=True),
]
WORK_DONE = [
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
TOO_LATE = {"half_open", "delay", "slow_bytes"}
PAGE_200 = NetworkFault("page", status=200)  # kkiai's contract says what that means: the gateway lacks the route
CASES = [(provider, fault) for provider in WISHES for fault in NOTHING_LEFT + WORK_DONE] + [("kie", PAGE_200)]


def named(part: object) -> str | None:
    """The name of a fault in a test's name."""
    if not isinstance(part, NetworkFault):
        return None
    detail = str(part.status) if part.name == "page" else "reset" if part.reset else "plain"
    return f"{part.name}-{detail}"


def session_at(url: str, *, timeout: float = 10.0) -> CharacterSession:
    """A session of both providers that looks every 5 ms; `timeout`: seconds that a create may take."""
    kie = Kie("kie-key", base_url=url, limits=None, timeout=timeout)
    return CharacterSession(kie, Kkiai("kkiai-key", base_url=url, timeout=timeout), polling=FixedInterval(0.005))


def made(emulator: Emulator) -> int:
    """How many paid tasks there are."""
    return emulator.counts.creates + emulator.counts.characters


@pytest.mark.parametrize("reused", [False, True], ids=["new connection", "reused"])
@pytest.mark.parametrize(("provider", "fault"), CASES, ids=named)
async def test_a_create_that_may_have_left_is_never_sent_again(
    provider: str,
    fault: NetworkFault,
    *,
    reused: bool,
    emulator: Emulator,
    proxy: FaultProxy,
) -> None:
    """One POST, and an error with its key, also when it is asked for again, whatever happens to a connection."""
    wish = WISHES[provider]
    async with session_at(proxy.url, timeout=0.5 if fault.name in TOO_LATE else 10.0) as session:
        if reused:
            await session.create(**wish)
        proxy.faults.append(fault)
        with pytest.raises(SubmissionUnknownError, match="key mine") as caught:
            await session.create(**wish, key="mine")
        with pytest.raises(SubmissionUnknownError, match="key mine"):
            await session.create(**wish, key="mine")
    assert (caught.value.key, caught.value.provider) == ("mine", provider)
    assert proxy.faults == []
    assert proxy.steps["POST", "forward_head"] == 1 + reused
    expected = reused + (fault not in NOTHING_LEFT)
    await emulator.until(lambda: made(emulator) >= expected)
    assert made(emulator) == expected


async def test_a_page_of_kkiai_is_no_reason_to_send_again(emulator: Emulator, proxy: FaultProxy) -> None:
    """HTML with status 200 means that the route is gone; it is told at once, after one POST."""
    proxy.faults.append(PAGE_200)
    async with session_at(proxy.url) as session:
        with pytest.raises(ModelUnavailableError):
            await session.create(**WISHES["kkiai"])
    assert (proxy.steps["POST", "forward_head"], made(emulator)) == (1, 1)


@pytest.mark.parametrize("name", ["delay", "slow_bytes"])
@pytest.mark.parametrize("provider", WISHES)
async def test_an_answer_that_is_only_slow_is_an_answer(
    provider: str,
    name: FaultName,
    emulator: Emulator,
    proxy: FaultProxy,
) -> None:
    """A character comes of the one POST."""
    proxy.faults.append(NetworkFault(name, method="POST", seconds=0.1))
    async with session_at(proxy.url) as session:
        assert (await session.create(**WISHES[provider])).id
    assert (proxy.faults, proxy.steps["POST", "response_returned"], made(emulator)) == ([], 1, 1)


@pytest.mark.parametrize("provider", WISHES)
async def test_only_a_connection_that_never_stood_is_tried_again(
    provider: str,
    unused_tcp_port: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Where nobody listens nothing can have left: the create goes on by itself once somebody does."""
    caplog.set_level("DEBUG", logger="sora_chars.transport")
    emulator = Emulator(port=unused_tcp_port, durations=(0.0, 0.0))
    emulator.add_origin("a" * 32)
    async with session_at(f"http://127.0.0.1:{unused_tcp_port}") as session:
        creating = asyncio.create_task(session.create(**WISHES[provider]))
        await emulator.until(lambda: caplog.records)
        assert vars(caplog.records[0])["status"] == "ClientConnectorError"
        async with emulator:
            assert (await creating).id
    assert made(emulator) == 1


async def test_of_many_creates_at_once_each_arrives_at_most_once(emulator: Emulator, proxy: FaultProxy) -> None:
    """Of a hundred creates under every fault each is sent once, and those that nothing struck give their own task."""
    faults = [attrs.evolve(fault, method="POST") for fault in 4 * (NOTHING_LEFT + WORK_DONE)]
    random.Random(3).shuffle(faults)
    proxy.faults += faults
    async with session_at(proxy.url, timeout=2.0) as session:
        creating = [session.create(**WISHES["kie"], key=f"key {number}") for number in range(100)]
        outcomes = await asyncio.gather(*creating, return_exceptions=True)
    unknown = {outcome.key for outcome in outcomes if isinstance(outcome, SubmissionUnknownError)}
    characters = {outcome.id for outcome in outcomes if isinstance(outcome, Character)}
    assert (len(unknown), len(characters)) == (len(faults), 100 - len(faults))
    assert proxy.steps["POST", "forward_head"] == 100
    expected = len(characters) + 4 * len(WORK_DONE)
    await emulator.until(lambda: made(emulator) >= expected)
    assert made(emulator) == expected
