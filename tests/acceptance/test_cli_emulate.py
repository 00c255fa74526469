"""`sora-chars emulate` and `sora-chars demo`, and the output on a terminal."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from sora_chars import media

if TYPE_CHECKING:
    from collections.abc import Callable

    from sora_chars.testing import Emulator

    Cli = Callable[..., subprocess.CompletedProcess[str]]
    Start = Callable[..., subprocess.Popen[str]]

QUICK = ("--port", "0", "--speed", "100")


def first_line(process: subprocess.Popen[str]) -> str:
    """Return the first line that the process writes to stdout."""
    assert process.stdout
    return process.stdout.readline()


def end(process: subprocess.Popen[str], number: int) -> tuple[int, str]:
    """Send a signal, wait for the end, and return the status and stderr."""
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    return process.returncode, err


def test_emulate_serves_until_a_signal(start_cli: Start) -> None:
    """`--json` prints the address; the options configure the emulator; SIGTERM ends it with status 0."""
    faults = ("--fault", "credits:on=other,times=1", "--fault", "fail_task:code=501,rate=1.0,times=null")
    process = start_cli("emulate", *QUICK, *faults, "--durations", "1,2", "--json")
    url = json.loads(first_line(process))["url"]

    headers = {"Authorization": "Bearer any"}
    codes = [httpx.get(f"{url}/api/v1/chat/credit", headers=headers).json()["code"] for _ in range(2)]
    assert codes == [402, 200]
    assert "text/html" in httpx.get(url).headers["content-type"]
    assert end(process, signal.SIGTERM) == (0, "")


def test_printed_commands_work(start_cli: Start, cli_environment: dict[str, str], script: str) -> None:
    """The commands that `emulate` prints create four characters, with the providers' keys of the environment unsent."""
    process = start_cli("emulate", *QUICK)
    assert process.stdout
    lines = [first_line(process)]
    while "to stop" not in lines[-1]:
        lines.append(first_line(process))
    (block,) = re.findall(r"  export.*?(?=\n\n)", "".join(lines), re.DOTALL)

    path = f"{Path(script).parent}:{cli_environment['PATH']}"
    ended = subprocess.run(
        ["sh", "-ec", block], env=cli_environment | {"PATH": path}, capture_output=True, text=True, check=True
    )

    assert re.findall(r"^provider: (\w+)$", ended.stdout, re.MULTILINE) == ["kling", "vidu", "kie", "kkiai"]
    assert ended.stderr.count("Emulator at http://127.0.0.1:") == 4
    assert max(map(len, "".join(lines).splitlines())) <= 80
    assert end(process, signal.SIGINT) == (0, "Stopped.\n")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--fault", "nonsense"), "unknown fault 'nonsense'"),
        (("--fault", "delay:seconds=soon"), "'seconds=soon' is not a number"),
        (("--fault", "delay:colour=1"), "delay has no setting colour=1"),
        (("--durations", "5"), "LOW,HIGH"),
    ],
)
def test_emulate_rejects_invalid_options(cli: Cli, arguments: tuple[str, ...], text: str) -> None:
    """An invalid fault or range ends the command before it listens."""
    ended = cli("emulate", *QUICK, *arguments, "--json")

    assert ended.returncode == 2
    error = json.loads(ended.stdout)["error"]
    assert error["type"] == "UsageError"
    assert text in error["message"]


def test_emulate_on_a_port_in_use(cli: Cli) -> None:
    """The hint suggests another port."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ended = cli("emulate", "--port", str(taken.getsockname()[1]), "--json")

    assert ended.returncode == 2
    error = json.loads(ended.stdout)["error"]
    assert error["type"] == "ConfigurationError"
    assert "--port" in error["hint"]


def test_interrupted_demo_stops_its_emulator(start_cli: Start) -> None:
    """The emulator's process does not outlive the demo."""
    process = start_cli("demo", "--json", "-v")
    assert process.stderr
    url = re.findall(r"http://[\d.:]+\d", process.stderr.readline() + process.stderr.readline())[0]
    assert httpx.get(url).status_code == 200

    assert end(process, signal.SIGINT)[0] == 130
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


def test_terminal_has_a_live_line_and_a_panel(terminal: Cli, sora_emulator_factory: Callable[..., Emulator]) -> None:
    """The live line hides and restores the cursor, and the result is shown in a panel."""
    emulator = sora_emulator_factory(durations=(0.4, 0.4))
    model = ("--model", "wan/2-7-image", "--poll", "0.1")
    written = terminal("run", "--base-url", emulator.url, *model).stdout

    (task_id,) = emulator.tasks
    assert f"kie task {task_id}: waiting, via poll" in written
    assert written.count("\x1b[?25l") == written.count("\x1b[?25h") == 1
    assert "╭─" in written
    assert "0.0625" in written

    listed = terminal("models", "--base-url", emulator.url).stdout
    assert "────" in listed
    assert "seedream/5-lite-text-to-image" in listed


def test_demo(terminal: Cli) -> None:
    """Three characters are created with the expected requests, in 80 columns, and the emulator is stopped."""
    played = terminal("demo")
    written = re.sub(r"\x1b\[[\d;?]*\w", "", played.stdout)
    assert played.returncode == 0

    rows = [row.strip() for row in re.findall(r"ok    .*", written)]
    assert [re.sub(r"\d+\.\d s|(@|ch_)\S+|\d{18}", "*", row) for row in rows] == [
        f"ok    {'kling, cut clip' if media.is_installed() else 'kling, a clip  '}  *  1 upload, 1 create            *",
        "ok    vidu, an image   *  1 call                        *",
        "ok    kie by callback  *  1 create, 1 poll, 1 callback  *",
    ]
    assert max(map(len, written.splitlines())) <= 80
    assert "All three characters were created." in written
    (url,) = re.findall(r"http://[\d.:]+\d", written)
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


def test_commands_speak_to_the_emulator(cli: Cli, cli_environment: dict[str, str], emulator: Emulator) -> None:
    """With SORA_CHARS_EMULATOR a command says so first, sends no real key, and needs none."""
    for name in ("KIE_API_KEY", "VIDU_API_KEY"):
        del cli_environment[name]
    cli_environment["SORA_CHARS_EMULATOR"] = emulator.url
    for provider, source in (("vidu", "--image"), ("kling", "--video")):
        fields = ("--name", "Rex", "--prompt", "A dog", "--poll", "0.05") if provider == "kling" else ("--name", "Rex")
        made = cli("create", "--provider", provider, source, "https://a.example/rex.mp4", *fields, "--json", "-v")
        assert made.returncode == 0, made.stdout + made.stderr
        first = made.stderr.splitlines()[0]
        assert first == f"Emulator at {emulator.url} (SORA_CHARS_EMULATOR): no real key is sent."
        assert "secret-kling" not in made.stderr
    assert cli("credit").returncode == 0
    cli_environment["SORA_CHARS_EMULATOR"] = "nonsense"
    assert cli("credit").stderr.startswith("Error: SORA_CHARS_EMULATOR: must be like https://host")
