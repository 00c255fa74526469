"""The summary of `sora-chars resume`."""

from __future__ import annotations

import io

from rich.console import Console

from sora_chars.cli.commands import resume
from sora_chars.cli.commands.resume import Recovery
from sora_chars.cli.context import CommandContext
from sora_chars.cli.output import Output
from sora_chars.models import Voice


def test_summary_names_a_few_keys() -> None:
    """At most five keys of unknown outcome are named."""
    err = io.StringIO()
    recovery = Recovery(CommandContext(Output(err=Console(file=err))))
    recovery.unknown = [f"k{number}" for number in range(7)]
    recovery.print_summary()

    assert recovery.status == 6
    assert err.getvalue().startswith("No task was running\nOutcome unknown: 7 (k0, k1, k2, k3, k4, ...)\n")


def test_a_voice_is_shown_by_its_id() -> None:
    """A voice that was created again after a crash has its own object and line."""
    voice = Voice(id="v1", name="Rex", provider="kling", task_id="t1")
    assert resume._outcome_json(voice, "k1") == {
        "provider": "kling",
        "task_id": "t1",
        "key": "k1",
        "voice": {"id": "v1", "name": "Rex"},
    }
    assert resume._outcome_text(voice) == "v1"
