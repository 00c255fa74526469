"""One run of `sora-chars batch`: rows in flight, signals, and how it all went."""

from __future__ import annotations

import asyncio
import signal
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs

from sora_chars.cli.callback_server import receiving
from sora_chars.cli.render import shown
from sora_chars.cli.runner import BUG, STILL_RUNNING, exit_status
from sora_chars.cli.waiting import DRAIN, WAIT
from sora_chars.errors import SoraCharsError
from sora_chars.ledger import EntryState
from sora_chars.session.session import CharacterSession

from .progress import Display, Tally, duration
from .writer import entry_row, outcome_row

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Iterator, Sequence

    from sora_chars.batch.outcome import Outcome
    from sora_chars.cli.context import Job
    from sora_chars.cli.options import Settings
    from sora_chars.errors import ProviderError
    from sora_chars.ledger import Entry, Ledger
    from sora_chars.protocols import Provider

    from .spool import Spool
    from .writer import Write

_UNSENT = {EntryState.PENDING, EntryState.REJECTED}


@attrs.frozen
class Wishes:
    """The rows of a spool, each noted in the tally as it is taken up."""

    spool: Spool
    tally: Tally

    def __len__(self) -> int:
        return self.spool.count

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for columns in self.spool:
            self.tally.taken[columns["key"]] = columns
            yield columns


