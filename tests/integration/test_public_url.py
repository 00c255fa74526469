"""One setting for callbacks: the public URL of a session, and its own applications."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn
from aiohttp import web
from fastapi import FastAPI

from sora_chars import CharacterSession, Evolink, FixedInterval, Kie, Kkiai, Kling
from sora_chars.errors import ConfigurationError

if TYPE_CHECKING:
    from sora_chars.testing import Emulator

REQUEST: dict[str, Any] = {"from_task": "a" * 32, "clip": "1,3", "prompt": "a dog"}


@pytest.fixture
def listener() -> socket.socket:
    """A socket that listens on a free port."""
    return socket.create_server(("127.0.0.1", 0))


def session_at(emulator: Emulator, listener: socket.socket) -> CharacterSession:
    """Return a session that polls once an hour, and receives callbacks at the listener."""
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/hooks/"
    kie = Kie("kie-key", base_url=emulator.url, limits=None)
    return CharacterSession(kie, polling=FixedInterval(3600), public_url=url)


async def test_aiohttp(emulator: Emulator, listener: socket.socket) -> None:
    """The aiohttp application of a session receives the callbacks of its tasks."""
    async with session_at(emulator, listener) as session:
        app = web.Application()
        app.add_subapp("/hooks/", session.aiohttp_app())
        assert session.asgi == session.asgi  # of the same receiver
        runner = web.AppRunner(app)
        await runner.setup()
        await web.SockSite(runner, listener).start()
        character = await session.create(**REQUEST, timeout=20)
        await runner.cleanup()
    assert character.id


async def test_fastapi(emulator: Emulator, listener: socket.socket) -> None:
    """The ASGI application of a session can be mounted before the session is open."""
    session = session_at(emulator, listener)
    app = FastAPI()
    app.mount("/hooks", session.asgi)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none"))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    async with session:
        assert (await session.create(**REQUEST, timeout=20)).id
    server.should_exit = True
    await serving


def test_providers_that_send_callbacks_get_the_url() -> None:
    """The URL goes to each provider that can be given one, unless it has one of its own."""
    kie = Kie("k")
    kling = Kling("kling-key", callback_url="https://own.example.com/kling")
    kkiai = Kkiai("k")
    session = CharacterSession(kie, kling, kkiai, public_url="https://example.com/hooks/")
    assert session.public_url == kie.callback_url == "https://example.com/hooks"
    assert kling.callback_url == "https://own.example.com/kling"
    assert kkiai.callback_url is None


def test_an_invalid_url_is_an_error() -> None:
    """A URL that cannot be called is named before anything is sent."""
    with pytest.raises(ConfigurationError, match="public_url"):
        CharacterSession(Kie("k"), public_url="example.com/hooks")


def test_a_provider_that_calls_https_only() -> None:
    """A public URL that a provider of the session would not call is refused before anything is sent."""
    with pytest.raises(ConfigurationError, match="public_url must be an https:// URL, since evolink calls no other"):
        CharacterSession(Evolink("key"), public_url="http://app.example/hooks")
    provider = Evolink("key")
    CharacterSession(provider, public_url="https://app.example/hooks")
    assert provider.callback_url == "https://app.example/hooks"
