"""Random asks, moves, crashes and takeovers against a model of one dictionary."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from sora_chars import Entry, EntryState, InvalidTransitionError, KeyConflictError, Ledger, StaleEntryError
from sora_chars.ledger.states import TRANSITIONS
from sora_chars.ledger.stores.memory import MemoryStore
from sora_chars.ledger.stores.sqlite import SqliteStore

KEYS = st.sampled_from(["k-1", "k-2", "k-3"])
TASKS = st.sampled_from(["t-1", "t-2"]) | st.none()


class LedgerMachine(RuleBasedStateMachine):
    """Two openings of one file and a ledger in memory go through the same, and agree with the model all the time."""

    @initialize()
    def begin(self) -> None:
        """Open them."""
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory()
        file = Path(self.folder.name, "characters.db")
        self.clock = 0.0
        stores = (MemoryStore(), SqliteStore(file, spacing=0), SqliteStore(file, spacing=0))
        self.ledgers = [Ledger(store, clock=lambda: self.clock) for store in stores]
        for ledger in self.ledgers:
            self.runner.run(ledger.open())
        self.model: dict[str, Entry] = {}
        self.old: dict[str, Entry] = {}

    def teardown(self) -> None:
        """Close them."""
        for ledger in self.ledgers:
            self.runner.run(ledger.aclose())
        self.runner.close()
        self.folder.cleanup()

    def pair(self, *, second: bool) -> tuple[Ledger, Ledger]:
        """Return the one in memory and one of those of the file."""
        return self.ledgers[0], self.ledgers[1 + second]

    def both(self, call: Any, *, second: bool) -> Any:
        """Do the same with both, and return how it ended; they must agree but for the names of owners."""
        ends = [self.runner.run(_end(call(ledger))) for ledger in self.pair(second=second)]
        assert _without_holder(ends[0]) == _without_holder(ends[1])
        return ends[0]

    @rule(key=KEYS, wish=st.sampled_from(["a", "b"]), second=st.booleans(), pause=st.floats(-10, 10))
    def ask(self, key: str, wish: str, second: bool, pause: float) -> None:  # noqa: FBT001 # drawn
        """Ask, with a wall clock that jumps."""
        self.clock += pause
        end = self.both(lambda to: to.register(key=key, provider="kie", kind="k", request={"w": wish}), second=second)
        known = self.model.get(key)
        if known is None:
            assert (end.state, end.version, end.request, end.created_at) == ("pending", 1, {"w": wish}, self.clock)
            self.model[key] = self.old[key] = end
        elif known.request == {"w": wish}:
            assert end == known
        else:
            assert isinstance(end, KeyConflictError)

    @rule(key=KEYS, to=st.sampled_from(EntryState), task=TASKS, second=st.booleans(), stale=st.booleans())
    def move(self, key: str, to: EntryState, task: str | None, second: bool, stale: bool) -> None:  # noqa: FBT001 # drawn
        """Move an entry as it is, or as somebody saw it before."""
        known = self.model.get(key)
        if known is None:
            return
        seen = self.old[key] if stale else known
        facts = {"task_id": task, "token_digest": f"d-{key}", "result": [to], "credits": 1.0}
        end = self.both(lambda ledger: ledger.transition(seen, to, **facts), second=second)
        named = seen.task_id or task
        if to not in TRANSITIONS[seen.state] or (task and task != named) or (to is EntryState.RUNNING and not named):
            assert isinstance(end, InvalidTransitionError)
        elif seen.version != known.version:
            assert isinstance(end, StaleEntryError)
            assert end.entry == known
        else:
            assert (end.state, end.version, end.task_id, end.result) == (to, known.version + 1, named, [to])
            self.old[key], self.model[key] = known, end

    @rule(second=st.booleans())
    def crash(self, second: bool) -> None:  # noqa: FBT001 # drawn
        """Close one opening of the file, and open it again under a new name."""
        ledger = self.ledgers[1 + second]
        was = ledger.owner
        self.runner.run(ledger.aclose())
        assert self.runner.run(self.ledgers[2 - second].is_dead(was))
        self.runner.run(ledger.open())

    @invariant()
    def all_agree(self) -> None:
        """Every ledger holds what the model holds, in its order, and finds it by task and token."""
        for ledger in self.ledgers:
            held = self.runner.run(_all(ledger))
            assert [_without_holder(entry) for entry in held] == [_without_holder(e) for e in self.model.values()]
            for entry in held:
                found = self.runner.run(ledger.by_token(f"d-{entry.key}"))
                assert found == (entry if entry.token_digest else None)
                if entry.task_id:
                    found = self.runner.run(ledger.by_task("kie", entry.task_id))
                    assert found is not None
                    assert found.task_id == entry.task_id


async def _end(work: Any) -> Any:
    try:
        return await work
    except (KeyConflictError, StaleEntryError, InvalidTransitionError) as error:
        return error


async def _all(ledger: Ledger) -> list[Entry]:
    return [entry async for entry in ledger.entries()]


def _without_holder(end: Any) -> Any:
    if isinstance(end, Entry):
        return (end.key, end.state, end.request, end.result, end.task_id, end.token_digest, end.version, end.updated_at)
    return (type(end), str(end))


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
