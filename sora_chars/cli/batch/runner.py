"""Runs a batch: rows in flight, signals, the summary."""

from __future__ import annotations

import asyncio
import signal
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import attrs

from sora_chars.cli.callback_server import serve_callbacks
from sora_chars.cli.render import one_line
from sora_chars.cli.runner import BUG, STILL_RUNNING, UNKNOWN, exit_status
from sora_chars.errors import SoraCharsError, SubmissionUnknownError
from sora_chars.ledger import EntryState
from sora_chars.media import Cutting
from sora_chars.session.session import CharacterSession

from .progress import BatchDisplay, Tally, duration
from .writer import entry_row, outcome_row

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Iterator, Sequence

    from sora_chars.batch.options import Rows
    from sora_chars.batch.outcome import Outcome
    from sora_chars.cli.context import CommandContext
    from sora_chars.cli.options import Settings
    from sora_chars.errors import ProviderError
    from sora_chars.ledger import Entry, Ledger
    from sora_chars.models import RowFields
    from sora_chars.protocols import Provider
    from sora_chars.session.dispatcher import Dispatcher

    from .spool import Spool
    from .writer import Write

_UNSENT = {EntryState.PENDING, EntryState.REJECTED}
_SETTLED = {EntryState.RUNNING, EntryState.SUCCEEDED, EntryState.FAILED}
_ENTRY_STATUSES = {EntryState.FAILED: 4, EntryState.REJECTED: 3}  # exit statuses of rows that only the ledger describes


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
        retry_failed: Whether rows that failed or were rejected earlier are sent again.
        wait_on_interrupt: Whether the first Ctrl-C waits for the running tasks.
        shutdown_timeout: Seconds that a signal leaves for responses.
    """

    context: CommandContext
    settings: Settings
    spool: Spool
    output: str
    write: Write
    concurrency: int
    budget: float | None
    price: float | None
    retry_failed: bool
    wait_on_interrupt: bool
    shutdown_timeout: float
    _began: float = attrs.field(factory=time.monotonic)
    _tally: Tally = attrs.field(init=False)
    _display: BatchDisplay = attrs.field(init=False)
    _signals: list[int] = attrs.field(factory=list)
    _dispatcher: Dispatcher | None = None  # of the session
    _deadlines: dict[str, float] = attrs.field(factory=dict)  # loop times at which unknown rows are given up
    _stopped: str | None = None  # why the batch stopped sending rows
    _account_error: ProviderError | None = None
    _statuses: set[int] = attrs.field(factory=lambda: {0})

    def __attrs_post_init__(self) -> None:
        self._tally = Tally(self.spool.count, keeps_columns=self.settings.listen is not None)
        self._display = BatchDisplay(
            self.context.output,
            self._tally,
            self.budget,
            rows_to_stdout=self.output == "-",
            responses_awaited=self._responses_awaited,
        )

    @property
    def status(self) -> int:
        """The exit status: the highest of all rows, or that of the signal if rows are left."""
        counts = self._tally.counts
        unfinished = counts["running"] or counts["not sent"]
        if unfinished and self._signals:
            return 128 + self._signals[0]
        unknown = {UNKNOWN} if counts["unknown"] else set()
        return max(self._statuses | unknown | ({STILL_RUNNING} if unfinished else set()))

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
                await self._update_unknown(ledger)

    async def _run_session(self, ledger: Ledger, providers: Sequence[Provider]) -> None:
        timeout = self.settings.wait_timeout
        listener = self.settings.open_listener()
        async with (
            CharacterSession(
                *providers,
                ledger=ledger,
                cutting=Cutting(fit=self.settings.fit, allow_any_url=self.settings.allow_any_url),
                polling=self.settings.polling,
                timeout=timeout,
                shutdown_timeout=self.shutdown_timeout,
            ) as session,
            serve_callbacks(session, listener, self.settings.webhook_key),
        ):
            self._dispatcher = session.dispatcher()
            self.context.stop_waiting = self._dispatcher.stop_waiting
            with self._until_signal():
                requests = SpooledRequests(self.spool, self._tally)
                limits = {"budget": self.budget, "price": self.price}
                await self._create(session, requests, **limits, retry_failed=self.retry_failed)
                if self._deadlines:
                    await self._create(session, self._settled(ledger))  # these keys are recorded: none is sent again
            if self.wait_on_interrupt and self._signals == [signal.SIGINT]:
                await self._wait_for_sent(session, ledger)

    async def _wait_for_sent(self, session: CharacterSession, ledger: Ledger) -> None:
        sent = [columns async for columns in self._sent(ledger)]
        if sent:
            self.context.output.note(
                f"Interrupted. Nothing more is sent; waiting for {len(sent)} running. "
                "Press Ctrl-C again to leave them running."
            )
            with self._until_signal():
                await self._create(session, sent)  # these keys are recorded, so none of them is sent again
        else:
            self.context.output.note("Interrupted. Nothing more is sent, and nothing is running.")

    async def _create(self, session: CharacterSession, requests: Rows, **options: Any) -> None:
        async with (
            session.create_many(requests, concurrency=self.concurrency, **options) as batch,
            self._display.showing(batch),
        ):
            async for outcome in batch:
                self._add_outcome(outcome)
            self._stopped = self._stopped or batch.stopped
            self._account_error = self._account_error or batch.rejection
            self._tally.in_flight.clear()  # rows that the batch took, but was not allowed to send

    async def _sent(self, ledger: Ledger) -> AsyncGenerator[RowFields, None]:
        """Give the rows in flight whose request was sent, and release the others."""
        for key, columns in sorted(self._tally.in_flight.items()):
            entry = await ledger.get(key)
            if entry is None or entry.state in _UNSENT:
                self._release(key, entry)
            else:
                yield cast("RowFields", columns)

    async def _settled(self, ledger: Ledger) -> AsyncGenerator[RowFields, None]:
        """Give each unknown row whose callback arrives before its time-out."""
        waiting = list(self._deadlines.items())
        rows = "1 row" if len(waiting) == 1 else f"{len(waiting)} rows"
        self.context.output.note(
            f"The outcome of {rows} is unknown; waiting for callbacks, up to "
            f"{self.settings.wait_timeout:g} s after each request. Ctrl-C ends that wait."
        )
        loop = asyncio.get_running_loop()
        for key, deadline in waiting:  # the deadlines grow, so waiting for one row delays no other one too long
            entry = await ledger.get(key)
            if entry and entry.state is EntryState.UNKNOWN:
                entry = await ledger.changed(entry, timeout=max(0.0, deadline - loop.time()))
            if entry and entry.state in _SETTLED:
                columns = self._tally.unknown[key]
                self._tally.forget_unknown(key)
                self._tally.in_flight[key] = columns
                yield cast("RowFields", columns)

    async def _update_unknown(self, ledger: Ledger) -> None:
        """Write the rows again whose outcome became known after they were written."""
        for key in list(self._tally.unknown):
            entry = await ledger.get(key)
            if entry and entry.state is not EntryState.UNKNOWN:
                self._release(key, entry)

    def _release(self, key: str, entry: Entry | None) -> None:
        """Stop waiting for a row. If its request was sent, write what the ledger records."""
        if entry and (row := entry_row(entry)):
            self._add_row(row)
            self._statuses.add(_ENTRY_STATUSES.get(entry.state, 0))
        else:
            self._tally.in_flight.pop(key, None)
            self._tally.forget_unknown(key)

    def _add_outcome(self, outcome: Outcome) -> None:
        row = outcome_row(outcome)
        error = outcome.error
        self._add_row(row)
        if isinstance(error, SubmissionUnknownError):  # counted at the end, because a callback may settle it
            if self.settings.listen:
                self._deadlines[row["key"]] = asyncio.get_running_loop().time() + self.settings.wait_timeout
        elif error:
            self._statuses.add(exit_status(error) if isinstance(error, SoraCharsError) else BUG)
        if error:
            self._display.add_error(row["key"], row["error"]["message"])

    def _add_row(self, row: dict[str, Any]) -> None:
        self.write(row)
        self._tally.add(row)

    def _responses_awaited(self) -> int:
        """Return how many requests were sent and have no recorded outcome yet."""
        return self._dispatcher.responses_awaited if self._dispatcher else 0

    def interrupted(self, number: int) -> None:
        """Record a signal; the run is cancelled afterwards."""
        is_closing = bool(self._signals) and not (self.wait_on_interrupt and self._signals == [signal.SIGINT])
        self._signals.append(number)
        if self.wait_on_interrupt and self._signals == [signal.SIGINT]:
            return
        count = self._responses_awaited()
        requests = "1 request" if count == 1 else f"{count} requests"
        if is_closing:
            left = f" The outcome of {requests} is unknown." if count else ""
            self.context.output.note(f"Stopping now.{left}")
            return
        wait = ""
        if count:
            wait = (
                f" Waiting up to {self.shutdown_timeout:g} s for the response to {requests}; Ctrl-C ends that wait, "
                "and the outcome is then unknown."
            )
        tasks = " Tasks that run keep running." if self.context.has_tasks else ""
        self.context.output.note(f"Stopping. Nothing more is sent.{tasks}{wait}")

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
        for line in self._advice(counts):
            output.note(line)
        if unknown := counts["unknown"]:
            keys = ", ".join(map(one_line, self._tally.unknown_keys))
            more = ", ..." if unknown > len(self._tally.unknown_keys) else ""
            output.note(f"Outcome unknown: {unknown} ({keys}{more})")
            output.note(self.context.resolve_hint("KEY", tasks=self.context.has_tasks))

    def _advice(self, counts: dict[str, int]) -> Iterator[str]:
        """Yield why rows were not sent, and how to continue where that helps."""
        again = "run the same command again"
        if self._stopped == "budget":
            yield f"The budget of {self.budget:g} credits allows no more rows."
            again = "run the command again with a larger --budget"
        elif self._stopped == "price":
            yield "The budget cannot be kept, because the cost of a row is unknown."
            again = "run the command again with --price"
        elif self._account_error:
            yield f"No more rows are sent. {self._account_error}"
            again = "correct that and run the same command again"
        if not (counts["running"] or counts["pending"] or counts["not sent"] or self._account_error):
            return
        if self.context.ledger_in_memory:
            yield "The ledger was in memory: the same command would send and pay every row again."
        else:
            yield f"To continue, {again}. Nothing is paid twice."
