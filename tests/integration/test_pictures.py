from __future__ import annotations

import asyncio
import gzip
import logging
import resource
import ssl
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trustme

from sora_chars.models import Character
from sora_chars.session.pictures import Pictures

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Generator
    from ipaddress import IPv4Address, IPv6Address
    from pathlib import Path

    Serve = Callable[..., Awaitable["PictureServer"]]
    Refused = Callable[..., Awaitable[str]]

PNG = b"\x89PNG\r\n\x1a\n" + b"p" * 1000
JPEG = b"\xff\xd8\xff\xe0" + b"j" * 1000
WEBP = b"RIFF\xf0\3\0\0WEBP" + b"w" * 1000
GIF = b"GIF89a" + b"g" * 1000
SECRET = "signature=SECRET"
HOME = "127.0.0.2"  # the one address that the tests allow; its neighbours stand for a private network


def http(body: bytes, *, status: str = "200 OK", headers: str = "", length: int | None = None) -> bytes:
    """An answer; `length` is what it says of its body, less than 0 says nothing."""
    said = len(body) if length is None else length
    head = f"HTTP/1.1 {status}\r\n{headers}"
    return (head + (f"Content-Length: {said}\r\n\r\n" if said >= 0 else "\r\n")).encode() + body


def redirect(place: str, status: str = "302 Found") -> bytes:
    """An answer that sends elsewhere."""
    return http(b"", status=status, headers=f"Location: {place}\r\n")


@attrs.define(eq=False)
class PictureServer:
    """A server that answers each path with its bytes, and stays silent after them where the path is in `hangs`."""

    paths: dict[str, bytes]
    hangs: set[str]
    delay: float = 0
    port: int = 0
    connections: int = 0
    requests: list[bytes] = attrs.field(factory=list[bytes])
    asked: asyncio.Event = attrs.field(factory=asyncio.Event)
    left: asyncio.Event = attrs.field(factory=asyncio.Event)

    def url(self, path: str = "/p", host: str = HOME) -> str:
        """The link of a path, with a signature that nobody may log."""
        return f"https://{host}:{self.port}{path}?{SECRET}"

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Response one request."""
        self.connections += 1
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.requests.append(head)
            path = head.split()[1].partition(b"?")[0].decode()
            await asyncio.sleep(self.delay)
            writer.write(self.paths[path])
            await writer.drain()
            self.asked.set()
            if path in self.hangs:
                await reader.read()
                self.left.set()
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client has left
        finally:
            writer.close()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Give an authority that signs for loopback."""
    return trustme.CA()


@pytest.fixture
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    """Give what a client needs to believe the servers."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture
async def serve(authority: trustme.CA) -> AsyncIterator[Serve]:
    """Start https servers on loopback; all are closed after the test."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost", "127.0.0.1", HOME, "::1").configure_cert(context)
    servers: list[asyncio.Server] = []

    async def start(
        body: bytes = b"", *, host: str = HOME, hangs: tuple[str, ...] = (), **paths: bytes
    ) -> PictureServer:
        ours = PictureServer({"/p": body} | {f"/{name}": data for name, data in paths.items()}, set(hangs))
        server = await asyncio.start_server(ours.handle, host, 0, ssl=context)
        servers.append(server)
        ours.port = server.sockets[0].getsockname()[1]
        return ours

    yield start
    for server in servers:
        server.close()


def is_home(address: IPv4Address | IPv6Address) -> bool:
    """Whether an address is the one that stands for the open internet."""
    return str(address) == HOME


@pytest.fixture
def pictures(tmp_path: Path, trusting: ssl.SSLContext) -> Pictures:
    """Give pictures that may go to one address of loopback, and take 100 kB."""
    return Pictures(tmp_path / "pictures", allowed=is_home, ssl=trusting, max_bytes=100_000)


@pytest.fixture
def careful(tmp_path: Path, trusting: ssl.SSLContext) -> Pictures:
    """Give pictures with the real rule for addresses."""
    return Pictures(tmp_path / "pictures", ssl=trusting)


def character(url: str | None, character_id: str = "cameo_69") -> Character:
    """A character with a picture."""
    return Character(id=character_id, provider="kkiai", picture_url=url)


