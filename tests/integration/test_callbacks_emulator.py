"""Callbacks that the emulator delivers over sockets to an aiohttp application."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import aiohttp
import attrs
import pytest
from aiohttp import web

from sora_chars import CallbackReceiver, CharacterSession, FixedInterval, Kie, TaskFailedError, WaitTimeoutError
from sora_chars.ids import token_digest
from sora_chars.testing import Emulator
from sora_chars.testing.emulator.callbacks import envelope, sign

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from sora_chars import Character, TaskHandle

KEY = "whsec"


@attrs.frozen
class Scene:
    """An emulator, a session that polls once an hour, and its receiver in an aiohttp application."""

    emulator: Emulator
    session: CharacterSession
    receiver: CallbackReceiver

    async def submit(self) -> TaskHandle[Character]:
        """Start a character task."""
        return await self.session.submit(from_task="a" * 32, clip="1,3", prompt="A dog")

    async def submit_stuck(self) -> TaskHandle[Character]:
        """Start a character task that the test ends."""
        self.emulator.fault("stuck")
        return await self.submit()

    async def statuses(self, task_id: str, count: int) -> list[int | None]:
        """Wait for `count` deliveries of a task's callback; return the statuses of the responses."""
        deliveries = self.emulator.tasks[task_id].deliveries
        await self.emulator.until(lambda: len(deliveries) >= count)
        return [delivery.status for delivery in deliveries]

    async def forge(self, task_id: str, key: str = KEY) -> int:
        """Post an invented success with valid token and signature; return the status of the response."""
        task = self.emulator.tasks[task_id]
        timestamp = str(int(time.time()))
        headers = {"X-Webhook-Timestamp": timestamp, "X-Webhook-Signature": sign(key, task_id, timestamp)}
        async with (
            aiohttp.ClientSession() as http,
            http.post(str(task.callback_url), json=envelope(task, forged=True), headers=headers) as response,
        ):
            return response.status


@asynccontextmanager
async def scene(
    *, sender_key: str | None = KEY, hmac_key: str | None = KEY, clock_ahead: float = 0.0
) -> AsyncGenerator[Scene]:
    """Run a scene. The receiver's clock is wrong by `clock_ahead` seconds."""
    listener = socket.create_server(("127.0.0.1", 0))
    app = web.Application()
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    async with Emulator(speed=100, hmac_key=sender_key) as emulator:
        callback_url = f"http://127.0.0.1:{listener.getsockname()[1]}/hooks/kie"
        kie = Kie("key", base_url=emulator.url, callback_url=callback_url)
        async with CharacterSession(kie, polling=FixedInterval(3600)) as session:
            receiver = CallbackReceiver(session, hmac_key, clock=lambda: time.time() + clock_ahead)
            app.add_subapp("/hooks/kie/", receiver.aiohttp_app())
            await runner.setup()
            await web.SockSite(runner, listener).start()
            yield Scene(emulator, session, receiver)
        await runner.cleanup()


@pytest.mark.parametrize("keys", [(KEY, KEY), (None, None), (KEY, None)])
async def test_callback_ends_wait(keys: tuple[str | None, str | None]) -> None:
    """With polls an hour apart, a callback ends both waits at the price of one poll; signed or not."""
    async with scene(sender_key=keys[0], hmac_key=keys[1]) as on:
        handle = await on.submit()
        event, character = await asyncio.gather(on.receiver.expect(handle.task_id), handle.result())
        assert event.snapshot is not None
        assert event.snapshot.character is not None
        assert event.snapshot.character.id == character.id
        assert handle.woken_by == "callback"
        assert on.emulator.counts.polls == 1


async def test_failure() -> None:
    """A callback of a failure ends the wait with TaskFailedError, and the event has the failure."""
    async with scene() as on:
        on.emulator.fault("fail_task", code="400", message="too dark")
        handle = await on.submit()
        with pytest.raises(TaskFailedError, match="too dark"):
            await handle.result()
        event = await on.receiver.expect(handle.task_id)
        assert event.snapshot is not None
        assert (event.code, event.snapshot.state) == (501, "fail")


async def test_concurrent_tasks() -> None:
    """Each callback of concurrent tasks reaches its own waiter."""
    async with scene() as on:
        handles = await asyncio.gather(*(on.submit() for _ in range(15)))
        characters = await asyncio.gather(*(handle.result() for handle in handles))
        events = await asyncio.gather(*(on.receiver.expect(handle.task_id) for handle in handles))
        assert [character.task_id for character in characters] == [event.task_id for event in events]
        assert len({character.id for character in characters}) == 15


