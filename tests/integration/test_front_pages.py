"""Pages that something in front of a provider writes: rejected on a create, and waited out on a poll."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest

from sora_chars import (
    BlockedError,
    CharacterSession,
    FixedInterval,
    Kie,
    Kkiai,
    Limits,
    ProviderError,
    SubmissionUnknownError,
)
from sora_chars.ledger import EntryState
from tests.support.raw_server import KEY, http, responds, serving_raw

if TYPE_CHECKING:
    from tests.support.raw_server import Connection

REQUEST: dict[str, Any] = {"from_task": "7118f712", "clip": "1,3", "prompt": "A dog", "key": "k-1"}
PAGE = b"<html><body>The request was blocked by the firewall.</body></html>"
CREATED = b'{"code":200,"msg":"success","data":{"taskId":"task-1"}}'
RESULT = b'"state":"success","resultJson":"{\\"character_id\\":\\"ch\\"}"'
DONE = b'{"code":200,"msg":"success","data":{"taskId":"task-1",%b}}' % RESULT
BLOCKED = (
    "301 Moved Permanently",
    "302 Found",
    "307 Temporary Redirect",
    "308 Permanent Redirect",
    "400 Bad Request",
    "403 Forbidden",
    "405 Method Not Allowed",
    "407 Proxy Authentication Required",
    "411 Length Required",
    "413 Content Too Large",
    "414 URI Too Long",
    "415 Unsupported Media Type",
    "421 Misdirected Request",
    "426 Upgrade Required",
    "431 Request Header Fields Too Large",
    "451 Unavailable For Legal Reasons",
)


def kie(url: str) -> Kie:
    """Return kie.ai's provider without limits."""
    return Kie(KEY, base_url=url, limits=Limits())


@pytest.mark.parametrize("status", BLOCKED)
@pytest.mark.parametrize("make", [kie, lambda url: Kkiai(KEY, base_url=url)])
async def test_a_create_is_rejected(status: str, make: Any) -> None:
    """The key is rejected and nothing was charged; the error names the reason and what to change."""
    headers = "Location: https://user:pw@portal.invalid/login?token=secret\r\n" if status < "4" else ""
    async with (
        serving_raw(responds(http(PAGE, status=status, headers=headers))) as server,
        CharacterSession(make(server.url)) as session,
    ):
        request = {name: value for name, value in REQUEST.items() if name != "prompt" or make is kie}
        with pytest.raises(BlockedError) as caught:
            await session.create(**request)
        entry = await session.entry("k-1")
    error = caught.value
    assert (error.status, error.charged, error.key) == (int(status[:3]), "no", "k-1")
    assert entry
    assert entry.state is EntryState.REJECTED
    assert "base_url" in str(error)
    assert "secret" not in str(error) + str(entry.error_json)
    if status < "4":
        assert error.location == "https://portal.invalid/login"
        assert "redirects to https://portal.invalid/login" in error.message


async def test_a_batch_ends_once() -> None:
    """Behind a firewall one request is sent, not sixty, and no key is unknown."""
    rows: Any = [REQUEST | {"key": f"k-{number}"} for number in range(60)]
    async with (
        serving_raw(responds(http(PAGE, status="403 Forbidden"))) as server,
        CharacterSession(kie(server.url)) as session,
    ):
        async with session.create_many(rows, concurrency=1) as batch:
            outcomes = [outcome async for outcome in batch]
        assert batch.stopped == "account"
    assert isinstance(batch.rejection, BlockedError)
    assert {outcome.state for outcome in outcomes} == {EntryState.REJECTED}
    assert len(server.requests) == len(outcomes) == 1


@pytest.mark.parametrize(
    ("status", "body"),
    [
        ("302 Found", b""),
        ("401 Unauthorized", PAGE),
        ("403 Forbidden", PAGE),
        ("404 Not Found", b"404 page not found"),
        ("404 Not Found", b'{"message":"Not Found"}'),
        ("500 Internal Server Error", PAGE),
    ],
)
async def test_a_poll_is_repeated(status: str, body: bytes) -> None:
    """A page in place of a poll's response ends no wait."""
    page = http(body, status=status)
    async with (
        serving_raw(responds(http(CREATED)), responds(page), responds(page), responds(http(DONE))) as server,
        CharacterSession(kie(server.url), polling=FixedInterval(0.01)) as session,
    ):
        assert (await session.create(**REQUEST)).id == "ch"


@pytest.mark.parametrize("code", [401, 403])
async def test_an_envelope_ends_the_wait(code: int) -> None:
    """The provider's own rejection of a poll ends the wait, with the facts of the task."""
    denied = http(b'{"code":%d,"msg":"no"}' % code)
    async with (
        serving_raw(responds(http(CREATED)), responds(denied)) as server,
        CharacterSession(kie(server.url), polling=FixedInterval(0.01)) as session,
    ):
        with pytest.raises(ProviderError) as caught:
            await session.create(**REQUEST)
    error = caught.value
    assert (error.code, error.task_id, error.key, error.charged) == (code, "task-1", "k-1", "yes")


@pytest.mark.parametrize("path", ["/api/v1", "/api/v1/"])
async def test_base_url_with_the_path_of_the_api(path: str) -> None:
    """`base_url` may end with the path that all routes share."""
    async with (
        serving_raw(responds(http(CREATED))) as server,
        CharacterSession(kie(server.url + path)) as session,
    ):
        await session.submit(**REQUEST)
    assert server.requests[0].startswith(b"POST /api/v1/jobs/createTask ")


def answers_late(block: float) -> Any:
    """Return a step that answers while the client's event loop is blocked, and blocks it for that many seconds."""

    async def step(connection: Connection) -> None:
        await connection.request()
        await connection.send(http(CREATED))
        await asyncio.sleep(0)
        time.sleep(block)  # noqa: ASYNC251 # on purpose: this server shares the client's loop

    return step


async def test_an_answer_in_the_socket_is_read() -> None:
    """An answer that came while the event loop was blocked past the time-out is read."""
    async with serving_raw(answers_late(1.0)) as server:
        provider = Kie(KEY, base_url=server.url, limits=Limits(), timeout=0.5)
        async with CharacterSession(provider) as session:
            assert (await session.submit(**REQUEST)).task_id == "task-1"


async def test_no_answer_after_a_blocked_loop() -> None:
    """Without an answer, the time-out holds also after the event loop was blocked."""

    async def silent(connection: Connection) -> None:
        await connection.request()
        time.sleep(0.5)  # noqa: ASYNC251 # as above
        await connection.reader.read()

    async with serving_raw(silent) as server:
        provider = Kie(KEY, base_url=server.url, limits=Limits(), timeout=0.2)
        async with CharacterSession(provider) as session:
            with pytest.raises(SubmissionUnknownError, match="no answer within"):
                await session.submit(**REQUEST)
