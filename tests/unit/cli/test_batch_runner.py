"""A run of a batch: how a signal ends it, its exit status, and what it advises."""

from __future__ import annotations

import asyncio
import io
import signal
from typing import TYPE_CHECKING, Any

import attrs
import pytest
from rich.console import Console

from sora_chars.batch.outcome import Outcome
from sora_chars.cli.batch.runner import BatchRun
from sora_chars.cli.batch.spool import open_spool
from sora_chars.cli.context import CommandContext
from sora_chars.cli.options import Settings
from sora_chars.cli.output import Output
from sora_chars.errors import InsufficientCreditsError, NoAnswerError, SubmissionUnknownError, TaskFailedError
from sora_chars.ledger import Entry, EntryState, open_ledger

if TYPE_CHECKING:
    from sora_chars.errors import SoraCharsError
    from sora_chars.ledger import Ledger

CALLBACKS: dict[str, Any] = {"callback_url": "http://x", "listen": ("127.0.0.1", 1)}
SAME = "To continue, run the same command again. Nothing is paid twice."


@attrs.define(eq=False)
class Run:
    """A run, the rows that it writes, and what it prints."""

    batch: BatchRun
    rows: list[Any]
    err: io.StringIO

    def add(self, key: str, error: SoraCharsError | None, state: EntryState) -> None:
        """End a row."""
        self.batch._add_outcome(Outcome(index=0, request=None, state=state, key=key, error=error))

    def statuses(self) -> list[tuple[str, str]]:
        """Return the written statuses."""
        return [(row["key"], row["status"]) for row in self.rows]

    def advice(self) -> list[str]:
        """Return the lines on how to continue."""
        return list(self.batch._advice(self.batch._tally.counts))


def make(*, total: int = 2, memory: bool = False, **settings: Any) -> Run:
    """Return a run of rows that were not sent yet."""
    rows: list[Any] = []
    err = io.StringIO()
    values: dict[str, Any] = {"provider": "kie", "base_url": None, "timeout": None}
    context = CommandContext(Output(err=Console(file=err)), ledger_in_memory=memory)
    with open_spool() as spool:
        spool.count = total
        batch = BatchRun(
            context=context,
            settings=Settings(**values | settings),
            spool=spool,
            output="-",
            write=rows.append,
            concurrency=1,
            budget=5.0,
            price=None,
            retry_failed=False,
            wait_on_interrupt=True,
            shutdown_timeout=8.0,
        )
    return Run(batch, rows, err)


@pytest.fixture
def run() -> Run:
    """Return a run that receives callbacks."""
    return make(**CALLBACKS)


async def unknown(ledger: Ledger, key: str) -> Entry:
    """Record an entry whose outcome is unknown."""
    entry = await ledger.register(key=key, provider="kie", kind="character", request={"from_task": "t"})
    return await ledger.transition(await ledger.transition(entry, EntryState.SENDING), EntryState.UNKNOWN)


def lost(key: str) -> SubmissionUnknownError:
    """Return the error of a lost answer."""
    return SubmissionUnknownError("lost", provider="kie", key=key)


async def test_only_a_signal_suppresses_cancellation(run: Run) -> None:
    """Without a signal, the cancellation reaches the caller."""
    with pytest.raises(asyncio.CancelledError), run.batch._until_signal():
        raise asyncio.CancelledError
    run.batch.interrupted(signal.SIGINT)
    with run.batch._until_signal():
        raise asyncio.CancelledError


def test_signals_are_explained(run: Run) -> None:
    """The first Ctrl-C is explained once the rows are known; then each signal states what happens to the responses."""
    for number in (signal.SIGINT, signal.SIGINT, signal.SIGINT):
        run.batch.interrupted(number)
    run.batch.context.has_tasks = False
    run.batch._signals.clear()
    run.batch.interrupted(signal.SIGTERM)
    assert run.err.getvalue().splitlines() == [
        "Stopping. Nothing more is sent. Tasks that run keep running.",
        "Stopping now.",
        "Stopping. Nothing more is sent.",
    ]


