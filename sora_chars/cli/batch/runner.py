"""Runs a batch: rows in flight, signals, the summary."""

from __future__ import annotations

import asyncio
import signal
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import attrs

from sora_chars.cli.callback_server import serve_callbacks
from sora_chars.cli.options import SHUTDOWN_TIMEOUT
from sora_chars.cli.render import one_line
from sora_chars.cli.runner import BUG, STILL_RUNNING, exit_status
from sora_chars.errors import SoraCharsError
from sora_chars.ledger import EntryState
from sora_chars.session.session import CharacterSession

from .progress import BatchDisplay, Tally, duration
from .writer import entry_row, outcome_row

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Iterator, Sequence

    from sora_chars.batch.outcome import Outcome
    from sora_chars.cli.context import CommandContext
    from sora_chars.cli.options import Settings
    from sora_chars.errors import ProviderError
    from sora_chars.ledger import Entry, Ledger
    from sora_chars.models import RowFields
    from sora_chars.protocols import Provider

    from .spool import Spool
    from .writer import Write

_UNSENT = {EntryState.PENDING, EntryState.REJECTED}


@attrs.frozen
class SpooledRequests:
    """The rows of a spool; the tally counts each as in flight when the batch takes it."""

    spool: Spool
    tally: Tally

    def __len__(self) -> int:
        return self.spool.count

    def __iter__(self) -> Iterator[RowFields]:
        for columns in self.spool:
            self.tally.in_flight[columns["key"]] = columns
            yield cast("RowFields", columns)


