"""Random registrations, transitions and restarts, compared with a model in a dictionary."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import attrs
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
    """A memory ledger and two ledgers on one file run the same steps and always agree with the model."""

    @initialize()
    def begin(self) -> None:
        """Open the ledgers."""
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory()
        file = Path(self.folder.name, "characters.db")
        self.clock = 0.0
        stores = (MemoryStore(), SqliteStore(file, spacing=0), SqliteStore(file, spacing=0))
        self.ledgers = [Ledger(store, clock=lambda: self.clock) for store in stores]
        for ledger in self.ledgers:
            self.runner.run(ledger.open())
        self.model: dict[str, Entry] = {}
        self.stale: dict[str, Entry] = {}

    def teardown(self) -> None:
        """Close the ledgers."""
        for ledger in self.ledgers:
            self.runner.run(ledger.aclose())
        self.runner.close()
        self.folder.cleanup()

    def both(self, call: Any, *, second: bool) -> Any:
        """Call the memory ledger and one of those on the file; return the outcome, which must be the same."""
        ledgers = (self.ledgers[0], self.ledgers[1 + second])
        outcomes = [self.runner.run(_outcome(call(ledger))) for ledger in ledgers]
        assert _without_owner(outcomes[0]) == _without_owner(outcomes[1])
        return outcomes[0]

    @rule(key=KEYS, video=st.sampled_from(["a", "b"]), second=st.booleans(), jump=st.floats(-10, 10))
    def register(self, key: str, video: str, second: bool, jump: float) -> None:  # noqa: FBT001 # drawn
        """Register a request, while the clock jumps."""
        self.clock += jump
        request = {"video": video}
        outcome = self.both(
            lambda ledger: ledger.register(key=key, provider="kie", kind="k", request=request), second=second
        )
        known = self.model.get(key)
        if known is None:
            assert (outcome.state, outcome.version, outcome.request) == ("pending", 1, request)
            assert outcome.created_at == self.clock
            self.model[key] = self.stale[key] = outcome
        elif known.request == request:
            assert outcome == known
        else:
            assert isinstance(outcome, KeyConflictError)

    @rule(key=KEYS, to=st.sampled_from(EntryState), task=TASKS, second=st.booleans(), stale=st.booleans())
    def transition(self, key: str, to: EntryState, task: str | None, second: bool, stale: bool) -> None:  # noqa: FBT001 # drawn
        """Change the present version of an entry, or the one before it."""
        known = self.model.get(key)
        if known is None:
            return
        entry = self.stale[key] if stale else known
        facts = {"task_id": task, "token_digest": f"d-{key}", "result": [to], "credits": 1.0}
        outcome = self.both(lambda ledger: ledger.transition(entry, to, **facts), second=second)
        task_id = entry.task_id or task
        second_task = task and task != task_id
        no_task = to is EntryState.RUNNING and not task_id
        if to not in TRANSITIONS[entry.state] or second_task or no_task:
            assert isinstance(outcome, InvalidTransitionError)
        elif entry.version != known.version:
            assert isinstance(outcome, StaleEntryError)
            assert outcome.entry == known
        else:
            assert (outcome.state, outcome.version) == (to, known.version + 1)
            assert (outcome.task_id, outcome.result) == (task_id, [to])
            self.stale[key] = known
            self.model[key] = outcome

    @rule(second=st.booleans())
    def restart(self, second: bool) -> None:  # noqa: FBT001 # drawn
        """Close one ledger on the file and open it again under a new name."""
        ledger = self.ledgers[1 + second]
        former = ledger.owner
        self.runner.run(ledger.aclose())
        assert self.runner.run(self.ledgers[2 - second].is_dead(former))
        self.runner.run(ledger.open())

    @invariant()
    def all_agree(self) -> None:
        """Every ledger has the entries of the model, in its order, and finds them by task and token."""
        for ledger in self.ledgers:
            entries = self.runner.run(_all(ledger))
            assert [_without_owner(entry) for entry in entries] == [_without_owner(e) for e in self.model.values()]
            for entry in entries:
                found = self.runner.run(ledger.by_token(f"d-{entry.key}"))
                assert found == (entry if entry.token_digest else None)
                if entry.task_id:
                    found = self.runner.run(ledger.by_task("kie", entry.task_id))
                    assert found is not None
                    assert found.task_id == entry.task_id


async def _outcome(work: Any) -> Any:
    try:
        return await work
    except (KeyConflictError, StaleEntryError, InvalidTransitionError) as error:
        return error


async def _all(ledger: Ledger) -> list[Entry]:
    return [entry async for entry in ledger.entries()]


def _without_owner(outcome: Any) -> Any:
    if isinstance(outcome, Entry):
        return attrs.evolve(outcome, owner=None)
    return (type(outcome), str(outcome))


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
