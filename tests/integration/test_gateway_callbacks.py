"""Callbacks of Wavespeed and Evolink: signed and unsigned, early, several, lost, and after a lost response."""

from __future__ import annotations

import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from aiohttp import web

from sora_chars import (
    CallbackReceiver,
    CharacterSession,
    EntryState,
    FixedInterval,
    SubmissionUnknownError,
    TaskFailedError,
)
from tests.support.gateway_accounts import CLASSES, CREATES, KEYS, VIDEO, account, only_task, quick_emulator

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from sora_chars.testing import Emulator

SECRET = "whsec_e9EE3BdyXSxcB4ZyZUKjQUEoQX4sF9P1+eMpb/KluCM="
NAMES = ("wavespeed", "evolink")
pytestmark = pytest.mark.parametrize("name", NAMES)


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    """Start an emulator whose tasks take some milliseconds."""
    async with quick_emulator(speed=100) as running:
        running.task_store.durations = (2.0, 4.0)
        running.wavespeed.callbacks.secret = SECRET
        yield running


@pytest.fixture(scope="module")
def certificate() -> ssl.SSLContext:
    """A certificate for the receiver, since Evolink calls https:// only."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    return context


@asynccontextmanager
async def listening(
    emulator: Emulator, name: str, certificate: ssl.SSLContext, **options: Any
) -> AsyncGenerator[CharacterSession]:
    """Open a session that polls once a minute and receives callbacks over TLS."""
    receivers: list[CallbackReceiver] = []

    async def forward(request: web.Request) -> web.Response:
        status, content = await receivers[0].handle("POST", request.path, request.headers, await request.read())
        return web.json_response(content, status=status)

    app = web.Application()
    app.router.add_post("/{token}", forward)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=certificate).start()
    url = f"https://127.0.0.1:{runner.addresses[0][1]}"
    if name == "wavespeed":
        options.setdefault("webhook_secret", SECRET)
    provider = CLASSES[name](KEYS[name], base_url=emulator.url, callback_url=url, **options)
    try:
        async with CharacterSession(provider, polling=FixedInterval(60.0), timeout=20) as session:
            receivers.append(CallbackReceiver(session))
            yield session
    finally:
        await runner.cleanup()


async def test_callback(emulator: Emulator, name: str, certificate: ssl.SSLContext) -> None:
    """A callback ends the wait long before the next poll is due, by one poll."""
    async with listening(emulator, name, certificate) as session:
        assert (await session.create(**VIDEO)).name == "Rex"
    task = only_task(emulator, name)
    assert task.polls <= 2
    assert task.callbacks == [200]


async def test_early_callback(emulator: Emulator, name: str, certificate: ssl.SSLContext) -> None:
    """A callback that comes before the response to the create is no loss."""
    account(emulator, name).early_callbacks = True
    async with listening(emulator, name, certificate) as session:
        assert (await session.create(**VIDEO)).name == "Rex"
    assert emulator.counts.gateway_elements == 1


async def test_several_callbacks(emulator: Emulator, name: str, certificate: ssl.SSLContext) -> None:
    """The same callback several times changes nothing."""
    account(emulator, name).callbacks.copies = 3
    async with listening(emulator, name, certificate) as session:
        assert (await session.create(**VIDEO)).name == "Rex"
        await emulator.until(lambda: len(only_task(emulator, name).callbacks) == 3)
    assert only_task(emulator, name).callbacks == [200, 200, 200]


async def test_unsigned_callback(emulator: Emulator, name: str, certificate: ssl.SSLContext) -> None:
    """Without a webhook secret the token in the URL is enough."""
    emulator.wavespeed.callbacks.secret = None
    options = {"webhook_secret": None} if name == "wavespeed" else {}
    async with listening(emulator, name, certificate, **options) as session:
        assert (await session.create(**VIDEO)).name == "Rex"
    assert only_task(emulator, name).callbacks == [200]


@pytest.mark.parametrize("early", [False, True])
async def test_lost_callback(emulator: Emulator, name: str, certificate: ssl.SSLContext, *, early: bool) -> None:
    """A callback that gets lost only makes the wait longer."""
    account(emulator, name).callbacks.lost = True
    account(emulator, name).early_callbacks = early
    async with listening(emulator, name, certificate) as session:
        handle = await session.submit(**VIDEO)
        await emulator.until(lambda: only_task(emulator, name).finished)
        assert (await handle.refresh()).status == "succeeded"
    assert only_task(emulator, name).callbacks == []


async def test_callback_settles_a_lost_response(emulator: Emulator, name: str, certificate: ssl.SSLContext) -> None:
    """After a lost response the outcome is unknown until the callback comes, which gives the character."""
    emulator.fault("lost_response", on=CREATES[name])
    async with listening(emulator, name, certificate) as session:
        with pytest.raises(SubmissionUnknownError):
            await session.create(**VIDEO, key="order-17")
        entry = await session.entry("order-17")
        while entry is not None and entry.state is EntryState.UNKNOWN:
            entry = await session.ledger.changed(entry, timeout=10)
        assert (await session.create(**VIDEO, key="order-17")).id == str(only_task(emulator, name).element_id)
    assert emulator.counts.gateway_elements == 1


async def test_failed_task(emulator: Emulator, name: str, certificate: ssl.SSLContext) -> None:
    """The callback of a failed task ends the wait too."""
    emulator.fault("gateway_fail", on=CREATES[name])
    async with listening(emulator, name, certificate) as session:
        handle = await session.submit(**VIDEO)
        with pytest.raises(TaskFailedError):
            await handle


async def test_rejected_callbacks(emulator: Emulator, name: str, certificate: ssl.SSLContext) -> None:
    """Wavespeed's callback with a wrong signature is rejected; Evolink's is sent again up to 3 times."""
    emulator.wavespeed.callbacks.secret = "whsec_another"
    async with listening(emulator, name, certificate) as session:
        await session.submit(**VIDEO)
        task = only_task(emulator, name)
        if name == "evolink":
            task.body = {**task.body, "callback_url": f"{task.callback_url}-wrong"}
        wanted = 1 if name == "wavespeed" else 4
        await emulator.until(lambda: len(task.callbacks) == wanted)
    assert set(task.callbacks) == {401}


async def test_receiver_that_is_gone(emulator: Emulator, name: str) -> None:
    """A callback without a receiver is given up."""
    emulator.evolink.callbacks.retry_delays = (0.0, 0.0)
    provider = CLASSES[name](KEYS[name], base_url=emulator.url, callback_url="https://127.0.0.1:9")
    async with CharacterSession(provider, polling=FixedInterval(60.0)) as session:
        await session.submit(**VIDEO)
        wanted = 1 if name == "wavespeed" else 3
        await emulator.until(lambda: len(only_task(emulator, name).callbacks) == wanted)
    assert set(only_task(emulator, name).callbacks) == {None}