@attrs.define(eq=False, kw_only=True)
class BatchRun:
    """One run of `sora-chars batch`.

    Attributes:
        context: The context of the command.
        settings: The shared options.
        spool: The rows, all of them checked.
        output: The path of the output file, or "-".
        write: Writes one row to the output.
        concurrency: How many tasks may be in flight.
        budget: The most credits that all rows may cost together, if limited.
        price: The expected cost of a row in credits, if known.
        wait_on_interrupt: Whether the first Ctrl-C waits for the running tasks.
    """

    context: CommandContext
    settings: Settings
    spool: Spool
    output: str
    write: Write
    concurrency: int
    budget: float | None
    price: float | None
    wait_on_interrupt: bool
    _began: float = attrs.field(factory=time.monotonic)
    _tally: Tally = attrs.field(init=False)
    _display: BatchDisplay = attrs.field(init=False)
    _signals: list[int] = attrs.field(factory=list)
    _stopped: str | None = None  # why the batch stopped sending rows
    _account_error: ProviderError | None = None
    _statuses: set[int] = attrs.field(factory=lambda: {0})

    def __attrs_post_init__(self) -> None:
        self._tally = Tally(self.spool.count)
        self._display = BatchDisplay(self.context.output, self._tally, self.budget, rows_to_stdout=self.output == "-")

    @property
    def status(self) -> int:
        """The exit status: the highest of all rows, or that of the signal."""
        counts = self._tally.counts
        unfinished = counts["running"] or counts["not sent"]
        if unfinished and self._signals:
            return 128 + self._signals[0]
        return max(self._statuses | ({STILL_RUNNING} if unfinished else set()))

    async def run(self, providers: Sequence[Provider]) -> None:
        """Send all rows, or as many as signals and the budget allow.

        Raises:
            ConfigurationError: The output cannot be written, or the address for
                callbacks is not available.
            LedgerError: The ledger cannot be opened.
        """
        if not providers:
            return
        self.context.has_tasks = not all(provider.synchronous for provider in providers)
        with self._until_signal():
            async with self.settings.location.open() as ledger:
                with self._until_signal():
                    await self._run_session(ledger, providers)
                for key in sorted(self._tally.in_flight):
                    self._release(key, await ledger.get(key))

    async def _run_session(self, ledger: Ledger, providers: Sequence[Provider]) -> None:
        timeout = self.settings.wait_timeout
        listener = self.settings.open_listener()
        async with (
            CharacterSession(
                *providers,
                ledger=ledger,
                polling=self.settings.polling,
                timeout=timeout,
                shutdown_timeout=SHUTDOWN_TIMEOUT,
            ) as session,
            serve_callbacks(session, listener, self.settings.webhook_key),
        ):
            with self._until_signal():
                requests = SpooledRequests(self.spool, self._tally)
                await self._create(session, requests, budget=self.budget, price=self.price)
            if self.wait_on_interrupt and self._signals == [signal.SIGINT]:
                sent = [columns async for columns in self._sent(ledger)]
                self.context.output.note(
                    f"Interrupted. Nothing more is sent; waiting for {len(sent)} running. "
                    "Press Ctrl-C again to leave them running."
                )
                await self._create(session, sent)  # these keys are recorded, so none of them is sent again

    async def _create(
        self, session: CharacterSession, requests: SpooledRequests | list[RowFields], **limits: Any
    ) -> None:
        async with (
            session.create_many(requests, concurrency=self.concurrency, **limits) as batch,
            self._display.showing(batch),
        ):
            async for outcome in batch:
                self._add_outcome(outcome)
            self._stopped = batch.stopped
            self._account_error = batch.rejection
            self._tally.in_flight.clear()  # rows that the batch took, but was not allowed to send

    async def _sent(self, ledger: Ledger) -> AsyncGenerator[RowFields, None]:
        """Give the rows in flight whose request was sent, and release the others."""
        for key, columns in sorted(self._tally.in_flight.items()):
            entry = await ledger.get(key)
            if entry is None or entry.state in _UNSENT:
                self._release(key, entry)
            else:
                yield cast("RowFields", columns)

    def _release(self, key: str, entry: Entry | None) -> None:
        """Stop waiting for a row. If its request was sent, write what the ledger records."""
        if row := entry_row(entry):
            self._add_row(row)
        else:
            del self._tally.in_flight[key]

    def _add_outcome(self, outcome: Outcome) -> None:
        row = outcome_row(outcome)
        error = outcome.error
        self._add_row(row)
        if error:
            self._statuses.add(exit_status(error) if isinstance(error, SoraCharsError) else BUG)
            self._display.add_error(row["key"], row["error"]["message"])

    def _add_row(self, row: dict[str, Any]) -> None:
        self.write(row)
        self._tally.add(row)

    def interrupted(self, number: int) -> None:
        """Record a signal; the run is cancelled afterwards."""
        self._signals.append(number)
        if not (self.wait_on_interrupt and self._signals == [signal.SIGINT]):
            self.context.output.note(
                "Stopping. Running tasks keep running; requests that were just sent "
                f"have {SHUTDOWN_TIMEOUT:g} s for their response, or until the next Ctrl-C."
            )

    @contextmanager
    def _until_signal(self) -> Generator[None]:
        """End the block, but not the coroutine, when a signal cancels it."""
        asyncio_task = asyncio.current_task()
        try:
            yield
        except asyncio.CancelledError:
            if not (self._signals and asyncio_task):
                raise
            asyncio_task.uncancel()

    def print_summary(self) -> None:
        """Print the counts, and how to continue."""
        tally = self._tally
        seconds = time.monotonic() - self._began
        counts = tally.counts | {"repeated": self.spool.repeated}
        facts: dict[str, float] = {name.replace(" ", "_"): count for name, count in counts.items()}
        facts |= {"credits": round(tally.credits, 6), "seconds": round(seconds, 3)}
        rows = [(name, str(count)) for name, count in counts.items() if count]
        rows += [("credits", f"{tally.credits:.10g}")] if tally.credits else []
        self.context.output.show(
            {"summary": {"rows": tally.total} | facts},
            [("rows", str(tally.total)), *rows, ("time", duration(seconds)), ("output", one_line(self.output))],
            title="Batch",
            to_stderr=True,
        )
        self._print_advice(counts)

    def _print_advice(self, counts: dict[str, int]) -> None:
        output = self.context.output
        unknown = counts["unknown"]
        if self._stopped == "budget":
            output.note(f"The budget of {self.budget:g} credits allows no more rows.")
        elif self._stopped == "price":
            output.note("The budget cannot be kept, because the cost of a row is unknown. Give --price.")
        elif self._account_error:
            output.note(f"No more rows are sent. {self._account_error}")
        if counts["running"] or counts["not sent"] or self._account_error:
            output.note("To continue, run the same command again. Nothing is paid twice.")
        if unknown:
            keys = ", ".join(map(one_line, self._tally.unknown_keys))
            more = ", ..." if unknown > len(self._tally.unknown_keys) else ""
            output.note(f"Outcome unknown: {unknown} ({keys}{more})")
            output.note(self.context.resolve_hint("KEY", tasks=self.context.has_tasks))