@pytest.fixture
def refused(caplog: pytest.LogCaptureFixture) -> Refused:
    """Return an asker for a picture that must not be saved, which returns the reason."""

    async def ask(pictures: Pictures, url: str, character_id: str = "cameo_69") -> str:
        before = files(pictures)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert await pictures.save(character(url, character_id)) is None
        (record,) = [record for record in caplog.records if record.name == "sora_chars.pictures"]
        facts: dict[str, Any] = vars(record)
        assert (record.msg, facts["provider"]) == ("picture.not_saved", "kkiai")
        assert str(facts["character"]) in character_id
        assert SECRET not in str(facts)
        assert files(pictures) == before
        return str(facts["why"])

    return ask


def files(pictures: Pictures) -> list[Path]:
    """All files of the folder, temporary ones too."""
    return sorted(pictures.folder.iterdir()) if pictures.folder.is_dir() else []


@pytest.mark.parametrize(("data", "suffix"), [(PNG, ".png"), (JPEG, ".jpg"), (WEBP, ".webp"), (GIF, ".gif")])
async def test_a_picture_is_saved(pictures: Pictures, serve: Serve, data: bytes, suffix: str) -> None:
    """Each type of picture becomes a file of its own extension, whatever the header says it is."""
    server = await serve(http(data, headers="Content-Type: text/plain\r\n"))
    path = await pictures.save(character(server.url()))
    assert path is not None
    assert path.read_bytes() == data
    assert path.suffix == suffix
    assert files(pictures) == [path]


async def test_a_newer_picture_takes_the_place_of_the_older(pictures: Pictures, serve: Serve) -> None:
    """Saved again, a character has one file, with the newer picture."""
    server = await serve(http(PNG), newer=http(PNG + b"newer"))
    first = await pictures.save(character(server.url()))
    second = await pictures.save(character(server.url("/newer")))
    assert first == second
    assert second is not None
    assert second.read_bytes() == PNG + b"newer"
    assert files(pictures) == [second]


