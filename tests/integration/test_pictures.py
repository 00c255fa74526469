"""Saving profile pictures from hostile servers and links."""

from __future__ import annotations

import asyncio
import gzip
import logging
import ssl
from typing import TYPE_CHECKING

import pytest
import trustme

from sora_chars.session.pictures import Pictures
from tests.support.picture_server import (
    GIF,
    HOME,
    JPEG,
    PNG,
    SECRET,
    WEBP,
    PictureServer,
    character,
    files,
    http,
    is_home,
    max_file_size,
    redirect,
    save_rejected,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
    from pathlib import Path

    Serve = Callable[..., Awaitable["PictureServer"]]
    Rejected = Callable[..., Awaitable[str]]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """A certificate authority for loopback."""
    return trustme.CA()


@pytest.fixture
def client_tls(authority: trustme.CA) -> ssl.SSLContext:
    """A TLS context that trusts the servers."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture
async def serve(authority: trustme.CA) -> AsyncIterator[Serve]:
    """A function that starts HTTPS servers on loopback; all are closed after the test."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost", "127.0.0.1", HOME, "::1").configure_cert(context)
    servers: list[asyncio.Server] = []

    async def start(body: bytes = b"", *, host: str = HOME, hangs: Iterable[str] = (), **paths: bytes) -> PictureServer:
        server = PictureServer({"/p": body} | {f"/{name}": data for name, data in paths.items()}, set(hangs))
        servers.append(await server.start(host, context))
        return server

    yield start
    for listening in servers:
        listening.close()


@pytest.fixture
def pictures(tmp_path: Path, client_tls: ssl.SSLContext) -> Pictures:
    """Pictures that may come from one loopback address, of at most 100 kB."""
    return Pictures(tmp_path / "pictures", allowed=is_home, ssl=client_tls, max_bytes=100_000)


@pytest.fixture
def strict_pictures(tmp_path: Path, client_tls: ssl.SSLContext) -> Pictures:
    """Pictures with the default rule for addresses."""
    return Pictures(tmp_path / "pictures", ssl=client_tls)


@pytest.fixture
def rejected(caplog: pytest.LogCaptureFixture) -> Rejected:
    """Return a function that tries to save a picture, and returns why it was rejected."""

    async def save(pictures: Pictures, url: str, character_id: str = "cameo_69") -> str:
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            return await save_rejected(pictures, character(url, character_id), caplog.records)

    return save


@pytest.mark.parametrize(("data", "suffix"), [(PNG, ".png"), (JPEG, ".jpg"), (WEBP, ".webp"), (GIF, ".gif")])
async def test_saves_picture(pictures: Pictures, serve: Serve, data: bytes, suffix: str) -> None:
    """The file's extension depends on the picture's bytes, not on the Content-Type header."""
    server = await serve(http(data, headers="Content-Type: text/plain\r\n"))
    path = await pictures.save(character(server.url()))
    assert path is not None
    assert path.read_bytes() == data
    assert path.suffix == suffix
    assert files(pictures) == [path]


async def test_replaces_older_picture(pictures: Pictures, serve: Serve) -> None:
    """A character that is saved again has one file, with the newer picture."""
    server = await serve(http(PNG), newer=http(PNG + b"newer"))
    first = await pictures.save(character(server.url()))
    second = await pictures.save(character(server.url("/newer")))
    assert first == second
    assert second is not None
    assert second.read_bytes() == PNG + b"newer"
    assert files(pictures) == [second]


