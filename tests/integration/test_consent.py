"""Tasks that wait for the consent of a person, from the session's view."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from sora_chars import CharacterSession, FixedInterval, HeyGen, WaitTimeoutError
from sora_chars.testing import Emulator
from tests.support.heygen_account import KEY, VIDEO, only_look, provider_of, session_at

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

TWIN: dict[str, Any] = {"video": VIDEO, "name": "Rex"}


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    """Start an emulator whose next avatar waits for consent."""
    async with Emulator(durations=(0.02, 0.04), heygen_key=KEY) as running:
        running.fault("heygen_consent")
        yield running


async def consent(page: str) -> None:
    """Open the page and consent, as a person does."""
    async with aiohttp.ClientSession() as browser:
        async with browser.get(page) as response:
            assert "I consent" in await response.text()
        async with browser.post(page) as response:
            assert response.status == 200


def consents(emulator: Emulator) -> int:
    """Return how often a page of consent was requested."""
    return emulator.request_counts["POST", "/v3/avatars/{group_id}/consent"]


async def test_consent(emulator: Emulator) -> None:
    """The updates show the page, which is requested once; after the consent the character is made."""
    async with session_at(emulator) as session:
        handle = await session.submit(**TWIN)
        pages: list[str | None] = []
        async for snapshot in handle.updates():
            if snapshot.waiting_for and snapshot.waiting_for not in pages:
                await emulator.until(lambda: only_look(emulator).polls > 4)
                await consent(snapshot.waiting_for)
            pages.append(snapshot.waiting_for)
        character = await handle
    assert pages[0] is None
    assert pages[-1] is None
    assert len(set(pages)) == 2
    assert (character.id, consents(emulator)) == (only_look(emulator).look_id, 1)


async def test_time_out(emulator: Emulator, caplog: pytest.LogCaptureFixture) -> None:
    """A time-out says that a person is waited for; no log, repr or message holds the secret part of the page."""
    async with session_at(emulator) as session:
        handle = await session.submit(**TWIN)
        with pytest.raises(WaitTimeoutError, match="waits for a person, and the wait for it timed out") as caught:
            await handle.result(0.3)
        page = handle.snapshot and handle.snapshot.waiting_for
        assert page
        assert "handle.snapshot.waiting_for" in caught.value.hint
        shown = str(caught.value) + caplog.text + repr(handle.snapshot)
    assert "lang=en" not in shown
    [record] = [record for record in caplog.records if vars(record).get("event") == "task.waits_for_person"]
    assert (record.levelno, vars(record)["page"]) == (logging.WARNING, page.replace("lang=en", "***"))


async def test_a_restart_goes_on(emulator: Emulator, tmp_path: Path) -> None:
    """A session that is opened later shows a page too, and waits for the same task."""
    ledger = str(tmp_path / "ledger.db")
    provider = HeyGen(KEY, base_url=emulator.url, consent_interval=0.005)
    async with CharacterSession(provider, ledger=ledger, polling=FixedInterval(0.005)) as session:
        with pytest.raises(WaitTimeoutError):
            await session.create(**TWIN, key="order-17", timeout=0.3)
    provider = HeyGen(KEY, base_url=emulator.url, consent_interval=0.005)
    async with CharacterSession(provider, ledger=ledger, polling=FixedInterval(0.005), timeout=20) as session:
        [handle] = [handle async for handle in session.recover()]
        async for snapshot in handle.updates():
            if snapshot.waiting_for:
                await consent(snapshot.waiting_for)
        assert (await session.create(**TWIN, key="order-17")).id == only_look(emulator).look_id
    assert emulator.counts.avatars == 1


async def test_polls_are_rare(emulator: Emulator) -> None:
    """While a person is waited for, the interval of consent replaces that of the strategy."""
    async with session_at(emulator, consent_interval=30) as session:
        handle = await session.submit(**TWIN)
        page: str | None = None
        async for snapshot in handle.updates():
            page = snapshot.waiting_for
            if page:
                break
        polls = only_look(emulator).polls
        await asyncio.sleep(0.2)  # 40 intervals of the strategy
        assert only_look(emulator).polls == polls
        assert (await handle.refresh()).waiting_for == page
    assert consents(emulator) == 1


async def test_polls_at_once_share_a_page(emulator: Emulator) -> None:
    """Polls of one task at the same time request one page."""
    async with session_at(emulator, consent_interval=30) as session:
        handle = await session.submit(**TWIN)
        provider = provider_of(session)
        found = await asyncio.gather(*(provider.fetch(handle.task_id) for _ in range(10)))
    assert (len({snapshot.waiting_for for snapshot in found}), consents(emulator)) == (1, 1)


async def test_changed_records_keep_their_page(emulator: Emulator) -> None:
    """A record that changes while the person is waited for does not cost another page."""
    async with session_at(emulator, consent_interval=30) as session:
        handle = await session.submit(**TWIN)
        provider = provider_of(session)
        first = await provider.fetch(handle.task_id)
        only_look(emulator).name = "Another name"
        second = await provider.fetch_if_changed(first)
        assert second.raw["name"] == "Another name"
        assert await provider.fetch_if_changed(second) is second
    assert (first.waiting_for, consents(emulator)) == (second.waiting_for, 1)


async def test_page_that_cannot_be_requested(emulator: Emulator, caplog: pytest.LogCaptureFixture) -> None:
    """If the page cannot be requested, the wait goes on, and the next poll requests it again."""
    emulator.fault("heygen_error", on="avatar_other", code="plan_upgrade_required", times=2)
    async with session_at(emulator) as session:
        handle = await session.submit(**TWIN)
        async for snapshot in handle.updates():
            if snapshot.waiting_for:
                await consent(snapshot.waiting_for)
    warnings = [record for record in caplog.records if vars(record).get("event") == "consent.no_page"]
    assert (len(warnings), consents(emulator)) == (2, 3)


async def test_look_without_a_group(emulator: Emulator) -> None:
    """A look that names no group has no page, and the wait goes on."""
    async with session_at(emulator) as session:
        handle = await session.submit(**TWIN)
        look = only_look(emulator)
        group_id = look.group_id
        look.group_id = ""
        snapshot = await provider_of(session).fetch(handle.task_id)
        assert (snapshot.state, snapshot.waiting_for) == ("pending_consent", None)
        look.group_id = group_id
        emulator.heygen.consent(group_id)
        assert (await handle).id == look.look_id


async def test_steps(emulator: Emulator) -> None:
    """A step of a job engine names the page, and when to call again."""
    async with session_at(emulator, consent_interval=30) as session:
        await session.register(**TWIN, key="order-17")
        await session.advance("order-17")
        step = await session.advance("order-17")
        assert (step.retry_in, step.finished) == (30, False)
        assert step.waiting_for is not None
        assert "lang=en" not in repr(step)
        await consent(step.waiting_for)
        await emulator.until(lambda: only_look(emulator).status == "completed")
        step = await session.advance("order-17")
        assert (step.finished, step.waiting_for) == (True, None)
