"""The command line without what Windows lacks, on its default path: a ledger in the user's data folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from sora_chars.testing import Emulator

    Run = Callable[..., subprocess.CompletedProcess[str]]

FOLDER = Path(__file__).parents[1] / "support" / "simulated_windows"
REQUEST = ("--from-task", "a" * 32, "--clip", "1,3", "--prompt", "a dog", "--key", "mine")


@pytest.fixture
def run(cli_environment: dict[str, str]) -> Run:
    """A function that runs Python in the simulation."""
    environment = cli_environment | {"PYTHONPATH": str(FOLDER)}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=50, check=False)

    return run


def test_the_simulation(run: Run) -> None:
    """The simulated system has none of the three."""
    program = "import asyncio, os; print(hasattr(os, 'register_at_fork')); import fcntl"
    done = run("-c", program)
    assert done.stdout == "False\n"
    assert "fcntl" in done.stderr


def test_creates_and_lists(run: Run, sora_emulator: Emulator) -> None:
    """A character is created and recorded; the same key returns it, and sends nothing."""
    sora_emulator.add_origin("a" * 32)
    create = ("-m", "sora_chars", "create", *REQUEST, "--base-url", sora_emulator.url)
    first, second = run(*create), run(*create)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert sora_emulator.counts.creates == 1
    listed = run("-m", "sora_chars", "ledger", "ls")
    assert listed.returncode == 0
    assert "mine" in listed.stdout


def test_the_session_without_await(run: Run, sora_emulator: Emulator, tmp_path: Path) -> None:
    """`sora_chars.sync` works there too, and two processes share its ledger."""
    sora_emulator.add_origin("a" * 32)
    program = f"""
import sys
from sora_chars import Kie
from sora_chars.sync import CharacterSession
with CharacterSession(Kie("k", base_url={sora_emulator.url!r}), ledger={str(tmp_path / "shared.db")!r}) as session:
    print(session.create(from_task="a" * 32, clip="1,3", prompt="a dog", key="mine").id)
"""
    first, second = run("-c", program), run("-c", program)
    assert (first.stdout, first.stderr) == (second.stdout, second.stderr)
    assert first.stderr == ""
    assert sora_emulator.counts.creates == 1
