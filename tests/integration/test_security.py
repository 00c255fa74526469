"""Security over the network: floods, compression bombs, hostile ids, redirects and leaked secrets."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import logging
import os
import pickle
import sqlite3
import stat
import sys
import time
import traceback
import tracemalloc
from contextlib import asynccontextmanager, closing
from typing import TYPE_CHECKING, Any, cast

import aiohttp
import pytest
from aiohttp import web

from sora_chars import (
    CallbackReceiver,
    CharacterSession,
    EntryState,
    FixedInterval,
    Kie,
    LedgerError,
    NoAnswerError,
    SoraCharsError,
    SubmissionUnknownError,
    open_ledger,
)
from sora_chars.testing import Emulator
from sora_chars.testing.emulator.callbacks import sign

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
    from pathlib import Path

    Post = tuple[str, str, dict[str, str], bytes]

KEY = "sk-CANARY-0123456789abcdef"
HMAC_KEY = "hook-CANARY-0123456789"
PASSWORD = "proxy-CANARY-0123456789"
FIELDS: dict[str, Any] = {"from_task": "a" * 32, "clip": "1,3", "prompt": "A dog"}
JSON = {"content-type": "application/json"}
MB = 1_000_000
HOSTILE = (
    "'; DROP TABLE entries; --",
    '" OR ""="',
    "../../etc/passwd",
    "..%2f..%2fx",
    "k'||(SELECT 1)||'",
    "%s %(key)s {} ? :1 $1",
    "C:\\x\\y",
    "名前 \U0001f600",
)
UNSTORABLE = ("a\nb", "a\r\nX: y", "\x00", "\x1b[2J", "\ud800", "\u2028")


@asynccontextmanager
async def serving(app: web.Application) -> AsyncGenerator[str]:
    """Serve an application and yield its URL."""
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.fixture
async def emulator() -> AsyncGenerator[Emulator]:
    """Run an emulator that signs callbacks and ends its tasks at once."""
    async with Emulator(durations=(0.0, 0.0), hmac_key=HMAC_KEY) as emulator:
        yield emulator


@pytest.fixture
async def receiver(emulator: Emulator) -> AsyncGenerator[CallbackReceiver]:
    """Yield a receiver that requires signatures; only the test sends callbacks."""
    emulator.fault("lost_callback", times=None)
    kie = Kie(KEY, base_url=emulator.url, callback_url="http://127.0.0.1:9/hooks")
    async with CharacterSession(kie, polling=FixedInterval(0.01)) as session:
        yield CallbackReceiver(session, HMAC_KEY, body_limit=100_000, max_events=5)


def session_of(receiver: CallbackReceiver) -> CharacterSession:
    """Return the session of a receiver with all its methods."""
    return cast("CharacterSession", receiver.session)


async def ended(receiver: CallbackReceiver, emulator: Emulator) -> tuple[str, str]:
    """Create a character; return the id of its task and the path of its callback."""
    character = await session_of(receiver).create(**FIELDS)
    assert character.task_id
    path = str(emulator.tasks[character.task_id].callback_url).removeprefix("http://127.0.0.1:9")
    return character.task_id, path


def signed(task_id: str, *, key: str = HMAC_KEY, age: int = 0) -> dict[str, str]:
    """Return the headers of a callback that was signed `age` seconds ago."""
    timestamp = str(int(time.time()) - age)
    return JSON | {"x-webhook-timestamp": timestamp, "x-webhook-signature": sign(key, task_id, timestamp)}


def junk(task_id: str, path: str, number: int) -> Post:
    """Return one post of a flood: every kind in rotation, no two alike."""
    body = b'{"code":200,"data":{"taskId":"%s","state":"success","n":%d}}' % (task_id.encode(), number)
    kinds: tuple[Callable[[], Post], ...] = (
        lambda: ("POST", f"/hooks/{number}", JSON, body),
        lambda: ("POST", f"/hooks/{'../' * (number % 9)}{number}'--", JSON, body),
        lambda: ("GET", path, JSON, b""),
        lambda: ("POST", path, {"content-type": f"text/{number}"}, body),
        lambda: ("POST", path, JSON | {"content-length": str(10**6 + number)}, b""),
        lambda: ("POST", path, JSON, b"%d junk" % number),
        lambda: ("POST", path, JSON, b"[" * 200 + b"%d" % number),
        lambda: ("POST", path, JSON, body),  # unsigned
        lambda: ("POST", path, signed(task_id, key=str(number)), body),
        lambda: ("POST", path, signed(task_id, age=301 + number % 1000), body),  # replayed
        lambda: (
            "POST",
            path,
            signed(f"x{number}"),
            body.replace(task_id.encode(), b"x%d" % number),
        ),  # other task
        lambda: ("POST", path, signed(task_id), body),  # valid, and late
    )
    return kinds[number % len(kinds)]()


async def once(content: bytes) -> AsyncIterator[bytes]:
    """Yield a body in one part."""
    yield content


@pytest.fixture
def memory() -> Generator[Callable[[], int]]:
    """Return a function that returns the bytes in use."""

    def used() -> int:
        if not tracemalloc.is_tracing():
            tracemalloc.start(1)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    yield used
    tracemalloc.stop()


@pytest.mark.timeout(180)  # slow on a busy machine
async def test_flood_memory(
    receiver: CallbackReceiver, emulator: Emulator, memory: Callable[[], int], caplog: pytest.LogCaptureFixture
) -> None:
    """Tens of thousands of junk posts of every kind leave no memory behind, and only valid ones are accepted."""
    caplog.set_level(logging.CRITICAL, logger="sora_chars.callbacks")  # caplog would keep every line
    task_id, path = await ended(receiver, emulator)

    async def flood(numbers: range) -> int:
        accepted = 0
        for number in numbers:
            method, where, headers, body = junk(task_id, path, number)
            status, _ = await receiver.handle(method, where, headers, once(body))
            accepted += status == 200
            if number % 100 == 0:
                await asyncio.sleep(0)  # as a server yields between two requests
        return accepted

    await flood(range(6_000))
    gc.collect()
    blocks = sys.getallocatedblocks()
    assert await flood(range(6_000, 42_000)) == 36_000 // 12
    gc.collect()
    assert sys.getallocatedblocks() - blocks < 2_000
    memory()  # sees large blocks too, but is slow
    await flood(range(42_000, 43_200))
    before = memory()
    assert await flood(range(43_200, 52_800)) == 9_600 // 12
    assert memory() - before < 50_000


@pytest.mark.timeout(180)  # slow on a busy machine
async def test_flood_of_connections(
    receiver: CallbackReceiver, emulator: Emulator, memory: Callable[[], int], caplog: pytest.LogCaptureFixture
) -> None:
    """Three thousand junk posts over connections all get a response, none a 500, and leave no memory behind."""
    caplog.set_level(logging.CRITICAL)
    task_id, path = await ended(receiver, emulator)
    app = web.Application()
    app.add_subapp("/hooks/", receiver.aiohttp_app())
    statuses: set[int] = set()

    async def flood(http: aiohttp.ClientSession, numbers: range) -> None:
        for number in numbers:
            method, where, headers, body = junk(task_id, path, number)
            headers = {name: value for name, value in headers.items() if name != "content-length"}
            async with http.request(method, where.replace("../", ".."), headers=headers, data=body) as response:
                statuses.add(response.status)

    async def floods(http: aiohttp.ClientSession, first: int, count: int) -> None:
        await asyncio.gather(*(flood(http, range(first + n, first + count, 10)) for n in range(10)))

    async with serving(app) as url, aiohttp.ClientSession(url) as http:
        memory()
        await floods(http, 0, 600)
        before = memory()
        await floods(http, 600, 3_000)
        assert memory() - before < 200_000
    assert statuses == {200, 400, 401, 405}


@pytest.mark.parametrize("known", [True, False], ids=["token", "no token"])
async def test_compressed_callback(
    known: bool,  # noqa: FBT001 # a parameter
    receiver: CallbackReceiver,
    emulator: Emulator,
    memory: Callable[[], int],
) -> None:
    """A body of a few kB that decompresses to 64 MB is rejected, and never held in memory."""
    _, path = await ended(receiver, emulator)
    bomb = gzip.compress(bytes(64 * MB))
    app = web.Application()
    app.add_subapp("/hooks/", receiver.aiohttp_app())
    async with serving(app) as url, aiohttp.ClientSession() as http:
        memory()
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        headers = JSON | {"Content-Encoding": "gzip", "Connection": "close"}
        async with http.post(f"{url}{path if known else '/hooks/x'}", data=bomb, headers=headers) as response:
            assert response.status == (413 if known else 401)
        assert tracemalloc.get_traced_memory()[1] - before < 8 * MB


async def test_compressed_response(memory: Callable[[], int]) -> None:
    """A response of a few kB that decompresses to 256 MB is aborted at the limit of 16 MiB."""
    bomb = gzip.compress(bytes(256 * MB))

    async def respond(_: web.Request) -> web.Response:
        return web.Response(body=bomb, headers={"Content-Encoding": "gzip"})

    app = web.Application()
    app.router.add_get("/{path:.*}", respond)
    async with serving(app) as url, Kie(KEY, base_url=url) as kie:
        before = memory()
        tracemalloc.reset_peak()
        with pytest.raises(NoAnswerError, match="larger than 16777216 bytes"):
            await kie.fetch("t")
        assert tracemalloc.get_traced_memory()[1] - before < 40 * MB


async def test_endless_response() -> None:
    """A response that never ends is aborted after the same timeout as a silent provider."""

    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" ")
            await asyncio.sleep(0.005)

    app = web.Application()
    app.router.add_post("/{path:.*}", drip)
    async with serving(app) as url, CharacterSession(Kie(KEY, base_url=url, timeout=0.2)) as session:
        with pytest.raises(SoraCharsError, match=r"no answer within 0\.2 s"):
            await session.submit(**FIELDS)


async def test_redirects_of_free_requests(make_clip: Callable[..., Path]) -> None:
    """A redirect of a poll, a query or an upload raises an error; the other host gets no request."""
    requests: list[str] = []

    async def record(request: web.Request) -> web.Response:
        requests.append(request.path)
        return web.json_response({"code": 200, "data": 1.0})

    other = web.Application()
    other.router.add_route("*", "/{path:.*}", record)
    async with serving(other) as elsewhere:

        async def send_away(request: web.Request) -> web.Response:
            assert request.headers["Authorization"] == f"Bearer {KEY}"
            await request.read()
            status = int(request.path.split("/")[1])
            return web.Response(status=status, headers={"Location": f"{elsewhere}{request.path}"})

        async def check(url: str, status: int) -> None:
            async with Kie(KEY, base_url=f"{url}/{status}", upload_url=f"{url}/{status}") as kie:
                calls = (kie.fetch("t"), kie.credit(), kie.models(), kie.upload(make_clip()))
                for error in await asyncio.gather(*calls, return_exceptions=True):
                    assert isinstance(error, SoraCharsError)
                    assert str(status) in str(error)

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", send_away)
        async with serving(app) as url:
            await asyncio.gather(*(check(url, status) for status in (301, 302, 303, 307, 308)))
    assert requests == []


async def test_hostile_ids_in_ledger(ledger_url: str, tmp_path: Path) -> None:
    """Quotes, statements, placeholders and paths in a key, a task id or a token only name their own entry."""
    async with open_ledger(ledger_url) as ledger:
        for number, text in enumerate(HOSTILE):
            pending = await ledger.register(key=text, provider=text, kind=text, request={text: text, "n": number})
            sending = await ledger.transition(pending, EntryState.SENDING, token_digest=text)
            await ledger.transition(sending, EntryState.RUNNING, task_id=text)
        for number, text in enumerate(HOSTILE):
            found = [await ledger.get(text), await ledger.by_task(text, text), await ledger.by_token(text)]
            assert [entry and entry.request for entry in found] == [{text: text, "n": number}] * 3
        assert [entry.key async for entry in ledger.entries(query="DROP TABLE")] == [HOSTILE[0]]
        assert [entry.key async for entry in ledger.entries()] == list(HOSTILE)
        for text in UNSTORABLE:
            with pytest.raises(LedgerError, match="must be printable text of at least one character"):
                await ledger.register(key=text, provider="kie", kind="k", request={})
            assert await ledger.by_task("kie", text) is None
        victim = tmp_path / "victim.lock"
        victim.touch()
        owners = (*HOSTILE, "\x00", "/../victim", "x/../../victim")
        assert all(await asyncio.gather(*map(ledger.is_dead, owners)))
        assert victim.exists()
    assert {path.name for path in tmp_path.iterdir()} <= {"victim.lock", "characters.db"}


async def test_hostile_callbacks(
    receiver: CallbackReceiver, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """A callback with a hostile token or task id is rejected, and the log repeats none of it."""
    caplog.set_level(logging.DEBUG)
    task_id, path = await ended(receiver, emulator)
    caplog.clear()
    for text in (*HOSTILE, *UNSTORABLE, f"{path}/..", f"{path}%00", path.upper(), ""):
        body = json.dumps({"data": {"taskId": task_id, "state": "success"}}).encode()
        status, _ = await receiver.handle("POST", f"/hooks/{text}", signed(task_id), once(body))
        assert status == 401
        body = json.dumps({"data": {"taskId": text, "state": "success"}}).encode()
        status, _ = await receiver.handle("POST", path, signed(text.encode(errors="replace").decode()), once(body))
        assert status in {400, 401}
    lines = [record for record in caplog.records if record.name == "sora_chars.callbacks"]
    assert len(lines) == 2 * (len(HOSTILE) + len(UNSTORABLE) + 4)
    shown = "".join(f"{record.getMessage()} {record.__dict__['reason']}" for record in lines)
    assert shown.isprintable()
    assert not [text for text in HOSTILE if text in shown]


async def test_token_cannot_claim_another_task(receiver: CallbackReceiver, emulator: Emulator) -> None:
    """A callback with the token of a lost create and another task's id does not resolve the entry."""
    other, _ = await ended(receiver, emulator)
    emulator.fault("lost_response", on="create")
    with pytest.raises(SubmissionUnknownError):
        await session_of(receiver).submit(**FIELDS, key="lost")
    (*_, lost) = emulator.tasks.values()
    path = str(lost.callback_url).removeprefix("http://127.0.0.1:9")
    for task_id, status, state in ((other, 401, EntryState.UNKNOWN), (lost.task_id, 200, EntryState.RUNNING)):
        body = json.dumps({"data": {"taskId": task_id, "state": "success"}}).encode()
        assert (await receiver.handle("POST", path, signed(task_id), once(body)))[0] == status
        entry = await session_of(receiver).entry("lost")
        assert entry
        assert entry.state is state


