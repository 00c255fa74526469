"""What `create --listen` finds in the ledger while it waits for the callback of a lost answer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from sora_chars.cli.single_task import _Submission
from sora_chars.errors import LedgerError
from sora_chars.ledger import EntryState

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.looptime


def submission(get: Callable[[], Any]) -> _Submission:
    """Return a submission whose ledger has the entry that `get` returns, and changes no more."""

    async def read(_key: str) -> Any:
        return get()

    async def changed(entry: Any, *, timeout: float) -> Any:
        assert timeout > 0
        return entry

    session: Any = SimpleNamespace(ledger=SimpleNamespace(get=read, changed=changed))
    line: Any = SimpleNamespace(update=lambda _text: None)
    nothing: Any = None
    return _Submission(nothing, nothing, session, line, 100.0, False)  # noqa: FBT003 # a field


@pytest.mark.parametrize(
    ("state", "is_settled"),
    [
        (EntryState.SUCCEEDED, True),
        (EntryState.RUNNING, True),
        (EntryState.SENDING, False),
        (EntryState.UNKNOWN, False),
    ],
)
async def test_settled_states(state: EntryState, *, is_settled: bool) -> None:
    """An entry is settled once it is neither unknown nor being sent."""
    assert await submission(lambda: SimpleNamespace(state=state))._is_settled("k") is is_settled


async def test_a_ledger_that_fails() -> None:
    """If the ledger cannot be read, the outcome stays unknown."""

    def fail() -> Any:
        raise LedgerError("no database")

    assert not await submission(fail)._is_settled("k")
