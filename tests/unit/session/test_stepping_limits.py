"""`CharacterSession.advance` under the limits of an account, in virtual time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from sora_chars.ledger import EntryState
from sora_chars.polling.strategies import FixedInterval
from sora_chars.ratelimit.accounts import Account
from sora_chars.ratelimit.window import Limits
from sora_chars.session.session import CharacterSession
from tests.support.fake_providers import FakeProvider, state_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from sora_chars.models import Request, TaskSnapshot

pytestmark = pytest.mark.looptime

REQUEST: dict[str, Any] = {"from_task": "origin", "clip": "1,3", "prompt": "a dog"}


@attrs.define(eq=False)
class LimitedProvider(FakeProvider):
    """Provider whose account allows one create and two polls in 10 s. `uploads` counts what precedes a create."""

    account: Account | None = attrs.field(factory=lambda: Account.with_limits(Limits(creates=(1, 10), polls=(2, 10))))
    before: float = 0.0
    after: float = 0.0
    uploads: int = 0

    async def submit(
        self,
        request: Request,
        *,
        key: str,
        callback_url: str | None,
        on_send: Callable[[], AbstractAsyncContextManager[None]],
    ) -> TaskSnapshot:
        """See `Provider`."""
        self.uploads += 1
        assert self.account
        async with self.account.windows["create"].slot() as slot:
            slot.mark_sent(asyncio.get_running_loop().time())
            return await super().submit(request, key=key, callback_url=callback_url, on_send=on_send)

    async def fetch(self, task_id: str) -> TaskSnapshot:
        """See `Provider`."""
        assert self.account
        async with self.account.windows["poll"].slot() as slot:
            slot.mark_sent(asyncio.get_running_loop().time())
            return await super().fetch(task_id)


async def registered(session: CharacterSession, keys: str) -> None:
    """Register requests whose keys are letters."""
    for key in keys:
        await session.register(key=key, **REQUEST)


async def test_a_step_does_not_wait_for_the_limits() -> None:
    """A create for which there is no slot stays pending, and nothing is uploaded for it until it may be sent."""
    provider = LimitedProvider(end=99)
    async with CharacterSession(provider, polling=FixedInterval(10.0)) as session:
        await registered(session, "abc")
        began = asyncio.get_running_loop().time()
        delays: list[float | None] = [(await session.advance(key)).retry_in for key in "abc"]
        assert [round(delay or 0) for delay in delays] == [10, 10, 20]
        assert asyncio.get_running_loop().time() == began
        assert (provider.uploads, len(provider.posts), await state_of(session, "b")) == (1, 1, EntryState.PENDING)
        await asyncio.sleep(delays[1] or 0)
        assert (await session.advance("c")).state is EntryState.PENDING  # the slot is that of the key before it
        assert (await session.advance("b")).state is EntryState.RUNNING
        assert (provider.uploads, len(provider.posts)) == (2, 2)


async def test_a_patient_step_waits() -> None:
    """A step waits for a slot that becomes free within its patience."""
    provider = LimitedProvider(end=99)
    async with CharacterSession(provider, polling=FixedInterval(10.0)) as session:
        await registered(session, "ab")
        await session.advance("a", patience=15.0)
        assert (await session.advance("b", patience=15.0)).state is EntryState.RUNNING
        assert asyncio.get_running_loop().time() == pytest.approx(10.0, abs=0.1)


async def test_polls_come_back_too() -> None:
    """A poll for which there is no slot is taken later, and the ones before it come first."""
    provider = LimitedProvider(end=99, account=Account.with_limits(Limits(polls=(2, 10))))
    async with CharacterSession(provider, polling=FixedInterval(3.0)) as session:
        await registered(session, "abc")
        for key in "abc":
            await session.advance(key)
        assert [round((await session.advance(key)).retry_in or 0) for key in "abc"] == [3, 3, 10]
        assert len(provider.polls) == 2


async def test_other_calls_are_not_affected() -> None:
    """A call that waits in the queue still does so after a step in the same context."""
    provider = LimitedProvider()
    async with CharacterSession(provider, polling=FixedInterval(10.0)) as session:
        await registered(session, "a")
        await session.advance("a")
        assert (await session.create(key="b", **REQUEST)).id == "ch_1"
        assert asyncio.get_running_loop().time() > 10