async def test_request_has_no_secrets(
    tmp_path: Path, client_tls: ssl.SSLContext, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request has no API key and no cookie, accepts no compression, and uses no proxy."""
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    moved = redirect("/other", status="307 Temporary Redirect\r\nSet-Cookie: a=b")
    server = await serve(moved, host="127.0.0.1", other=http(PNG))
    pictures = Pictures(tmp_path, allowed=lambda address: str(address) == "127.0.0.1", ssl=client_tls)
    assert await pictures.save(character(server.url(host="localhost")))  # cookies are kept for names only
    sent = b"".join(server.requests).lower()
    assert sent.count(b"accept-encoding: identity\r\n") == 2
    assert b"authorization" not in sent
    assert b"cookie" not in sent
    assert SECRET.encode() in server.requests[0]
    assert SECRET.encode() not in server.requests[1]


async def test_closes_the_connection(pictures: Pictures, serve: Serve) -> None:
    """The connection is closed once the picture is downloaded, even if the server keeps it open."""
    server = await serve(http(PNG), hangs=("/p",))
    assert await pictures.save(character(server.url()))
    await server.disconnected.wait()


async def test_character_without_a_picture(pictures: Pictures, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is saved or logged for a character without a picture link."""
    assert await pictures.save(character(None)) is None
    assert await pictures.save(character("")) is None
    assert not caplog.records


async def test_name_of_an_allowed_address(tmp_path: Path, serve: Serve, client_tls: ssl.SSLContext) -> None:
    """A host name that resolves to an allowed address is accepted."""
    server = await serve(http(PNG), host="127.0.0.1")
    pictures = Pictures(tmp_path, allowed=lambda address: str(address) == "127.0.0.1", ssl=client_tls)
    assert await pictures.save(character(server.url(host="localhost")))


@pytest.mark.parametrize("host", ["localhost", "0x7f000001", "localhost.", "127%2e0.0.1"])
async def test_rejects_names_of_private_addresses(
    strict_pictures: Pictures, serve: Serve, rejected: Rejected, host: str
) -> None:
    """A host name without a public address is rejected before a connection is opened."""
    server = await serve(http(PNG), host="127.0.0.1")
    assert await rejected(strict_pictures, server.url(host=host)) in {
        "a name without a public address",
        "Name or service not known",
    }
    assert server.connections == 0


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "0.0.0.0", "169.254.169.254", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::1%25lo]"),
        *("127.1", "2130706433", "0177.0.0.1", "127.0.0.1.", "１２７.0.0.1", "①②⑦.0.0.1"),  # noqa: RUF001 # lookalike digits
    ],
)
async def test_rejects_private_addresses(
    strict_pictures: Pictures, serve: Serve, rejected: Rejected, host: str
) -> None:
    """A private address in the link is rejected in any spelling."""
    server = await serve(http(PNG), host="127.0.0.1")
    assert await rejected(strict_pictures, server.url(host=host)) in {"not a public address", "ValueError"}
    assert server.connections == 0


@pytest.mark.parametrize(
    ("link", "reason"),
    [
        (f"http://{HOME}/p?{SECRET}", "not https"),
        (f"ftp://{HOME}/p?{SECRET}", "not https"),
        (f"file:///etc/passwd?{SECRET}", "not https"),
        (f"/p?{SECRET}", "not https"),
        (f"https://user:word@{HOME}/p?{SECRET}", "a user name in the link"),
        (f"https://:word@{HOME}/p?{SECRET}", "a user name in the link"),
        (f"https:///p?{SECRET}", "InvalidUrlClientError"),
        (f"https://{HOME}:99999/p?{SECRET}", "ValueError"),
        (f"https://\ud800/p?{SECRET}", "Unicode"),
    ],
)
async def test_rejects_other_links(pictures: Pictures, rejected: Rejected, link: str, reason: str) -> None:
    """Only an absolute https link without a user name is requested."""
    assert (await rejected(pictures, link)).startswith(reason)


@pytest.mark.parametrize("hops", [1, 3])
@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 Other", "307 Temporary", "308 Permanent"])
async def test_follows_redirects(pictures: Pictures, serve: Serve, hops: int, status: str) -> None:
    """Up to three redirects are followed."""
    steps = {f"hop{number}": redirect(f"/hop{number + 1}", status) for number in range(hops)}
    server = await serve(**steps, **{f"hop{hops}": http(PNG)})
    assert await pictures.save(character(server.url("/hop0")))
    assert len(server.requests) == hops + 1


