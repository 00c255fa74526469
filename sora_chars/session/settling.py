"""Settles requests whose responses were lost, by asking the provider for the task of their key. Sends nothing."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import attrs

from sora_chars.errors import ProviderError, printable
from sora_chars.ledger import EntryState
from sora_chars.ledger.transitions import end_state
from sora_chars.logs import event_logger
from sora_chars.timeouts import submit_deadline

if TYPE_CHECKING:
    from sora_chars.ledger import Entry, Ledger
    from sora_chars.models import TaskSnapshot
    from sora_chars.protocols import Provider

    from .writer import LedgerWriter

log = event_logger("sora_chars.session")

_FIRST_GAP = 1.0  # seconds
_LONGEST_GAP = 60.0  # seconds
SETTLING_PERIOD = 600.0
"""Seconds for which a provider is asked; a request that has not arrived by then never will."""


async def keys_sent(ledger: Ledger, entry: Entry) -> list[str]:
    """Return the keys under which the attempts of an entry are known to the provider, the present one first.

    An attempt after one that has failed needs a key of its own, or the provider would return the failed task.
    """
    failed = sum(attempt.state is EntryState.FAILED for attempt in await ledger.attempts(entry.key))
    later = [f"{entry.key}~{number}" for number in range(failed + 1, 1, -1)]
    return [*later, entry.key]


@attrs.define(eq=False)
class Settlement:
    """Asks a provider what became of one request.

    Attributes:
        provider: The provider; `settles` is "lookup".
        ledger: Where the entry is recorded.
        writer: Records the answer.
        closed: Done once the session is closing.
        claims_task: Whether this process polls the task from then on, and asks repeatedly.
        asked: How often the provider was asked.
        answer: The provider's last answer, for the error of a request that stays unknown.
    """

    provider: Provider
    ledger: Ledger
    writer: LedgerWriter
    closed: asyncio.Future[None]
    claims_task: bool = True
    asked: int = attrs.field(default=0, init=False)
    answer: str = attrs.field(default="", init=False)

    async def settle(self, entry: Entry) -> Entry:
        """Ask at once and then with growing gaps, for ten minutes at most; return the entry as it is then.

        Ends early at the deadline of the caller, when the session closes, when the
        provider rejects the question, and when a callback or a person has settled the entry.
        """
        loop = asyncio.get_running_loop()
        until = min(loop.time() + (SETTLING_PERIOD if self.claims_task else 0.0), submit_deadline.get())
        gap = _FIRST_GAP
        while True:
            entry = await self.ask(entry)
            left = until - loop.time()
            if entry.state is not EntryState.UNKNOWN or left <= 0 or self.closed.done():
                return entry
            changed = asyncio.ensure_future(self.ledger.changed(entry, timeout=min(gap, left)))
            await asyncio.wait((changed, self.closed), return_when=asyncio.FIRST_COMPLETED)
            if not changed.done():
                changed.cancel()
                return entry
            entry = changed.result()
            gap = min(gap * 2, _LONGEST_GAP)

    def ask_again_in(self, entry: Entry, now: float) -> float | None:
        """Return the seconds until the next question, growing with the age of an unknown outcome; None after the last.

        `now` is the wall-clock time in epoch seconds.
        """
        age = max(0.0, now - entry.updated_at)
        return min(max(_FIRST_GAP, age), _LONGEST_GAP) if age < SETTLING_PERIOD else None

    async def ask(self, entry: Entry) -> Entry:
        """Ask once, and record the task if the provider shows it. Return the entry as it is then."""
        if entry.state is not EntryState.UNKNOWN:
            return entry
        self.asked += 1
        try:
            snapshot = await self._find(entry)
        except ProviderError as error:
            self.answer = printable(error.message)
            return entry
        if snapshot is None:
            self.answer = "it shows no task of this key"
            return entry
        names = {"provider": entry.provider, "key": entry.key, "task_id": snapshot.task_id}
        log.info("submission.settled", extra=names)
        if snapshot.finished:
            to, facts = end_state(snapshot, entry.kind)
            return await self.writer.record_answer(entry, to, **facts)
        return await self.writer.record_answer(
            entry, EntryState.RUNNING, task_id=snapshot.task_id, claim=self.claims_task
        )

    async def _find(self, entry: Entry) -> TaskSnapshot | None:
        earlier = {attempt.task_id for attempt in await self.ledger.attempts(entry.key)}
        for key in await keys_sent(self.ledger, entry):
            snapshot = await self.provider.lookup(key)
            if snapshot and snapshot.task_id not in earlier:
                return snapshot
        return None

    @property
    def outcome(self) -> str:
        """What was asked and answered, for the error of a request that stays unknown."""
        times = "once" if self.asked == 1 else f"{self.asked} times"
        return f"{self.provider.name} was asked {times} for this key: {self.answer}."
