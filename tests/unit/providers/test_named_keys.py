"""Records that are found by the digest of a key in their names."""

from __future__ import annotations

import pytest

from sora_chars import NoAnswerError, TaskSnapshot
from sora_chars.providers.named_keys import only_match


def record(task_id: str) -> TaskSnapshot:
    """Return a record of a list."""
    return TaskSnapshot(task_id=task_id, provider="p", state="Processing")


def test_a_record_that_two_pages_show() -> None:
    """A list that grows while it is read shows a record at the end of one page and the start of the next."""
    found = only_match([record("a"), record("a")], shown="assets", provider="p")
    assert found is not None
    assert found.task_id == "a"


def test_several_records() -> None:
    """Two records leave the outcome unknown, and none is none."""
    with pytest.raises(NoAnswerError, match="p shows 2 assets"):
        only_match([record("a"), record("b"), record("a")], shown="assets", provider="p")
    assert only_match([], shown="assets", provider="p") is None