async def test_rejects_endless_redirects(pictures: Pictures, serve: Serve, rejected: Rejected) -> None:
    """A link that redirects to itself, or without a location, is rejected after three redirects."""
    server = await serve(redirect("/p"), nowhere=http(b"", status="302 Found"))
    assert await rejected(pictures, server.url()) == "more than 3 redirects"
    assert len(server.requests) == 4
    assert await rejected(pictures, server.url("/nowhere")) == "more than 3 redirects"


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("http://{home}/p", "not https"),
        ("https://127.0.0.1:{port}/p", "not a public address"),
        ("//127.0.0.1:{port}/p", "not a public address"),
        ("https://[::ffff:127.0.0.1]:{port}/p", "not a public address"),
        ("https://localhost:{port}/p", "a name without a public address"),
        ("https://user@{home}/p", "a user name in the link"),
        ("https://{home}:99999/p", "ValueError"),
    ],
)
async def test_rejects_redirects(
    pictures: Pictures, serve: Serve, rejected: Rejected, location: str, reason: str
) -> None:
    """The rules for links apply to every redirect."""
    private = await serve(http(PNG), host="127.0.0.1")
    server = await serve(redirect(location.format(port=private.port, home=HOME)))
    assert await rejected(pictures, server.url()) == reason
    assert len(server.requests) == 1
    assert private.connections == 0


@pytest.mark.parametrize("length", [None, -1])
async def test_accepts_largest_size(pictures: Pictures, serve: Serve, length: int | None) -> None:
    """A picture of `max_bytes` is saved, with or without a Content-Length header."""
    data = PNG.ljust(pictures.max_bytes, b"p")
    server = await serve(http(data, length=length))
    path = await pictures.save(character(server.url()))
    assert path is not None
    assert path.read_bytes() == data


@pytest.mark.parametrize("length", [None, -1])
async def test_rejects_larger_pictures(
    pictures: Pictures, serve: Serve, rejected: Rejected, length: int | None
) -> None:
    """One more byte is rejected, with or without a Content-Length header."""
    server = await serve(http(PNG.ljust(pictures.max_bytes + 1, b"p"), length=length))
    assert await rejected(pictures, server.url()) == "more than 100000 bytes"


async def test_rejects_endless_responses(pictures: Pictures, serve: Serve, rejected: Rejected) -> None:
    """Reading an endless response stops at the limit."""
    server = await serve(http(PNG.ljust(200_000, b"p"), length=10**12), hangs=("/p",))
    assert await rejected(pictures, server.url()) == "more than 100000 bytes"


@pytest.mark.parametrize("encoding", ["", "Content-Encoding: gzip\r\n"])
async def test_does_not_decompress(pictures: Pictures, serve: Serve, rejected: Rejected, encoding: str) -> None:
    """A compressed response is not decompressed, and therefore not a picture."""
    server = await serve(http(gzip.compress(PNG.ljust(10_000_000, b"p")), headers=encoding))
    assert await rejected(pictures, server.url()) == "neither PNG nor JPEG, WebP, GIF"


async def test_rejects_pages(pictures: Pictures, serve: Serve, rejected: Rejected) -> None:
    """An HTML page is rejected even if its Content-Type is that of a picture."""
    server = await serve(http(b"<html><script>alert(1)</script>", headers="Content-Type: image/png\r\n"))
    assert await rejected(pictures, server.url()) == "neither PNG nor JPEG, WebP, GIF"


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (http(PNG, status="404 Not Found"), "HTTP 404"),
        (http(PNG, status="206 Partial Content"), "HTTP 206"),
        (http(PNG, length=2000), "ClientPayloadError"),
        (http(PNG, headers="Transfer-Encoding: chunked\r\n", length=-1), "ClientResponseError"),
        (http(PNG)[:20], "ServerDisconnectedError"),
        (b"", "ServerDisconnectedError"),
        (b"SSH-2.0-OpenSSH_9.7\r\n\r\n", "ClientResponseError"),
    ],
)
async def test_rejects_invalid_responses(
    pictures: Pictures, serve: Serve, rejected: Rejected, response: bytes, reason: str
) -> None:
    """Errors, truncated responses and junk leave no file."""
    server = await serve(response)
    assert await rejected(pictures, server.url()) == reason


