"""Hints: what they suggest, and for which ledger."""

from __future__ import annotations

import pytest

from sora_chars.cli.context import CommandContext
from sora_chars.cli.ledger_location import LedgerLocation


@pytest.mark.parametrize("explicit", [True, False])
def test_ledger_in_memory_is_never_named(explicit: bool) -> None:  # noqa: FBT001 # pytest gives it
    """No other command can open a ledger in memory, wherever it was selected."""
    context = CommandContext()
    context.use_ledger(LedgerLocation("memory:", explicit=explicit))
    hints = [context.command("wait", "t"), context.resolve_hint("k"), context.unrecorded_hint("k", "t")]
    context.has_tasks = False
    hints.append(context.unrecorded_hint("k", "t"))

    assert not any("--ledger" in hint or "ledger resolve" in hint for hint in hints)
    assert hints[0] == "sora-chars wait t"
    assert hints[2] == "Keep this id. This shows the task without a ledger: sora-chars status t"
    assert hints[3] == "Keep this id: it is the id of the character."
