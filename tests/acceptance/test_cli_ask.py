"""`sora-chars ledger resolve --ask`: lost answers that Kling settles when it is asked, as real processes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from sora_chars.cli.context import ASKED
from sora_chars.cli.options import PROVIDERS, Settings

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    import pytest

    from sora_chars.testing import Emulator

    Cli = Callable[..., subprocess.CompletedProcess[str]]

REX = ("--video", "https://clips.example/rex.mp4", "--name", "Rex", "--prompt", "A friendly dog", "--poll", "0.05")


def test_asks_for_each_key(cli: Cli, emulator: Emulator) -> None:
    """Each key is asked for; what was asked and found is stated, and a key that stays unknown sets the status."""
    at = ("--base-url", emulator.url)
    emulator.fault("lost_response", on="element", times=2)
    silence = emulator.fault("http_500", on="element_poll", times=None)
    for key in ("lost", "gone"):
        made = cli("create", "--provider", "kling", *at, *REX, "--key", key, "--timeout", "0.5")
        assert made.returncode == 6, made.stderr
        assert "ledger resolve " in made.stderr
        assert "--ask | --task-id ID" in made.stderr
    silence.remove()
    emulator.kling.tasks.pop(next(reversed(emulator.kling.tasks)))
    asked = cli("ledger", "resolve", "gone", "lost", "--ask", *at)
    assert asked.returncode == 6
    assert (
        "The outcome of key gone is still unknown. kling was asked once for this key: it shows no task" in asked.stderr
    )
    (task_id,) = emulator.kling.tasks
    assert f"kling was asked for key lost and shows {task_id}." in asked.stderr
    assert f"task: {task_id}" in asked.stdout
    found = cli("ledger", "resolve", "gone", "--ask", "--json", *at)
    assert (found.returncode, json.loads(found.stdout)["error"]["type"]) == (6, "SubmissionUnknownError")
    both = cli("ledger", "resolve", "gone", "--ask", "--give-up", *at)
    assert (both.returncode, "Give exactly one of --ask" in both.stderr) == (2, True)
    assert emulator.counts.elements == 2


def test_names_of_the_providers_that_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """`cli.context.ASKED` names exactly the providers that can be asked for the task of a key."""
    monkeypatch.setenv("SORA_CHARS_EMULATOR", "http://127.0.0.1:1")
    made = {name: Settings(provider=name, base_url=None, timeout=None).make_provider() for name in PROVIDERS}
    assert {name for name, provider in made.items() if provider.settles} == set(ASKED)