async def test_rejects_servers_without_tls(pictures: Pictures, rejected: Rejected) -> None:
    """Nothing is read from a server that does not use TLS."""

    async def respond_without_tls(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(http(PNG))
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(respond_without_tls, HOME, 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert "SSL" in await rejected(pictures, f"https://{HOME}:{port}/p?{SECRET}")


async def test_rejects_unknown_certificates(tmp_path: Path, serve: Serve, rejected: Rejected) -> None:
    """A certificate of an unknown authority is rejected."""
    server = await serve(http(PNG))
    pictures = Pictures(tmp_path, allowed=is_home)
    assert "certificate" in (await rejected(pictures, server.url())).lower()
    assert not server.requests


@pytest.mark.parametrize("sent", [b"", http(PNG)[:60], http(PNG, length=2000)])
async def test_times_out(
    tmp_path: Path, serve: Serve, client_tls: ssl.SSLContext, rejected: Rejected, sent: bytes
) -> None:
    """A server that stops sending is disconnected after the timeout."""
    server = await serve(sent, hangs=("/p",))
    pictures = Pictures(tmp_path, allowed=is_home, ssl=client_tls, timeout=0.5)
    assert await rejected(pictures, server.url()) == "TimeoutError"
    assert server.requests


async def test_timeout_includes_redirects(
    tmp_path: Path, serve: Serve, client_tls: ssl.SSLContext, rejected: Rejected
) -> None:
    """A redirect does not restart the timeout."""
    server = await serve(redirect("/b"), b=redirect("/c"), c=redirect("/d"), d=http(PNG))
    server.delay = 0.4
    pictures = Pictures(tmp_path, allowed=is_home, ssl=client_tls, timeout=0.8)
    assert await rejected(pictures, server.url()) == "TimeoutError"


async def test_cancelled_save_leaves_no_file(pictures: Pictures, serve: Serve) -> None:
    """A save that is cancelled during a response raises CancelledError and leaves no file."""
    server = await serve(http(PNG, length=2000), hangs=("/p",))
    saving = asyncio.create_task(pictures.save(character(server.url())))
    await server.responded.wait()
    saving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await saving
    assert files(pictures) == []


async def test_cancelled_save_leaves_no_partial_file(pictures: Pictures, serve: Serve) -> None:
    """Whenever a save is cancelled, the folder holds the complete picture or nothing."""
    server = await serve(http(PNG))
    for attempt in range(40):
        saving = asyncio.create_task(pictures.save(character(server.url())))
        await asyncio.wait([saving], timeout=attempt / 4000)
        saving.cancel()
        await asyncio.gather(saving, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_default_executor()  # the threads of cancelled saves have finished
    assert [path.read_bytes() for path in files(pictures)] in ([], [PNG])


@pytest.mark.parametrize("character_id", ["../../x", "/etc/x", "a\0b", "x" * 5000, "..", "", "\ud800", "CON\r\n"])
async def test_id_never_leaves_the_folder(pictures: Pictures, serve: Serve, character_id: str) -> None:
    """The file is inside the folder, whatever the id is."""
    server = await serve(http(PNG))
    path = await pictures.save(character(server.url(), character_id))
    assert path is not None
    assert files(pictures) == [path]


async def test_id_is_printable_in_the_log(pictures: Pictures, caplog: pytest.LogCaptureFixture) -> None:
    """Terminal escapes and line breaks in an id are not logged."""
    assert await pictures.save(character("http://x/", "a\x1b[31m\nb")) is None
    assert vars(caplog.records[0])["character"] == "a [31m b"


async def test_folder_that_cannot_be_created(
    tmp_path: Path, serve: Serve, client_tls: ssl.SSLContext, rejected: Rejected
) -> None:
    """If the folder cannot be created, nothing is raised and the reason is logged."""
    (tmp_path / "file").touch()
    server = await serve(http(PNG))
    pictures = Pictures(tmp_path / "file/pictures", allowed=is_home, ssl=client_tls)
    assert await rejected(pictures, server.url()) == "Not a directory"


async def test_full_disk(pictures: Pictures, serve: Serve, rejected: Rejected) -> None:
    """On a full disk the older picture is kept, and no part of the newer one."""
    server = await serve(http(PNG), newer=http(PNG + b"newer"))
    path = await pictures.save(character(server.url()))
    with max_file_size(500):
        assert await rejected(pictures, server.url("/newer")) == "File too large"
    assert path is not None
    assert path.read_bytes() == PNG
