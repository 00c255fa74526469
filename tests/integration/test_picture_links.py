"""Links of pictures: requested as they were given, also after redirects, and with long headers in the answers."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import pytest
import trustme

from sora_chars.session.pictures import Pictures
from tests.support.picture_server import HOME, PNG, PictureServer, character, http, is_home, redirect

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    Serve = Callable[..., Awaitable[PictureServer]]

QUERY = "X-Amz-Signature=A%2Bb%2F%3D+c~%7e&x=%e4%bd%a0,;:@/'()*!$&empty=&z"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """A certificate authority for loopback."""
    return trustme.CA()


@pytest.fixture
async def serve(authority: trustme.CA) -> AsyncIterator[Serve]:
    """A function that starts an HTTPS server with these paths; it is closed after the test."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(HOME).configure_cert(context)
    servers: list[asyncio.Server] = []

    async def start(paths: dict[str, bytes]) -> PictureServer:
        server = PictureServer(paths, set())
        servers.append(await server.start(HOME, context))
        return server

    yield start
    for listening in servers:
        listening.close()


@pytest.fixture
def pictures(tmp_path: Path, authority: trustme.CA) -> Pictures:
    """Pictures that may come from one loopback address."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return Pictures(tmp_path / "pictures", allowed=is_home, ssl=context)


def targets(server: PictureServer) -> list[str]:
    """Return the targets of the requests, as they arrived."""
    return [head.split()[1].decode() for head in server.requests]


async def test_signed_link_is_requested_as_given(pictures: Pictures, serve: Serve) -> None:
    """No escape of a signed link is changed, neither in its path nor in its query."""
    path = "/a%2Fb%7Ec%2b/p%20q.png"
    server = await serve({path: http(PNG)})
    assert await pictures.save(character(f"https://{HOME}:{server.port}{path}?{QUERY}"))
    assert targets(server) == [f"{path}?{QUERY}"]


@pytest.mark.parametrize("location", ["https://{host}/d%2Fe%7e/q?{query}", "/d%2Fe%7e/q?{query}", "q?{query}"])
async def test_redirect_is_followed_as_given(pictures: Pictures, serve: Serve, location: str) -> None:
    """The signed target of a redirect is requested as it was given, absolute or relative."""
    first = "/d%2Fe%7e/p"
    server = await serve({"/d%2Fe%7e/q": http(PNG)})
    host = f"{HOME}:{server.port}"
    server.paths[first] = redirect(location.format(host=host, query=QUERY))
    assert await pictures.save(character(f"https://{host}{first}"))
    assert targets(server) == [first, f"/d%2Fe%7e/q?{QUERY}"]


async def test_link_without_quoting_is_quoted(pictures: Pictures, serve: Serve) -> None:
    """A link with spaces or other scripts, which no request line may contain, is quoted."""
    server = await serve({"/p%20%C3%A9": http(PNG)})
    assert await pictures.save(character(f"https://{HOME}:{server.port}/p é?x=ü"))
    assert targets(server) == ["/p%20%C3%A9?x=%C3%BC"]


async def test_long_headers_are_read(pictures: Pictures, serve: Serve) -> None:
    """A picture with a header of 100 kB, such as a policy, is saved."""
    server = await serve({"/p": http(PNG, headers=f"Content-Security-Policy: {'x' * 100_000}\r\n")})
    assert await pictures.save(character(f"https://{HOME}:{server.port}/p"))
