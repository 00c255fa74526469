"""Every code block of the README runs unchanged as a program of its own, with SORA_CHARS_EMULATOR."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

import sora_chars

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sora_chars.testing import Emulator

README = Path(__file__).parents[2] / "README.md"
BLOCKS: list[tuple[str, str]] = re.findall(r"^```(\w+)\n(.*?)^```$", README.read_text(), re.DOTALL | re.MULTILINE)
PYTHON = [code for language, code in BLOCKS if language == "python"]
(TABLE,) = [text for language, text in BLOCKS if language == "csv"]
SHELL = [line for language, code in BLOCKS if language == "sh" for line in code.splitlines()]

SERVE = {
    "aiohttp": "from aiohttp import web\nweb.run_app(block.app, host='127.0.0.1', port={port}, print=None)",
    "fastapi": "import uvicorn\nuvicorn.run(block.app, port={port}, log_level='warning')",
}


def block_with(text: str) -> str:
    """Return the one Python block that contains `text`."""
    (found,) = [code for code in PYTHON if text in code]
    return found


@pytest.fixture
def environment(sora_emulator: Emulator, tmp_path: Path) -> dict[str, str]:
    """Return an environment in which every provider is the emulator, and a ledger."""
    return os.environ | {
        "SORA_CHARS_EMULATOR": sora_emulator.url,
        "SORA_CHARS_LEDGER": str(tmp_path / "ledger.db"),
        "PYTHONWARNINGS": "error",
        "PYTHONASYNCIODEBUG": "",  # aiohttp then writes its access log to stderr
    }


def run(*command: str, environment: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=50, check=False)


@pytest.mark.parametrize(
    ("text", "output"),
    [
        ("character.id, character.usage", r"\d+ \{'prompt': .*\}\n"),
        ("handle.updates()", r"(waiting .*\n)+(generating .*\n)*success .*\n\{'resultUrls': \[.*\]\}\nsuccess\n"),
        ("session.create_many(", r"(dog \d succeeded Character\(.*\)\n){5}Progress\(registered=5, running=0, .*\)\n"),
        ("session.recover()", r"True\nch_\w+ 7118f712a5efa1d0f1c3f2ac1b3f9a55 [\d.]+\n"),
        ("SubmissionUnknownError as error", r"A day at the beach with @\S+ \.\n"),
        ("sora_chars.sync", r"\d+\n"),
    ],
    ids=["ten-lines", "handle", "batch", "ledger", "errors", "sync"],
)
def test_program_runs(text: str, output: str, environment: dict[str, str], tmp_path: Path) -> None:
    """Each program runs unchanged, prints what the README shows, and emits no warning."""
    done = run(sys.executable, "-c", block_with(text), environment=environment, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.match(output, done.stdout)


@pytest.fixture(params=["aiohttp", "fastapi"])
def app_url(
    request: pytest.FixtureRequest, environment: dict[str, str], free_port: int, tmp_path: Path
) -> Iterator[str]:
    """Serve one of the two web applications in a process of its own, and yield its URL."""
    url = f"http://127.0.0.1:{free_port}"
    text = {"aiohttp": "session.aiohttp_app()", "fastapi": "session.asgi"}[request.param]
    (tmp_path / "block.py").write_text(block_with(text))
    program = "import block\n" + SERVE[request.param].format(port=free_port)
    server = subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment | {"PUBLIC_URL": url}, stderr=subprocess.PIPE
    )
    try:
        yield url
    finally:
        server.terminate()
        _, stderr = server.communicate(timeout=20)
    assert re.fullmatch(rb"(Callbacks are verified by their token only.*\n)?", stderr)


def test_web_app_serves(app_url: str, sora_emulator: Emulator) -> None:
    """Both web applications create a character on request and accept its callback."""
    fields = {"from_task": "7118f712a5efa1d0f1c3f2ac1b3f9a55", "clip": "1,3", "prompt": "A friendly dog"}
    transport = httpx.HTTPTransport(retries=60)  # the server is starting
    with httpx.Client(transport=transport, timeout=30) as client:
        response = client.post(f"{app_url}/characters", json=fields)
    assert response.json()["id"].startswith("ch_")
    assert sora_emulator.counts.callbacks_accepted == 1


def test_pytest_example_passes(environment: dict[str, str], tmp_path: Path) -> None:
    """The example test passes in an environment with pytest-asyncio."""
    (tmp_path / "test_block.py").write_text(block_with("sora_emulator"))
    command = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto", ".")
    done = run(*command, environment=environment | {"PYTHONWARNINGS": "default"}, folder=tmp_path)
    assert "1 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("line", [line for line in SHELL if line.startswith("sora-chars ")])
def test_command_works(line: str, environment: dict[str, str], tmp_path: Path) -> None:
    """Each `sora-chars` command exits with status 0 against the emulator."""
    (tmp_path / "dogs.csv").write_text(TABLE)
    command, *arguments = shlex.split(line)
    program = str(Path(sys.executable).with_name(command))
    done = run(program, *arguments, environment=environment, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_two_commands_set_up() -> None:
    """The README needs two commands on a bare machine, and the CI script runs the second one."""
    assert [line for line in SHELL if line.startswith("pip ")] == [
        'pip install ".[cli]" && sora-chars demo',
        "pip install nox && nox -s tests",
    ]
    assert "pip install nox && nox -s tests\n" in (README.parent / ".ci" / "run").read_text()


def test_error_table_is_complete() -> None:
    """The table lists each error that a caller can catch, and no other."""
    named = set(re.findall(r"`(\w+Error)`", README.read_text().partition("| error |")[2].partition("```")[0]))
    errors = {name for name in sora_chars.__all__ if name.endswith("Error")}
    assert named == errors - {"SoraCharsError", "ProviderError", "InvalidCallbackError"}