@pytest.fixture
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    """Set another umask."""
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("umask", [0, 0o077], indirect=True, ids=["none", "strict"])
async def test_ledger_file_modes(tmp_path: Path) -> None:
    """The database, its log, its index and the locks have mode 0600 under any umask."""
    path = tmp_path / "characters.db"
    async with open_ledger(path) as ledger, open_ledger(path) as second:
        await ledger.register(key="k", provider="kie", kind="k", request={})
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
        endings = ("", "-wal", "-shm", f"-{ledger.owner}.lock", f"-{second.owner}.lock")
        assert modes == {f"characters.db{ending}": 0o600 for ending in endings}


async def test_stored_values_are_plain(tmp_path: Path) -> None:
    """Every stored value is text or a number, and structures are JSON."""
    path = tmp_path / "characters.db"
    async with open_ledger(path) as ledger:
        ends: dict[EntryState, dict[str, Any]] = {
            EntryState.SUCCEEDED: {"result": [{"a": "\x00"}]},
            EntryState.FAILED: {"error": {"b": None}},
        }
        for end, facts in ends.items():
            pending = await ledger.register(key=end, provider="kie", kind="k", request={"c": 1.5})
            running = await ledger.transition(
                await ledger.transition(pending, EntryState.SENDING), EntryState.RUNNING, task_id=end
            )
            await ledger.transition(running, end, credits=0.5, **facts)
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        rows = [dict(row) for row in connection.execute("SELECT * FROM entries")]
    assert len(rows) == 2
    for row in rows:
        assert {type(value) for value in row.values()} <= {str, int, float, type(None)}
        texts = [value for name, value in row.items() if name.endswith("_json") and value is not None]
        assert len([json.loads(text) for text in texts]) == 2


