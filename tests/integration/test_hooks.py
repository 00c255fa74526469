"""Callback URLs that exist before their request, for any API."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from sora_chars import CharacterSession, Kie, open_ledger
from sora_chars.callbacks.hooks import HookEvent, record_event
from sora_chars.callbacks.receiver import CallbackReceiver
from sora_chars.errors import (
    ConfigurationError,
    InvalidRequestError,
    KeyConflictError,
    LedgerError,
    SessionClosedError,
    TaskFailedError,
    WaitTimeoutError,
)
from sora_chars.events import CallbackReceived, Event
from sora_chars.ledger import Ledger
from tests.support.fake_providers import FaultyStore

if TYPE_CHECKING:
    from pathlib import Path

PUBLIC = "https://example.com/hooks"


def session_at(url: str | Path | Ledger, **options: Any) -> CharacterSession:
    """Return a session with a public URL, whose provider is not used."""
    ledger = url if isinstance(url, Ledger) else open_ledger(url)
    return CharacterSession(Kie("kie-key"), ledger=ledger, public_url=PUBLIC, **options)


async def post(session: CharacterSession, url: str, body: bytes = b'{"state": "done"}') -> int:
    """Deliver a callback to a session; return the status of the answer."""
    status, _ = await CallbackReceiver(session).handle("POST", url.removeprefix("https://example.com"), {}, body)
    return status


async def test_the_event_of_a_hook(ledger_url: str) -> None:
    """The first callback ends the wait, and later ones change nothing."""
    events: list[Event] = []
    async with session_at(ledger_url, observers=[events.append]) as session:
        async with session.hook("poster-17", timeout=20) as hook:
            assert hook.url.startswith(f"{PUBLIC}/")
            waiting = asyncio.create_task(hook.event())
            await asyncio.sleep(0)
            assert await post(session, hook.url) == 200
            assert await post(session, hook.url, b"later") == 200
            event = await waiting
            assert await hook.event() == event
        assert repr(hook) == "<Hook poster-17>"
        assert [saved async for saved in session.characters()] == []
    assert event.payload == {"state": "done"}
    assert event.received_at > 0
    assert [(one.key, one.status) for one in events if isinstance(one, CallbackReceived)] == [("poster-17", 200)] * 2


async def test_the_same_key_is_the_same_hook(shared_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """After a restart, and in another process, the hook has its URL, and its callback if that has arrived."""
    async with session_at(shared_url) as session, session.hook("poster-17") as hook:
        first = hook.url
    async with session_at(shared_url) as session:
        async with session.hook("poster-17") as hook:
            assert hook.url == first
        assert [handle async for handle in session.recover()] == []
        async with session_at(shared_url) as web:
            waiting = asyncio.create_task(hook.event())
            assert await post(web, first, b"not JSON") == 200
            assert (await asyncio.wait_for(waiting, 20)).payload == "not JSON"
    async with session_at(shared_url) as session, session.hook("poster-17") as hook:
        assert (await hook.event()).payload == "not JSON"
    assert "recovery.no_provider" not in [vars(record).get("event") for record in caplog.records]


async def test_a_race(tmp_path: Path) -> None:
    """The first of callback and poll wins; an error of a poll ends the race."""
    answers: list[str | None] = [None, None, "polled"]

    async def poll() -> str | None:
        await asyncio.sleep(0)
        return answers.pop(0)

    async def never() -> None:
        await asyncio.sleep(0)

    async def broken() -> None:
        raise ZeroDivisionError

    async with session_at(tmp_path / "characters.db") as session:
        async with session.hook("one") as hook:
            assert await hook.race(poll, interval=0.01) == "polled"
            with pytest.raises(ZeroDivisionError):
                await hook.race(broken)
            racing = asyncio.create_task(hook.race(never, interval=0.01))
            await asyncio.sleep(0.05)
            await post(session, hook.url)
            won = await racing
        async with session.hook("two", timeout=0.05) as hook:
            with pytest.raises(WaitTimeoutError, match=r"two arrived within 0\.05 s"):
                await hook.race(never, interval=0.01)
    assert isinstance(won, HookEvent)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_closing_ends_the_wait(tmp_path: Path) -> None:
    """A session that is closed ends the wait for a callback, which may be waited for again."""
    async with session_at(tmp_path / "characters.db") as session, session.hook("one", timeout=float("inf")) as hook:
        waiting = asyncio.create_task(hook.event())
        await asyncio.sleep(0.05)
        await session.aclose()
        with pytest.raises(SessionClosedError):
            await waiting


async def test_a_hook_is_given_up(tmp_path: Path) -> None:
    """A hook that is given up ends its wait with an error, as any request does."""
    async with session_at(tmp_path / "characters.db") as session, session.hook("one") as hook:
        waiting = asyncio.create_task(hook.event())
        await asyncio.sleep(0.05)
        await session.resolve("one", give_up=True)
        with pytest.raises(TaskFailedError, match="given up"):
            await waiting


async def test_a_hook_needs_a_public_url() -> None:
    """Without a public URL there is nothing to give away, and a key of a request is no hook."""
    async with CharacterSession(Kie("kie-key")) as session:
        with pytest.raises(ConfigurationError, match="public_url"):
            async with session.hook("one"):
                pass
    async with session_at("memory:") as session:
        await session.register(from_task="a" * 32, clip="1,3", prompt="a dog", key="mine")
        with pytest.raises(KeyConflictError, match="mine already belongs to a request to kie"):
            async with session.hook("mine"):
                pass


async def test_the_token_is_shown_nowhere(tmp_path: Path) -> None:
    """The entry of a hook is shown without the token of its URL."""
    async with session_at(tmp_path / "characters.db") as session, session.hook("one") as hook:
        token = hook.url.rpartition("/")[2]
        entry = await session.entry("one")
    assert token not in repr(entry)


async def test_a_ledger_that_cannot_be_written() -> None:
    """A callback that cannot be recorded is refused, so that its sender repeats it. One that came second is taken."""
    store = FaultyStore()
    async with session_at(Ledger(store)) as session, session.hook("one") as hook:
        stale = await session.entry("one")
        assert stale
        store.bug = LedgerError("The disk is full.")
        store.full = {stale.state.SUCCEEDED}
        assert await post(session, hook.url) == 503
        store.full = set()
        assert await post(session, hook.url) == 200
        await record_event(session.ledger, stale, b"late", now=1.0)
        assert (await hook.event()).payload == {"state": "done"}


async def test_invalid_options_of_a_hook(ledger_url: str) -> None:
    """A key that is no text and an interval that is no number are named in the error."""
    keys: list[Any] = [5, None]
    intervals: list[Any] = ["1", -1, float("nan"), 10**400]
    async with session_at(ledger_url) as session:
        for key in keys:
            with pytest.raises(InvalidRequestError, match=r"^key must be text, got"):
                await session.hook(key).__aenter__()
        async with session.hook("poster-17", timeout=0.0) as hook:
            for interval in intervals:
                with pytest.raises(
                    InvalidRequestError, match=r"^interval must be a number of seconds, at least 0, got"
                ):
                    await hook.race(hook.event, interval=interval)


async def test_a_hook_is_no_request(ledger_url: str) -> None:
    """What carries on, follows or repeats a request names the key of a hook, also after its callback has arrived."""
    async with session_at(ledger_url) as session, session.hook("poster-17") as hook:
        for _ in range(2):
            for call in (session.advance("poster-17"), session.wait("poster-17"), session.retry("poster-17")):
                with pytest.raises(
                    InvalidRequestError, match=r"^key: poster-17 is the key of a hook, not of a request"
                ):
                    await call
            assert await post(session, hook.url) == 200


@pytest.mark.parametrize("body", [b'{"a": NaN}', b"[-Infinity]", b"1e999"])
async def test_numbers_that_json_lacks(body: bytes) -> None:
    """A body with a number that JSON cannot hold is kept as text, so exports stay readable by other programs."""
    async with session_at("memory:") as session, session.hook("poster-17") as hook:
        assert await post(session, hook.url, body) == 200
        assert (await hook.event()).payload == body.decode()
