"""`--listen`: strangers who connect to the port do not delay the end of a command."""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from sora_chars.testing import Emulator

HEADS = {
    "head": b"POST /hooks/x HTTP/1.1\r\nHost: a\r\n",
    "body": b"POST /hooks/x HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{",
    "token": b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{",
}


@pytest.mark.parametrize("promised", HEADS)
def test_unfinished_request_does_not_delay_the_end(
    start_cli: Callable[..., subprocess.Popen[str]],
    sora_emulator_factory: Callable[..., Emulator],
    free_port: int,
    promised: str,
) -> None:
    """A sender that promises a body and does not send it delays the end of the command by a second at most."""
    emulator = sora_emulator_factory(durations=(1e6, 1e6))
    address = f"127.0.0.1:{free_port}"
    create = ("create", "--from-task", "a" * 32, "--clip", "1,3", "--prompt", "A dog", "--poll", "0.1")
    listen = ("--callback-url", f"http://{address}/hooks", "--listen", address)
    process = start_cli(*create, *listen, "--base-url", emulator.url)
    deadline = time.monotonic() + 20
    while not emulator.tasks:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (task,) = emulator.tasks.values()
    path = "/hooks/" + str(task.callback_url).rpartition("/")[2]
    with socket.create_connection(("127.0.0.1", free_port), timeout=20) as stranger:
        head = HEADS[promised]
        stranger.sendall(head % path.encode() if promised == "token" else head)
        if promised == "body":
            assert stranger.recv(1000).startswith(b"HTTP/1.1 401")
        else:
            with suppress(TimeoutError):
                stranger.settimeout(0.3)
                stranger.recv(1000)
        ended = time.monotonic()
        emulator.finish(task.task_id)
        out, err = process.communicate(timeout=30)
        took = time.monotonic() - ended
    assert process.returncode == 0, err
    assert "id: ch_" in out
    assert took < 4