@pytest.mark.parametrize("signals", [[], [signal.SIGTERM], [signal.SIGINT, signal.SIGINT]])
@pytest.mark.parametrize(
    ("error", "state", "status"),
    [
        (None, EntryState.SUCCEEDED, 0),
        (lost("a"), EntryState.UNKNOWN, 6),
        (TaskFailedError("no", provider="kie", task_id="t"), EntryState.FAILED, 4),
        (NoAnswerError("no"), EntryState.REJECTED, 3),
    ],
)
async def test_exit_status_counts_every_row(
    error: SoraCharsError | None, state: EntryState, status: int, signals: list[int]
) -> None:
    """A signal that left no row behind does not hide how the rows ended."""
    run = make(total=1)
    run.add("a", error, state)
    run.batch._signals.extend(signals)
    assert run.batch.status == status


@pytest.mark.parametrize(
    ("state", "status"),
    [(EntryState.SUCCEEDED, 0), (EntryState.FAILED, 4), (EntryState.REJECTED, 3), (EntryState.UNKNOWN, 6)],
)
def test_rows_after_a_signal_count(state: EntryState, status: int) -> None:
    """Rows that only the ledger describes, because the batch no longer waits for them, count as well."""
    run = make(total=1)
    run.batch._signals.append(signal.SIGTERM)
    result = '{"task_id":"t","provider":"kie","state":"success","character":{"id":"ch","provider":"kie"}}'
    facts: dict[str, Any] = {"kind": "character", "request_json": "{}", "created_at": 0.0, "updated_at": 0.0}
    run.batch._release("a", Entry(key="a", provider="kie", state=state, result_json=result, **facts))
    assert run.batch.status == status


def test_status_of_rows_that_are_left(run: Run) -> None:
    """Rows that were not sent end with the status of the signal, or with 5."""
    assert run.batch.status == 5
    run.batch._signals.append(signal.SIGHUP)
    assert run.batch.status == 129


async def test_callback_settles_a_row_before_its_time_out(run: Run) -> None:
    """Rows whose entries move are awaited again; a row that was declared unsent, or never moves, is not."""
    async with open_ledger("memory:") as ledger:
        entries = {key: await unknown(ledger, key) for key in ("callback", "resolved", "never")}
        for key in entries:
            run.batch._tally.in_flight[key] = {"key": key}
            run.add(key, lost(key), EntryState.UNKNOWN)
            run.batch._deadlines[key] = asyncio.get_running_loop().time()
        await ledger.transition(entries["callback"], EntryState.RUNNING, task_id="t")
        await ledger.transition(entries["resolved"], EntryState.PENDING)

        settled = [columns async for columns in run.batch._settled(ledger)]
        counts = run.batch._tally.counts
        run.batch._release("callback", await ledger.get("callback"))
        await run.batch._update_unknown(ledger)

    assert settled == [{"key": "callback"}]
    assert counts["unknown"] == 2
    assert run.statuses() == [(key, "unknown") for key in entries] + [("callback", "running")]
    assert run.batch._tally.unknown_keys == ["never"]


async def test_settled_rows_are_written_at_the_end(run: Run) -> None:
    """A row that is settled while the batch stops is written with its new status."""
    async with open_ledger("memory:") as ledger:
        entry = await unknown(ledger, "a")
        run.add("a", lost("a"), EntryState.UNKNOWN)
        await ledger.transition(entry, EntryState.RUNNING, task_id="t")
        await run.batch._update_unknown(ledger)
    assert run.statuses() == [("a", "unknown"), ("a", "running")]


@pytest.mark.parametrize(
    ("stopped", "error", "advice"),
    [
        (None, None, [SAME]),
        (
            "budget",
            None,
            [
                "The budget of 5 credits allows no more rows.",
                SAME.replace("the same command again", "the command again with a larger --budget"),
            ],
        ),
        (
            "price",
            None,
            [
                "The budget cannot be kept, because the cost of a row is unknown.",
                SAME.replace("the same command again", "the command again with --price"),
            ],
        ),
        (
            "account",
            InsufficientCreditsError("no credits"),
            ["No more rows are sent. no credits", SAME.replace("run", "correct that and run")],
        ),
    ],
)
def test_advice_helps(run: Run, stopped: str | None, error: InsufficientCreditsError | None, advice: list[str]) -> None:
    """What is advised is what sends the rows that are left."""
    run.batch._stopped = stopped
    run.batch._account_error = error
    assert run.advice() == advice


async def test_no_advice_without_need() -> None:
    """Where every row has ended, or a ledger in memory has forgotten them, the same command is not suggested."""
    run = make(total=1)
    run.add("a", TaskFailedError("no", provider="kie", task_id="t"), EntryState.FAILED)
    assert run.advice() == []
    assert make(memory=True).advice() == [
        "The ledger was in memory: the same command would send and pay every row again."
    ]