async def test_the_request_says_nothing_of_us(
    tmp_path: Path, trusting: ssl.SSLContext, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No key, cookie or compression is in a request, the signed link is whole, and no proxy sees it."""
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    moved = redirect("/other", status="307 Temporary Redirect\r\nSet-Cookie: a=b")
    server = await serve(moved, host="127.0.0.1", other=http(PNG))
    pictures = Pictures(tmp_path, allowed=lambda address: str(address) == "127.0.0.1", ssl=trusting)
    assert await pictures.save(character(server.url(host="localhost")))  # a jar keeps cookies of names only
    asked = b"".join(server.requests).lower()
    assert asked.count(b"accept-encoding: identity\r\n") == 2
    assert b"authorization" not in asked
    assert b"cookie" not in asked
    assert SECRET.encode() in server.requests[0]
    assert SECRET.encode() not in server.requests[1]


async def test_no_connection_stays_open(pictures: Pictures, serve: Serve) -> None:
    """A connection that the server would keep is closed when the picture is here."""
    server = await serve(http(PNG), hangs=("/p",))
    assert await pictures.save(character(server.url()))
    await server.left.wait()


async def test_no_link_is_no_fault(pictures: Pictures, caplog: pytest.LogCaptureFixture) -> None:
    """A character without a picture has none to save, and nobody is warned."""
    assert await pictures.save(character(None)) is None
    assert await pictures.save(character("")) is None
    assert not caplog.records


async def test_a_name_of_an_allowed_address(tmp_path: Path, serve: Serve, trusting: ssl.SSLContext) -> None:
    """A name is as good as its address."""
    server = await serve(http(PNG), host="127.0.0.1")
    pictures = Pictures(tmp_path, allowed=lambda address: str(address) == "127.0.0.1", ssl=trusting)
    assert await pictures.save(character(server.url(host="localhost")))


@pytest.mark.parametrize("host", ["localhost", "0x7f000001", "localhost.", "127%2e0.0.1"])
async def test_names_of_private_addresses(careful: Pictures, serve: Serve, refused: Refused, host: str) -> None:
    """A name that resolves to a private address, or to none, is not connected to."""
    server = await serve(http(PNG), host="127.0.0.1")
    assert await refused(careful, server.url(host=host)) in {
        "a name without a public address",
        "Name or service not known",
    }
    assert server.connections == 0


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "0.0.0.0", "169.254.169.254", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::1%25lo]"),
        *("127.1", "2130706433", "0177.0.0.1", "127.0.0.1.", "１２７.0.0.1", "①②⑦.0.0.1"),  # noqa: RUF001 # odd on purpose
    ],
)
async def test_private_addresses(careful: Pictures, serve: Serve, refused: Refused, host: str) -> None:
    """An address in the link itself is held to the same rule, in any spelling."""
    server = await serve(http(PNG), host="127.0.0.1")
    assert await refused(careful, server.url(host=host)) in {"not a public address", "ValueError"}
    assert server.connections == 0


@pytest.mark.parametrize(
    ("link", "why"),
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
async def test_links_that_are_no_picture_links(pictures: Pictures, refused: Refused, link: str, why: str) -> None:
    """Only a whole https link without a user name is asked for."""
    assert (await refused(pictures, link)).startswith(why)


@pytest.mark.parametrize("hops", [1, 3])
@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 Other", "307 Temporary", "308 Permanent"])
async def test_redirects_are_followed(pictures: Pictures, serve: Serve, hops: int, status: str) -> None:
    """Up to three redirects lead to a picture."""
    steps = {f"hop{number}": redirect(f"/hop{number + 1}", status) for number in range(hops)}
    server = await serve(**steps, **{f"hop{hops}": http(PNG)})
    assert await pictures.save(character(server.url("/hop0")))
    assert len(server.requests) == hops + 1


async def test_redirects_without_end(pictures: Pictures, serve: Serve, refused: Refused) -> None:
    """A link that leads to itself, or to nowhere, is given up after three redirects."""
    server = await serve(redirect("/p"), nowhere=http(b"", status="302 Found"))
    assert await refused(pictures, server.url()) == "more than 3 redirects"
    assert len(server.requests) == 4
    assert await refused(pictures, server.url("/nowhere")) == "more than 3 redirects"


@pytest.mark.parametrize(
    ("place", "why"),
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
async def test_redirects_to_where_no_link_may_lead(
    pictures: Pictures, serve: Serve, refused: Refused, place: str, why: str
) -> None:
    """Every redirect is held to the rules of the first link."""
    private = await serve(http(PNG), host="127.0.0.1")
    server = await serve(redirect(place.format(port=private.port, home=HOME)))
    assert await refused(pictures, server.url()) == why
    assert len(server.requests) == 1
    assert private.connections == 0


@pytest.mark.parametrize("length", [None, -1])
async def test_a_picture_of_the_largest_size(pictures: Pictures, serve: Serve, length: int | None) -> None:
    """So many bytes as allowed are saved, whether the answer says its length or not."""
    data = PNG.ljust(pictures.max_bytes, b"p")
    server = await serve(http(data, length=length))
    path = await pictures.save(character(server.url()))
    assert path is not None
    assert path.read_bytes() == data


@pytest.mark.parametrize("length", [None, -1])
async def test_too_large(pictures: Pictures, serve: Serve, refused: Refused, length: int | None) -> None:
    """One byte more is refused, whether the answer says its length or not."""
    server = await serve(http(PNG.ljust(pictures.max_bytes + 1, b"p"), length=length))
    assert await refused(pictures, server.url()) == "more than 100000 bytes"


async def test_an_answer_without_end(pictures: Pictures, serve: Serve, refused: Refused) -> None:
    """An answer that goes on for ever is left at the limit, before its end."""
    server = await serve(http(PNG.ljust(200_000, b"p"), length=10**12), hangs=("/p",))
    assert await refused(pictures, server.url()) == "more than 100000 bytes"


@pytest.mark.parametrize("encoding", ["", "Content-Encoding: gzip\r\n"])
async def test_a_bomb_stays_packed(pictures: Pictures, serve: Serve, refused: Refused, encoding: str) -> None:
    """A compressed answer, which was not asked for, is not unpacked, and so is no picture."""
    server = await serve(http(gzip.compress(PNG.ljust(10_000_000, b"p")), headers=encoding))
    assert await refused(pictures, server.url()) == "neither PNG nor JPEG, WebP, GIF"


async def test_a_page_that_says_it_is_a_picture(pictures: Pictures, serve: Serve, refused: Refused) -> None:
    """The header's word for the type is not taken."""
    server = await serve(http(b"<html><script>alert(1)</script>", headers="Content-Type: image/png\r\n"))
    assert await refused(pictures, server.url()) == "neither PNG nor JPEG, WebP, GIF"


@pytest.mark.parametrize(
    ("answer", "why"),
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
async def test_answers_that_are_none(
    pictures: Pictures, serve: Serve, refused: Refused, answer: bytes, why: str
) -> None:
    """A fault, a cut answer and junk leave no file."""
    server = await serve(answer)
    assert await refused(pictures, server.url()) == why


async def test_a_server_without_tls(pictures: Pictures, refused: Refused) -> None:
    """Behind an https link stands TLS, or nothing is read."""

    async def answer_in_the_clear(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(http(PNG))
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer_in_the_clear, HOME, 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert "SSL" in await refused(pictures, f"https://{HOME}:{port}/p?{SECRET}")


async def test_a_server_that_nobody_vouches_for(tmp_path: Path, serve: Serve, refused: Refused) -> None:
    """Without the tests' own authority, the certificate is not believed."""
    server = await serve(http(PNG))
    pictures = Pictures(tmp_path, allowed=is_home)
    assert "certificate" in (await refused(pictures, server.url())).lower()
    assert not server.requests


@pytest.mark.parametrize("sent", [b"", http(PNG)[:60], http(PNG, length=2000)])
async def test_a_slow_server(
    tmp_path: Path, serve: Serve, trusting: ssl.SSLContext, refused: Refused, sent: bytes
) -> None:
    """A server that falls silent, wherever it does, is left when the time is up."""
    server = await serve(sent, hangs=("/p",))
    pictures = Pictures(tmp_path, allowed=is_home, ssl=trusting, timeout=0.5)
    assert await refused(pictures, server.url()) == "TimeoutError"
    assert server.requests


async def test_the_time_is_for_all_redirects_together(
    tmp_path: Path, serve: Serve, trusting: ssl.SSLContext, refused: Refused
) -> None:
    """A redirect does not start the clock again: three that are each in time are too late together."""
    server = await serve(redirect("/b"), b=redirect("/c"), c=redirect("/d"), d=http(PNG))
    server.delay = 0.4
    pictures = Pictures(tmp_path, allowed=is_home, ssl=trusting, timeout=0.8)
    assert await refused(pictures, server.url()) == "TimeoutError"


async def test_a_cancelled_save_leaves_no_file(pictures: Pictures, serve: Serve) -> None:
    """Cancelled in the middle of an answer, a save ends as cancelled, and the folder stays empty."""
    server = await serve(http(PNG, length=2000), hangs=("/p",))
    saving = asyncio.create_task(pictures.save(character(server.url())))
    await server.asked.wait()
    saving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await saving
    assert files(pictures) == []


async def test_a_save_cancelled_at_any_time_leaves_no_half(pictures: Pictures, serve: Serve) -> None:
    """Whenever the cancellation comes, the folder holds the whole picture or nothing, and no temporary file."""
    server = await serve(http(PNG))
    for moment in range(40):
        saving = asyncio.create_task(pictures.save(character(server.url())))
        await asyncio.wait([saving], timeout=moment / 4000)
        saving.cancel()
        await asyncio.gather(saving, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_default_executor()  # no thread of a cancelled save writes any more
    assert [path.read_bytes() for path in files(pictures)] in ([], [PNG])


@pytest.mark.parametrize("character_id", ["../../x", "/etc/x", "a\0b", "x" * 5000, "..", "", "\ud800", "CON\r\n"])
async def test_no_id_leads_out_of_the_folder(pictures: Pictures, serve: Serve, character_id: str) -> None:
    """Whatever the id is, the file is in the folder."""
    server = await serve(http(PNG))
    path = await pictures.save(character(server.url(), character_id))
    assert path is not None
    assert files(pictures) == [path]


async def test_an_id_is_printable_in_the_log(pictures: Pictures, caplog: pytest.LogCaptureFixture) -> None:
    """Terminal escapes and line ends of an id do not reach the log."""
    assert await pictures.save(character("http://x/", "a\x1b[31m\nb")) is None
    assert vars(caplog.records[0])["character"] == "a [31m b"


async def test_a_folder_that_cannot_be(
    tmp_path: Path, serve: Serve, trusting: ssl.SSLContext, refused: Refused
) -> None:
    """Where the folder cannot be made, the creation goes on without a picture."""
    (tmp_path / "file").touch()
    server = await serve(http(PNG))
    pictures = Pictures(tmp_path / "file/pictures", allowed=is_home, ssl=trusting)
    assert await refused(pictures, server.url()) == "Not a directory"


@contextmanager
def room_for(size: int) -> Generator[None]:
    """Let no file of this process grow beyond so many bytes: to a writer, the disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_full_disk(pictures: Pictures, serve: Serve, refused: Refused) -> None:
    """On a full disk the older picture stays whole, and no half of the newer one is left."""
    server = await serve(http(PNG), newer=http(PNG + b"newer"))
    path = await pictures.save(character(server.url()))
    with room_for(500):
        assert await refused(pictures, server.url("/newer")) == "File too large"
    assert path is not None
    assert path.read_bytes() == PNG
