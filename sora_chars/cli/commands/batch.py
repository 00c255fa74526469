"""`sora-chars batch`: a file of characters to make, and a row for each as it ends."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import attrs
import click

from sora_chars.cli.batch.reader import FORMS, guess_form, read_rows
from sora_chars.cli.batch.runner import BatchRun
from sora_chars.cli.batch.spool import fill, open_spool
from sora_chars.cli.batch.writer import open_output
from sora_chars.cli.context import Job, speaking
from sora_chars.cli.keeping import keeping
from sora_chars.cli.options import PROVIDERS, Settings, polling, submitting, talking
from sora_chars.cli.runner import run
from sora_chars.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Generator

    from sora_chars.cli.batch.spool import Spool
    from sora_chars.protocols import Provider

_SUFFIXES = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}


@click.command()
@click.argument("file")
@talking
@click.option(
    "--output", required=True, metavar="OUT", help="Where a row for each is appended as it ends; - is stdout."
)
@click.option(
    "--format", "form", type=click.Choice(FORMS), help="Of FILE. [default: by its name, else by what it begins with]"
)
@click.option(
    "--concurrency", type=click.IntRange(1), default=100, show_default=True, metavar="N", help="Tasks at a time."
)
@click.option(
    "--budget",
    type=float,
    metavar="CREDITS",
    help="What all rows may cost together, also those that an earlier run has paid.",
)
@click.option("--price", type=float, metavar="CREDITS", help="What a row costs. [default: as the highest_cost so far]")
@click.option(
    "--on-interrupt",
    type=click.Choice(["wait", "leave"]),
    default="wait",
    show_default=True,
    help="The first Ctrl-C sends nothing more, and waits for what runs or leaves it running; the second leaves it.",
)
@submitting
@polling
@keeping
@speaking
@click.pass_obj
def batch(
    job: Job,
    /,
    *,
    file: str,
    output: str,
    form: str | None,
    concurrency: int,
    budget: float | None,
    price: float | None,
    on_interrupt: str,
    **common: Any,
) -> int:
    """Make a character for each row of FILE, which is JSONL, or CSV with a line of names; - is stdin.

    A row: from_task or video, clip, and if need be key, provider, name, prompt, safety. All rows are checked before
    anything is sent. Given again, a row pays nothing again: its key, or else its content, is in the ledger.

    A row of OUT: key, status (succeeded, failed, refused, unknown, running), provider, task_id, and character, error
    and credits where there are any. The last row of a key counts.
    """
    settings = Settings(**common)
    job.take(settings)
    with open_spool() as spool:
        providers = _check(job, settings, spool, file=file, form=form)
        with _apart(file, output), open_output(output) as write:
            batch_run = BatchRun(
                job=job,
                settings=settings,
                spool=spool,
                output=output,
                write=write,
                concurrency=concurrency,
                budget=budget,
                price=price,
                patient=on_interrupt == "wait",
            )
            run(job, batch_run.run(list(providers.values())), on_signal=batch_run.interrupted)
        batch_run.sum_up()
        return batch_run.status


def _check(job: Job, settings: Settings, spool: Spool, *, file: str, form: str | None) -> dict[str, Provider]:
    """Read all rows into the spool; the providers that they need.

    Raises:
        InvalidRequestError: some are wrong, and each of them is told.
        ConfigurationError: there is no key for a provider.
    """
    providers: dict[str, Provider] = {}

    def provider(name: str) -> Provider:
        if name not in providers:
            own = settings if name == settings.provider else attrs.evolve(settings, provider=name, **_NO_CALLBACKS)
            providers[name] = own.make_provider()
        return providers[name]

    with _opened(file) as stream:
        found = read_rows(stream, form or _form(file, stream), provider=settings.provider, providers=PROVIDERS)
        problems = fill(spool, found, provider)
    if problems.count:
        for line in problems.lines:
            job.screen.note(line)
        count = f"{problems.count} rows are" if problems.count > 1 else "1 row is"
        raise InvalidRequestError(f"{count} wrong. Nothing was sent.", problems=tuple(problems.lines))
    return providers


_NO_CALLBACKS: dict[str, Any] = {"callback_url": None, "listen": None}  # which kie alone sends


@contextmanager
def _opened(file: str) -> Generator[BinaryIO]:
    if file == "-":
        yield sys.stdin.buffer
        return
    try:
        with Path(file).open("rb") as stream:
            yield stream
    except OSError as error:
        raise click.BadParameter(
            f"{file} cannot be read: {os.strerror(error.errno or 0)}.", param_hint="FILE"
        ) from error


def _form(file: str, stream: BinaryIO) -> str:
    """What a file's name says it is, else its first bytes."""
    peek = getattr(stream, "peek", bytes)
    return _SUFFIXES.get(Path(file).suffix.lower()) or guess_form(peek())


@contextmanager
def _apart(file: str, output: str) -> Generator[None]:
    """Keep the rows of one end from the other."""
    if Path(file).exists() and Path(output).exists() and Path(file).samefile(output):
        raise click.UsageError(f"--output {output}: this is FILE itself.")
    yield