async def test_early() -> None:
    """A callback before the response to createTask is accepted, and ends the wait."""
    async with scene() as on:
        on.emulator.fault("early_callback")
        handle = await on.submit()
        assert await on.statuses(handle.task_id, 1) == [200]
        await handle.result()
        assert (await on.receiver.expect(handle.task_id, timeout=0)).task_id == handle.task_id


async def test_duplicate() -> None:
    """The second of two equal callbacks gets 200 and changes nothing."""
    async with scene() as on:
        on.emulator.fault("double_callback")
        handle = await on.submit()
        character = await handle.result()
        assert await on.statuses(handle.task_id, 2) == [200, 200]
        assert await handle.result() == character
        assert on.emulator.counts.polls == 1


async def test_late() -> None:
    """A callback after a poll has seen the end gets 200, and `expect` still returns it."""
    async with scene() as on:
        on.emulator.fault("delay", on="callback", seconds=0.05)
        handle = await on.submit_stuck()
        on.emulator.finish(handle.task_id)
        assert (await handle.refresh()).finished
        await handle.result()
        assert handle.woken_by == "poll"
        await on.receiver.expect(handle.task_id)
        assert await on.statuses(handle.task_id, 1) == [200]


async def test_lost() -> None:
    """A task whose callback is lost is found finished by polling; `expect` times out."""
    async with scene() as on:
        on.emulator.fault("lost_callback")
        handle = await on.submit_stuck()
        on.emulator.finish(handle.task_id)
        await handle.refresh()
        assert (await handle.result()).id
        with pytest.raises(WaitTimeoutError):
            await on.receiver.expect(handle.task_id, timeout=0.02)


@pytest.mark.parametrize("how", ["signature", "token"])
async def test_forged(how: str) -> None:
    """A callback with a wrong signature or token is rejected and wakes no waiter; the genuine one does."""
    async with scene() as on:
        on.emulator.fault("forged_callback", how=how)
        handle = await on.submit()
        event = await on.receiver.expect(handle.task_id)
        assert event.snapshot is not None
        assert event.snapshot.character == await handle.result()
        assert await on.statuses(handle.task_id, 2) == [401, 200]


async def test_false_claim() -> None:
    """A false claim with valid token and signature reaches `expect`, but the wait goes on until the record agrees."""
    async with scene() as on:
        on.emulator.fault("lost_callback")
        handle = await on.submit_stuck()
        assert await on.forge(handle.task_id) == 200
        event = await on.receiver.expect(handle.task_id)
        assert event.snapshot is not None
        assert event.snapshot.finished
        await on.emulator.until(lambda: on.emulator.counts.polls)
        assert not handle.done()
        on.emulator.finish(handle.task_id, character_id="ch_true")
        assert (await handle.result()).id == "ch_true"


@pytest.mark.parametrize("clock_ahead", [-1000.0, 1000.0])
async def test_replayed(clock_ahead: float) -> None:
    """A timestamp far from the receiver's clock is rejected each time, and the sender gives up."""
    async with scene(clock_ahead=clock_ahead) as on:
        handle = await on.submit()
        assert await on.statuses(handle.task_id, 4) == [401] * 4
        with pytest.raises(WaitTimeoutError):
            await on.receiver.expect(handle.task_id, timeout=0)


@pytest.mark.parametrize("sender_key", [None, "another"])
async def test_wrong_key(sender_key: str | None) -> None:
    """With a key, callbacks that are unsigned or signed by another key are rejected."""
    async with scene(sender_key=sender_key) as on:
        handle = await on.submit()
        assert (await on.statuses(handle.task_id, 1))[0] == 401
        assert on.emulator.counts.callbacks_accepted == 0


async def test_task_of_another_session() -> None:
    """A callback for a task of another ledger is rejected."""
    async with scene() as on, scene() as other:
        handle = await other.submit_stuck()
        task = other.emulator.tasks[handle.task_id]
        token = str(task.callback_url).rpartition("/")[2]
        on.session.resume(handle.task_id)
        assert await other.session.ledger.by_token(token_digest(token))
        assert await on.session.ledger.by_token(token_digest(token)) is None
        task.callback_url = str(on.session.providers[0].callback_url) + "/" + token
        assert await other.forge(handle.task_id) == 401
