"""Cooldowns that hold for one kind of request, in virtual time."""

from __future__ import annotations

import asyncio

import pytest

from sora_chars.ratelimit.accounts import Account
from sora_chars.ratelimit.window import Limits


@pytest.mark.looptime
async def test_cooldown_of_creates_alone() -> None:
    """After a 429 that concerns creates alone, polls go on, and one create is sent first when the pause ends."""
    busy = Account.with_limits(Limits())
    loop = asyncio.get_running_loop()
    own = busy.windows["create"].own_cooldown
    own.on_429(sent=0.0, now=loop.time(), retry_after=5.0)
    async with busy.windows["poll"].slot():
        assert loop.time() == 0.0
    async with busy.windows["create"].slot() as probe:
        assert probe.sent >= 5.0
        async with busy.windows["poll"].slot() as poll:
            assert poll.sent == probe.sent
        later = asyncio.create_task(busy.windows["create"].slot().__aenter__())
        await asyncio.sleep(1.0)
        assert not later.done()
        own.on_success(sent=probe.sent)
    assert (await later).sent > probe.sent
    busy.windows["create"].release(later.result(), answered=True)
