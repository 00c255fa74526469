"""A character that waits for the consent of a person, from the command line, as real processes."""

from __future__ import annotations

import json
import re
import urllib.request
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from sora_chars.testing import Emulator

    Cli = Callable[..., subprocess.CompletedProcess[str]]

TWIN = ("--provider", "heygen", "--video", "https://clips.example/speaker.mp4", "--name", "Rex", "--poll", "0.05")
PAGE = re.compile(r"waits for a person, who must act on this page: (\S+)")


def consent(page: str) -> None:
    """Consent on the page, as a person does."""
    assert page.startswith("http://127.0.0.1:")
    urllib.request.urlopen(page, data=b"", timeout=20).close()


def test_consent_and_restart(cli: Cli, emulator: Emulator) -> None:
    """The page is shown, a time-out says what is waited for, and a later command goes on."""
    emulator.task_store.durations = (0.02, 0.04)
    emulator.fault("heygen_consent")
    at = ("--base-url", emulator.url)
    ended = cli("create", *TWIN, *at, "--key", "order-17", "--timeout", "2")
    assert ended.returncode == 5, ended.stderr
    assert "waits for a person, and the wait for it timed out" in ended.stderr
    (page,) = PAGE.findall(ended.stderr)
    assert page.endswith("?lang=en")
    (look,) = emulator.heygen.looks.values()
    assert f"wait {look.look_id} --provider heygen --base-url {emulator.url}" in ended.stderr

    shown = json.loads(cli("status", look.look_id, "--provider", "heygen", *at, "--json").stdout)
    assert (shown["state"], shown["waiting_for"].startswith(emulator.url)) == ("pending_consent", True)
    resumed = cli("resume", "--provider", "heygen", *at, "--timeout", "2", "--json")
    assert resumed.returncode == 5, resumed.stderr
    consent(PAGE.findall(resumed.stderr)[0])
    waited = cli("wait", "order-17", "--provider", "heygen", *at, "--json")
    assert waited.returncode == 0, waited.stderr
    assert json.loads(waited.stdout)["character"]["id"] == look.look_id
    assert emulator.counts.avatars == 1


def test_page_in_json(cli: Cli, emulator: Emulator) -> None:
    """With --json the page stands on stderr while the command waits, and in the object of the time-out."""
    emulator.fault("heygen_consent")
    ended = cli("create", *TWIN, "--base-url", emulator.url, "--timeout", "2", "--json")
    error: dict[str, Any] = json.loads(ended.stdout)["error"]
    assert PAGE.findall(ended.stderr) == [error["waiting_for"]]
    assert ended.stderr.count("waits for a person") == 1


def test_callbacks(cli: Cli) -> None:
    """Callbacks of HeyGen are not supported, and nothing is sent."""
    ended = cli("create", *TWIN, "--callback-url", "https://app.example/cb", "--listen", "127.0.0.1:0")
    assert ended.returncode == 2
    ended = cli("create", *TWIN, "--callback-url", "https://app.example/cb", "--listen", "127.0.0.1:8099")
    assert ended.returncode == 2
    assert "heygen is only polled; callbacks come from kie, kling, wavespeed and evolink" in ended.stderr