def shown_by(error: BaseException) -> str:
    """Return everything that an error can show: tracebacks, texts, attributes, causes and its pickle."""
    texts = [*traceback.format_exception(error), pickle.dumps(error).decode("latin-1")]
    link: BaseException | None = error
    while link:
        texts += [str(link), repr(link), repr(vars(link))]
        link = link.__cause__ or link.__context__
    return "\n".join(texts)


FAULTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("credits", {"on": "create"}),
    ("unauthorized", {"on": "create"}),
    ("status", {"on": "create", "code": 400, "message": f"Bearer {KEY} is no key"}),
    ("html", {"on": "create"}),
    ("lost_response", {"on": "create"}),
    ("junk_json", {"on": "create"}),
    ("truncated", {"on": "create"}),
    ("delay", {"on": "create", "seconds": 5.0}),
    ("unauthorized", {"on": "poll"}),
    ("fail_task", {"message": f"{KEY} has failed"}),
    ("result_shape", {"shape": "none"}),
    ("stuck", {}),
)


async def test_no_secret_is_shown(emulator: Emulator, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No log, repr, error, pickle, page or ledger shows a key, a callback token or a proxy's password."""
    caplog.set_level(logging.DEBUG)
    texts: list[str] = []
    emulator.fault("lost_callback", times=None)
    kie = Kie(KEY, base_url=emulator.url, callback_url="http://127.0.0.1:9/hooks", timeout=0.3, limits=None)
    ledger = tmp_path / "characters.db"
    async with CharacterSession(kie, ledger=ledger, polling=FixedInterval(0.01)) as session:
        receiver = CallbackReceiver(session, HMAC_KEY)
        for fault, settings in FAULTS:
            emulator.fault(fault, **settings)
            with pytest.raises(SoraCharsError) as caught:
                await session.create(**FIELDS, timeout=0.5)
            texts.append(shown_by(caught.value))
        character = await session.create(**FIELDS)
        handle = await session.submit(**FIELDS)
        await handle.result()
        texts += [
            repr(thing) for thing in (kie, session, receiver, session.watcher, handle, handle.snapshot, character)
        ]
        texts += [pickle.dumps(thing).decode("latin-1") for thing in (handle, character)]
        for task in list(emulator.tasks.values()):
            path, body = str(task.callback_url), json.dumps({"data": task.data()}).encode()
            for headers in (JSON, signed(task.task_id, key="forged"), signed(task.task_id)):
                await receiver.handle("POST", path, headers, once(body))
        texts.append(repr(receiver))
        texts += [repr(entry) async for entry in session.ledger.entries()]
        texts += [file.read_bytes().decode("latin-1") for file in tmp_path.iterdir()]  # with the write-ahead log
    texts += [file.read_bytes().decode("latin-1") for file in tmp_path.iterdir()]
    async with aiohttp.ClientSession(emulator.url) as http:
        for page in ("/", "/_emulator/tasks", "/_emulator/counts"):
            async with http.get(page) as response:
                texts.append(await response.text())
    proxy = f"http://user:{PASSWORD}@127.0.0.1:9"
    async with Kie(KEY, base_url="http://api.kie.invalid", proxy=proxy) as through:
        with pytest.raises(NoAnswerError) as caught_at_proxy:
            await through.fetch("t")
        texts += [shown_by(caught_at_proxy.value), repr(through)]
    texts += [f"{record.getMessage()} {vars(record)}" for record in caplog.records if record.name != "aiohttp.access"]
    tokens = {str(task.callback_url).rpartition("/")[2] for task in emulator.tasks.values()}
    assert len(tokens) > 5
    everything = "\n".join(texts)
    assert "createTask" in everything  # the log of the exchanges is included
    assert not [secret for secret in (KEY, HMAC_KEY, PASSWORD, *tokens) if secret in everything]
