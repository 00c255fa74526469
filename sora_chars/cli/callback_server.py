"""Receives callbacks while a command waits."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from aiohttp import web

from sora_chars.callbacks.receiver import CallbackReceiver

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncGenerator

    from sora_chars.session.session import CharacterSession


@asynccontextmanager
async def receiving(
    session: CharacterSession, server: socket.socket | None, hmac_key: str | None
) -> AsyncGenerator[None]:
    """Serve a `CallbackReceiver` on the listening socket, and close it at the end; without one do nothing."""
    if server is None:
        yield
        return
    with server:
        logging.getLogger("aiohttp.server").addHandler(logging.NullHandler())  # else a stranger's junk is a traceback
        runner = web.AppRunner(CallbackReceiver(session, hmac_key).aiohttp_app(), access_log=None)
        await runner.setup()
        try:
            await web.SockSite(runner, server).start()
            yield
        finally:
            await runner.cleanup()
