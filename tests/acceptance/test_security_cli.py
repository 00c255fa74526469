"""Hostile text from providers and from HTTP clients never acts on the terminal."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from sora_chars.testing import Emulator

    Cli = Callable[..., subprocess.CompletedProcess[str]]

CONTROLS = [*map(chr, range(0x20)), *map(chr, range(0x7F, 0xA0)), "\u2028", "\u2029", "\u202e", "\u200b"]
HOSTILE = f"hostile{''.join(f'<{control}>' for control in CONTROLS)}"
CREATE, RECORD = "/api/v1/jobs/createTask", "/api/v1/jobs/recordInfo"
CHARACTERS = "/sora/v1/characters"
ACCEPTED = {CREATE: {"code": 200, "data": {"taskId": "t1"}}}
MAKE = ("create", "--from-task", "a" * 32, "--clip", "1,3", "--prompt", "A dog", "--poll", "0.05")
GATEWAY = ("create", "--provider", "kkiai", "--video", "https://a.invalid/b.mp4", "--clip", "1,3")


def record(state: str, **members: Any) -> dict[str, Any]:
    """Return the responses of a task in this state."""
    data = {"taskId": "t1", "state": state, "model": "sora-2-characters"} | members
    return ACCEPTED | {RECORD: {"code": 200, "data": data}}


CASES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "rejected": (MAKE, {CREATE: {"code": 400, "msg": HOSTILE}}),
    "no JSON": (MAKE, {CREATE: HOSTILE}),
    "task id": (MAKE, {CREATE: {"code": 200, "data": {"taskId": HOSTILE}}}),
    "failed": (MAKE, record("fail", failCode=HOSTILE, failMsg=HOSTILE)),
    "no character": (MAKE, record("success", resultJson=json.dumps({"x": HOSTILE}))),
    "another task": (("status", "t1"), record("success", taskId=HOSTILE, resultJson=HOSTILE)),
    "character": (MAKE, record("success", resultJson={"character_id": HOSTILE, "character_user_name": HOSTILE})),
    "state": (("status", "t1"), record(HOSTILE, model=HOSTILE)),
    "live state": (("wait", "t1", "--poll", "0.05", "--timeout", "0.3"), record(HOSTILE)),
    "result": (("run", "--model", "m", "--poll", "0.05"), record("success", model=HOSTILE, resultJson=[HOSTILE])),
    "gateway's character": (
        GATEWAY,
        {CHARACTERS: {"id": "c1"} | dict.fromkeys(("username", "display_name", "permalink"), HOSTILE)},
    ),
    "gateway's id": (GATEWAY, {CHARACTERS: {"id": HOSTILE, "username": HOSTILE}}),
    "gateway's rejection": (GATEWAY, {CHARACTERS: {"error": {"message": HOSTILE, "code": HOSTILE, "type": HOSTILE}}}),
    "models": (
        ("models",),
        {
            "/api/v1/models": {
                "code": 200,
                "data": {"models": [{"model": HOSTILE, "title": HOSTILE, "taskType": HOSTILE}]},
            }
        },
    ),
    "credit": (("credit",), {"/api/v1/chat/credit": {"code": 401, "msg": HOSTILE}}),
}


@pytest.fixture
async def provider(request: pytest.FixtureRequest) -> AsyncGenerator[str]:
    """Serve the responses of the case, and give the address."""
    responses = CASES[request.param][1]

    async def respond(request: web.Request) -> web.Response:
        value = responses[request.path]
        return web.Response(text=value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", respond)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.fixture
def cli_environment(cli_environment: dict[str, str]) -> dict[str, str]:
    """Return an environment in which the command writes UTF-8."""
    return cli_environment | {"PYTHONUTF8": "1"}


def through_pipes(environment: dict[str, str], *command: str) -> str:
    """Return everything that a command writes to pipes."""
    ended = subprocess.run(command, capture_output=True, env=environment, check=False, timeout=30)
    assert ended.returncode in {0, 3, 4, 5, 6}, ended  # 70 would be a bug
    return (ended.stdout + ended.stderr).decode()


@pytest.mark.parametrize(("case", "provider"), [(case, case) for case in CASES], indirect=["provider"])
async def test_responses_hold_no_control_characters(
    case: str, provider: str, script: str, cli_environment: dict[str, str], terminal: Cli
) -> None:
    """No control character of a response is written to pipes, as JSON or to a terminal, even with `-v`."""
    command = (*CASES[case][0], "--base-url", provider)
    plain, objects, screen = await asyncio.gather(
        asyncio.to_thread(through_pipes, cli_environment, script, *command, "-v"),
        asyncio.to_thread(through_pipes, cli_environment, script, *command, "-v", "--json"),
        asyncio.to_thread(terminal, *command, "-v", columns=500),
    )
    for written in (plain, objects):
        assert "hostile<" in written
        assert re.sub("[\n\t]", "", written).isprintable()
    assert not [line for line in plain.splitlines() if line.startswith(">") and not line.startswith("> ")]
    assert "hostile<" in screen.stdout
    assert not [control for control in CONTROLS if f"<{control}>" in screen.stdout.replace("\r\n", "\n")]


async def test_malformed_callbacks_write_one_line(
    script: str, cli_environment: dict[str, str], sora_emulator_factory: Callable[..., Emulator], free_port: int
) -> None:
    """A malformed request to the port of `--listen` writes at most one log line."""
    emulator = sora_emulator_factory()
    emulator.fault("stuck")
    callback = ("--callback-url", f"http://127.0.0.1:{free_port}", "--listen", f"127.0.0.1:{free_port}")
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        script, *MAKE, "--base-url", emulator.url, *callback, env=cli_environment, stdout=pipe, stderr=pipe
    )
    await emulator.until(lambda: emulator.tasks)
    ((task_id, task),) = emulator.tasks.items()
    path = str(task.callback_url).rpartition("/")[2].encode()
    json_type = b"Content-Type: application/json\r\n"
    for junk in (
        b"GET /\x1b[31mred HTTP/1.1\r\n\r\n",
        b"\x1b[31m\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nX-\x1b[31m: b\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST /%1b%5b31mred HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"POST /" + path + b" HTTP/1.1\r\nHost: a\r\n" + json_type + b"Transfer-Encoding: chunked\r\n\r\n\x1b[31m\r\n",
        b"POST /"
        + path
        + b" HTTP/1.1\r\nHost: a\r\n"
        + json_type
        + b"Connection: close\r\nContent-Length: 2\r\n\r\n\x1b[",
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", free_port)
        writer.write(junk)
        assert b" 400 " in (status := await reader.readline()) or b" 401 " in status
        writer.close()
        await writer.wait_closed()
    emulator.finish(task_id)
    output, errors = await process.communicate()

    assert process.returncode == 0, errors
    assert b"Traceback" not in errors
    expected = ("kie", "A callback was rejected", "Callbacks are verified by their token only")
    unexpected = [line for line in errors.decode().splitlines() if not line.startswith(expected)]
    assert unexpected == []
    assert (output + errors).decode().replace("\n", "").isprintable()


@pytest.mark.parametrize("provider", ["character", "failed"], indirect=True)
async def test_ledger_shows_no_control_characters(
    provider: str, script: str, cli_environment: dict[str, str], terminal: Cli
) -> None:
    """Text of a provider is printable when it is shown from the ledger, too."""
    await asyncio.to_thread(through_pipes, cli_environment, script, *MAKE, "--base-url", provider, "--key", "dog-1")
    shown = ""
    for command in (("characters",), ("ledger", "ls"), ("ledger", "show", "dog-1"), ("ledger", "export")):
        piped, screen = await asyncio.gather(
            asyncio.to_thread(through_pipes, cli_environment, script, *command),
            asyncio.to_thread(terminal, *command, columns=500),
        )
        assert re.sub("[\n\t]", "", piped).isprintable()
        assert not [control for control in CONTROLS if f"<{control}>" in screen.stdout.replace("\r\n", "\n")]
        shown += piped
    assert "hostile<" in shown