@attrs.define(eq=False, kw_only=True)
class BatchRun:
    """Makes what is in the spool. `patient`: whether the first Ctrl-C lets what runs end."""

    job: Job
    settings: Settings
    spool: Spool
    output: str
    write: Write
    concurrency: int
    budget: float | None
    price: float | None
    patient: bool
    _began: float = attrs.field(factory=time.monotonic)
    _tally: Tally = attrs.field(init=False)
    _display: Display = attrs.field(init=False)
    _signals: list[int] = attrs.field(factory=list[int])
    _stopped: str | None = None  # why there was no end
    _refusal: ProviderError | None = None  # of an account
    _statuses: set[int] = attrs.field(factory=lambda: {0})

    def __attrs_post_init__(self) -> None:
        self._tally = Tally(self.spool.count)
        self._display = Display(self.job.screen, self._tally, self.budget, to_stdout=self.output == "-")

    @property
    def status(self) -> int:
        """The exit status: of all that did not end well the one that asks most of a person, or the signal's."""
        counts = self._tally.counts
        unfinished = counts["running"] or counts["not sent"]
        if unfinished and self._signals:
            return 128 + self._signals[0]
        return max(self._statuses | ({STILL_RUNNING} if unfinished else set()))

    async def run(self, providers: Sequence[Provider]) -> None:
        """Make them all, or as many as signals and the budget allow.

        Raises:
            ConfigurationError: the output cannot be written, or the address of callbacks cannot be had.
            LedgerError: the ledger cannot be opened.
        """
        if not providers:
            return
        self.job.has_tasks = not all(provider.synchronous for provider in providers)
        with self._until_signal():
            async with self.settings.place.make() as ledger:
                with self._until_signal():
                    await self._in_session(ledger, providers)
                for key in sorted(self._tally.taken):
                    self._let_go(key, await ledger.get(key))

    async def _in_session(self, ledger: Ledger, providers: Sequence[Provider]) -> None:
        limit, server = self.settings.timeout or WAIT, self.settings.open_port()
        async with (
            CharacterSession(
                *providers, ledger=ledger, polling=self.settings.pace, timeout=limit, shutdown_timeout=DRAIN
            ) as session,
            receiving(session, server, self.settings.webhook_key),
        ):
            with self._until_signal():
                await self._make(session, Wishes(self.spool, self._tally), budget=self.budget, price=self.price)
            if self.patient and self._signals == [signal.SIGINT]:
                sent = [wish async for wish in self._sent(ledger)]
                self.job.screen.note(
                    f"Interrupted: nothing more is sent; {len(sent)} are waited for. Ctrl-C again leaves them running."
                )
                await self._make(session, sent)  # which are on record: none is sent again

    async def _make(self, session: CharacterSession, wishes: Wishes | list[dict[str, Any]], **money: Any) -> None:
        async with (
            session.create_many(wishes, concurrency=self.concurrency, **money) as outcomes,
            self._display.follow(outcomes),
        ):
            async for outcome in outcomes:
                self._take(outcome)
            self._stopped, self._refusal = outcomes.stopped, outcomes.rejection
            self._tally.taken.clear()  # what was read and then not allowed

    async def _sent(self, ledger: Ledger) -> AsyncGenerator[dict[str, Any], None]:
        """The rows under way that are not ours to give up any more; the others are given up."""
        for key, wish in sorted(self._tally.taken.items()):
            entry = await ledger.get(key)
            if entry is None or entry.state in _UNSENT:
                self._let_go(key, entry)
            else:
                yield wish

    def _let_go(self, key: str, entry: Entry | None) -> None:
        """Tell what the ledger knows of a row that is not followed any more, if anything was sent for it."""
        if row := entry_row(entry):
            self._put(row)
        else:
            del self._tally.taken[key]

    def _take(self, outcome: Outcome) -> None:
        row, error = outcome_row(outcome), outcome.error
        self._put(row)
        if error:
            self._statuses.add(exit_status(error) if isinstance(error, SoraCharsError) else BUG)
            self._display.tell(row["key"], row["error"]["message"])

    def _put(self, row: dict[str, Any]) -> None:
        self.write(row)
        self._tally.put(row)

    def interrupted(self, number: int) -> None:
        """Take a signal, after which the run is cancelled."""
        self._signals.append(number)
        if not (self.patient and self._signals == [signal.SIGINT]):
            self.job.screen.note(
                f"Leaving. What runs goes on; what was just sent has {DRAIN:g} s for its answer, or until Ctrl-C."
            )

    @contextmanager
    def _until_signal(self) -> Generator[None]:
        """End the block, and no more, when a signal cancels it."""
        asyncio_task = asyncio.current_task()
        try:
            yield
        except asyncio.CancelledError:
            if not (self._signals and asyncio_task):
                raise
            asyncio_task.uncancel()

    def sum_up(self) -> None:
        """Say how it went, and what is left to do."""
        tally, seconds = self._tally, time.monotonic() - self._began
        counts = tally.counts | {"repeated": self.spool.repeated}
        facts: dict[str, float] = {name.replace(" ", "_"): count for name, count in counts.items()}
        facts |= {"credits": round(tally.credits, 6), "seconds": round(seconds, 3)}
        rows = [(name, str(count)) for name, count in counts.items() if count]
        rows += [("credits", f"{tally.credits:.10g}")] if tally.credits else []
        self.job.screen.show(
            {"summary": {"rows": tally.total} | facts},
            [("rows", str(tally.total)), *rows, ("time", duration(seconds)), ("output", shown(self.output))],
            title="Batch",
            aside=True,
        )
        self._advise(counts)

    def _advise(self, counts: dict[str, int]) -> None:
        screen, unknown = self.job.screen, counts["unknown"]
        if self._stopped == "budget":
            screen.note(f"The budget of {self.budget:g} credits allows no more rows.")
        elif self._stopped == "price":
            screen.note("Nothing tells what a row costs, so that no budget can be kept: give --price.")
        elif self._refusal:
            screen.note(f"No more rows are sent. {self._refusal}")
        if counts["running"] or counts["not sent"] or self._refusal:
            screen.note("To go on, run the same command again: nothing is paid twice.")
        if unknown:
            named = ", ".join(map(shown, self._tally.unknown))
            screen.note(f"{unknown} of unknown outcome: {named}{', ...' if unknown > len(self._tally.unknown) else ''}")
            screen.note(self.job.settling("KEY", tasks=self.job.has_tasks))
