"""`sora-chars batch`: reads a file of requests, and writes a row for each as it ends."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import attrs
import click

from sora_chars.cli.batch.reader import FORMATS, guess_format, read_rows
from sora_chars.cli.batch.runner import BatchRun
from sora_chars.cli.batch.spool import fill, open_spool
from sora_chars.cli.batch.writer import open_output
from sora_chars.cli.options import (
    PROVIDERS,
    Settings,
    ledger_options,
    output_options,
    provider_options,
    submit_options,
    wait_options,
)
from sora_chars.cli.runner import run
from sora_chars.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Generator

    from sora_chars.cli.batch.spool import Spool
    from sora_chars.cli.context import CommandContext
    from sora_chars.protocols import Provider

_SUFFIXES = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
_NO_CALLBACKS: dict[str, Any] = {"callback_url": None, "listen": None}  # of the rows' own providers


@click.command()
@click.argument("file")
@click.option("--output", required=True, metavar="OUT", help="Append a row for each request as it ends; - is stdout.")
@click.option(
    "--format",
    "file_format",
    type=click.Choice(FORMATS),
    help="Format of FILE.  [default: by its suffix or its first bytes]",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1),
    default=100,
    show_default=True,
    metavar="N",
    help="How many tasks may be in flight.",
)
@click.option(
    "--budget",
    type=float,
    metavar="CREDITS",
    help="Stop before all rows together cost more; what earlier runs paid counts too.",
)
@click.option(
    "--price", type=float, metavar="CREDITS", help="Expected cost of a row.  [default: the highest cost so far]"
)
@click.option(
    "--on-interrupt",
    type=click.Choice(["wait", "leave"]),
    default="wait",
    show_default=True,
    help="After the first Ctrl-C nothing more is sent; wait for the running tasks, or leave them running. "
    "A second Ctrl-C leaves them running.",
)
@provider_options
@submit_options
@wait_options
@ledger_options
@output_options
@click.pass_obj
def batch(
    context: CommandContext,
    /,
    *,
    file: str,
    output: str,
    file_format: str | None,
    concurrency: int,
    budget: float | None,
    price: float | None,
    on_interrupt: str,
    **common: Any,
) -> int:
    """Create a character for each row of a JSONL or CSV file.

    FILE is JSONL, or CSV whose first line names the columns; - is stdin. The
    columns are from_task and clip, or video, and optionally key, provider, name,
    prompt and safety. kie needs a prompt with from_task and takes no clip with
    video; kkiai always needs a clip. All rows are checked before anything is sent.

    Each row of OUT has key, status (succeeded, failed, rejected, unknown or
    running), provider, task_id and, if known, character, error and credits. If a
    key occurs more than once, its last row counts.

    To continue after an interruption, run the same command again. Nothing is paid
    twice: a row is recorded in the ledger under its key, or under a hash of its
    content.
    """
    settings = Settings(**common)
    context.use(settings)
    with open_spool() as spool:
        providers = _check(context, settings, spool, file=file, file_format=file_format)
        _check_distinct(file, output)
        with open_output(output) as write:
            batch_run = BatchRun(
                context=context,
                settings=settings,
                spool=spool,
                output=output,
                write=write,
                concurrency=concurrency,
                budget=budget,
                price=price,
                wait_on_interrupt=on_interrupt == "wait",
            )
            run(context, batch_run.run(list(providers.values())), on_signal=batch_run.interrupted)
        batch_run.print_summary()
        return batch_run.status


def _check(
    context: CommandContext, settings: Settings, spool: Spool, *, file: str, file_format: str | None
) -> dict[str, Provider]:
    """Read all rows into the spool, and return the providers that they use.

    Raises:
        InvalidRequestError: Some rows are invalid; each problem has been printed.
        ConfigurationError: The API key of a provider is missing.
    """
    providers: dict[str, Provider] = {}

    def provider(name: str) -> Provider:
        if name not in providers:
            own = settings if name == settings.provider else attrs.evolve(settings, provider=name, **_NO_CALLBACKS)
            providers[name] = own.make_provider()
        return providers[name]

    with _open(file) as stream:
        rows = read_rows(
            stream, file_format or _detect_format(file, stream), provider=settings.provider, providers=PROVIDERS
        )
        problems = fill(spool, rows, provider)
    if problems.count:
        for line in problems.lines:
            context.output.note(line)
        count = f"{problems.count} rows are" if problems.count > 1 else "1 row is"
        raise InvalidRequestError(f"{count} invalid. Nothing was sent.", problems=tuple(problems.lines))
    return providers


@contextmanager
def _open(file: str) -> Generator[BinaryIO]:
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


def _detect_format(file: str, stream: BinaryIO) -> str:
    """Return the format by the file's suffix, or else by its first bytes."""
    peek = getattr(stream, "peek", bytes)
    return _SUFFIXES.get(Path(file).suffix.lower()) or guess_format(peek())


def _check_distinct(file: str, output: str) -> None:
    """Raise `click.UsageError` if the output would be appended to the input."""
    if Path(file).exists() and Path(output).exists() and Path(file).samefile(output):
        raise click.UsageError(f"--output {output}: this is FILE itself.")
