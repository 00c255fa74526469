"""The programs on the page about workers, as files that a test runs."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sora_chars import EntryState, WaitTimeoutError

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from sora_chars import CharacterSession
    from sora_chars.testing import Emulator

PAGE = Path(__file__).parents[2] / "docs/workers.md"
KEYS = {"KIE_API_KEY": "key", "KLING_API_KEY": "key"}


def blocks(section: str) -> list[str]:
    """Return the code blocks of a section."""
    text = PAGE.read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@asynccontextmanager
async def running(
    folder: Path, command: Sequence[str], environment: Mapping[str, str], *, listening: socket.socket | None = None
) -> AsyncGenerator[asyncio.subprocess.Process]:
    """Run a Python program in a folder, with an API key of each provider and the socket on which it listens.

    The program and the processes that it has started are killed after the block.
    """
    variables = os.environ | KEYS | {"PYTHONPATH": str(folder)} | dict(environment)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *command),
        cwd=folder,
        env=variables,
        pass_fds=(listening.fileno(),) if listening else (),
        start_new_session=True,
    )
    try:
        yield process
    finally:
        kill_all(process)
        await process.wait()


def kill_all(process: asyncio.subprocess.Process) -> None:
    """Kill a program of `running`, with the processes that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


async def check_paid_once(session: CharacterSession, emulator: Emulator, keys: Sequence[str]) -> None:
    """Wait until every request has its character, and check that each was sent once.

    A request that a killed worker was sending is unknown until a step asks Kling for it, and stays unknown if it did
    not arrive.
    """
    for key in keys:
        while True:
            try:
                await session.wait(key, timeout=2)
            except WaitTimeoutError:
                entry = await session.entry(key)
                arrived = {task.external_id for task in emulator.kling.tasks.values()}
                if entry and entry.state is EntryState.UNKNOWN and key not in arrived:
                    break
            else:
                break
    posts = [count for (method, _), count in emulator.request_counts.items() if method == "POST"]
    assert emulator.counts.elements <= sum(posts) <= len(keys)
