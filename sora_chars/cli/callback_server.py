"""The HTTP server that receives callbacks while a command waits."""

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

_GRACE = 0.5  # seconds for requests in progress at the end, and for the rest of a rejected body


@asynccontextmanager
async def serve_callbacks(
    session: CharacterSession, listener: socket.socket | None, hmac_key: str | None
) -> AsyncGenerator[None]:
    """Serve a `CallbackReceiver` on a listening socket until the block ends.

    Args:
        session: The session whose tasks the callbacks belong to.
        listener: The socket, which is closed at the end; None serves nothing.
        hmac_key: The key that callbacks must be signed with, if any.
    """
    if listener is None:
        yield
        return
    with listener:
        logging.getLogger("aiohttp.server").addHandler(logging.NullHandler())  # or malformed requests print tracebacks
        app = CallbackReceiver(session, hmac_key).aiohttp_app()
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=_GRACE, lingering_time=_GRACE)
        await runner.setup()
        try:
            await web.SockSite(runner, listener).start()
            yield
        finally:
            await runner.cleanup()
