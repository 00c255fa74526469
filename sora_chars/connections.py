"""The HTTP clients of a transport: one for creates, which never reuse a connection, and one for other requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import aiohttp

from .errors import ConfigurationError
from .kinds import KINDS

if TYPE_CHECKING:
    from types import SimpleNamespace

    from .kinds import Kind

MAX_HEADER_BYTES = 256 * 1024
"""The maximum length of a header in an answer. An answer beyond it is lost, and aiohttp allows 8 kB by default."""


def open_clients(http: aiohttp.ClientSession | None) -> dict[Kind, aiohttp.ClientSession]:
    """Return a client for each kind of request.

    Of a caller's session only the connector, the trace configurations and the default proxy are used: its
    middlewares could repeat a create, and its other options change our requests or responses.
    """
    if http is None:
        # The semaphore bounds the requests in flight, so no request waits inside aiohttp's pool.
        connector: aiohttp.BaseConnector | None = aiohttp.TCPConnector(limit=0)
        traces: list[aiohttp.TraceConfig] = []
    else:
        connector = http.connector
        traces = http.trace_configs
    if connector is None or connector.closed:
        raise ConfigurationError("http: the aiohttp session is closed.", hint="Pass a session that is open.")
    plain = _client(connector, traces, owner=http is None)
    guard = aiohttp.TraceConfig()
    guard.on_connection_reuseconn.append(_note_reuse)
    guard.on_request_headers_sent.append(_before_first_byte)
    paid = _client(connector, [*traces, guard], owner=False)
    return {kind: paid if kind == "create" else plain for kind in KINDS}


def _client(
    connector: aiohttp.BaseConnector, traces: list[aiohttp.TraceConfig], *, owner: bool
) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=connector,
        connector_owner=owner,
        trace_configs=traces,
        cookie_jar=aiohttp.DummyCookieJar(),
        max_line_size=MAX_HEADER_BYTES,
        max_field_size=MAX_HEADER_BYTES,
    )


class ReusedConnectionError(aiohttp.ClientError):
    """A create got a connection that was used before; nothing was written to it, and aiohttp closes it."""


async def _note_reuse(client: object, context: SimpleNamespace, params: object) -> None:
    del client, params
    context.is_reused = True


async def _before_first_byte(client: object, context: SimpleNamespace, params: object) -> None:
    """Let a create write only to a new connection. aiohttp calls this before it writes the headers."""
    del client, params
    if getattr(context, "is_reused", False):
        raise ReusedConnectionError
    context.trace_request_ctx.may_have_left = True
