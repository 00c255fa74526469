"""`sora-chars batch`: reads a file of requests, and writes a row for each as it ends."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import attrs
import click

from sora_chars.cli.batch.reader import FORMATS, guess_format, read_rows
from sora_chars.cli.batch.runner import BatchRun
from sora_chars.cli.batch.spool import fill, open_spool
from sora_chars.cli.batch.writer import open_output
from sora_chars.cli.input_file import open_input
from sora_chars.cli.options import PROVIDERS, Settings, create_options
from sora_chars.cli.render import in_options
from sora_chars.cli.runner import run
from sora_chars.cli.video_options import video_options
from sora_chars.errors import InvalidRequestError

if TYPE_CHECKING:
    from sora_chars.cli.batch.spool import Spool
    from sora_chars.cli.context import CommandContext
    from sora_chars.protocols import Provider

_SUFFIXES = {".csv": "csv", ".tsv": "csv", ".json": "jsonl", ".jsonl": "jsonl", ".ndjson": "jsonl"}
_NO_CALLBACKS: dict[str, Any] = {"callback_url": None, "listen": None}  # of the rows' own providers


def delimiter_character(text: str) -> str:
    """Parse a delimiter of CSV: one character, or the word "tab"."""
    character = "\t" if text in {"tab", "\\t"} else text
    if len(character) != 1 or character.isalnum() or character in "\"'\r\n ":
        raise click.BadParameter(f"{text!r} is not one character such as ; or the word tab.")
    return character


def text_encoding(text: str) -> str:
    """Parse the name of an encoding that Python knows."""
    try:
        io.TextIOWrapper(io.BytesIO(), encoding=text)
    except (LookupError, ValueError) as error:
        raise click.BadParameter(f"{text!r} is not the name of an encoding, such as cp1252.") from error
    return text


@attrs.frozen
class FileOptions:
    """How the input file is read.

    Attributes:
        file: Its path; "-" is stdin.
        file_format: Its format, if it was given.
        encoding: Its encoding, if it was given.
        delimiter: The delimiter of its cells, if it was given.
    """

    file: str
    file_format: str | None
    encoding: str | None
    delimiter: str | None

    def format_of(self, stream: BinaryIO) -> str:
        """Return the format that was given, or that of the file's suffix, or that of its first bytes."""
        by_suffix = _SUFFIXES.get(Path(self.file).suffix.lower())
        return self.file_format or by_suffix or guess_format(stream, self.encoding)


@click.command()
@click.argument("file")
@click.option("--output", required=True, metavar="OUT", help="Append a row for each request as it ends; - is stdout.")
@click.option(
    "--format",
    "file_format",
    type=click.Choice(FORMATS),
    help="Format of FILE; jsonl includes a JSON array.  [default: by its suffix or its first bytes]",
)
@click.option(
    "--encoding",
    type=text_encoding,
    metavar="NAME",
    help="Encoding of FILE, such as cp1252.  [default: UTF-8, or UTF-16 with a byte order mark]",
)
@click.option(
    "--delimiter",
    type=delimiter_character,
    metavar="CHAR",
    help="What separates the cells of a CSV file; tab is the tab character.  [default: by the first line]",
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
    "--retry-failed", is_flag=True, help="Send rows again that failed or were rejected earlier; each is paid again."
)
@click.option(
    "--on-interrupt",
    type=click.Choice(["wait", "leave"]),
    default="wait",
    show_default=True,
    help="After the first Ctrl-C nothing more is sent; wait for the running tasks, or leave them running. "
    "A second Ctrl-C leaves them running.",
)
@video_options
@create_options
@click.pass_obj
def batch(
    context: CommandContext,
    /,
    *,
    file: str,
    output: str,
    file_format: str | None,
    encoding: str | None,
    delimiter: str | None,
    concurrency: int,
    budget: float | None,
    price: float | None,
    on_interrupt: str,
    retry_failed: bool,
    **common: Any,
) -> int:
    """Create a character for each row of a JSONL or CSV file.

    FILE is JSONL, a JSON array, or CSV whose first line names the columns, as
    spreadsheets and pandas write it; - is stdin. The columns are from_task and
    clip, video, or images, and optionally key, provider, name, prompt, safety and
    voice. kie needs a prompt with from_task and takes no clip with video; kkiai
    always needs a clip. A row with model and input (a JSON object) is a task of
    kie's job API. All rows are checked before anything is sent.

    Each row of OUT has key, status (succeeded, failed, rejected, unknown, pending
    or running), provider, task_id and, if known, character or result, error and credits. A
    pending row was not sent, or its provider did nothing for now. If a key occurs
    more than once, its last row counts.

    To continue after an interruption, run the same command again. Nothing is paid
    twice: a row is recorded in the ledger under its key, or under a hash of its
    content.
    """
    settings = Settings(**common)
    context.use(settings)
    with open_spool() as spool:
        file_options = FileOptions(file, file_format, encoding, delimiter)
        providers = _check(context, settings, spool, file_options)
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
                retry_failed=retry_failed,
                wait_on_interrupt=on_interrupt == "wait",
                shutdown_timeout=settings.shutdown_seconds(providers or [settings.provider]),
            )
            run(
                context,
                batch_run.run(list(providers.values())),
                on_signal=batch_run.interrupted,
                waits_on_interrupt=batch_run.wait_on_interrupt,
            )
        batch_run.print_summary()
        return batch_run.status


def _check(context: CommandContext, settings: Settings, spool: Spool, options: FileOptions) -> dict[str, Provider]:
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

    with open_input(options.file) as stream:
        rows = read_rows(
            stream,
            options.format_of(stream),
            provider=settings.provider,
            providers=PROVIDERS,
            encoding=options.encoding,
            delimiter=options.delimiter,
        )
        problems = fill(spool, rows, provider)
    if problems.count:
        for line in problems.lines:
            context.output.note(in_options(line))
        count = f"{problems.count} rows are" if problems.count > 1 else "1 row is"
        raise InvalidRequestError(f"{count} invalid. Nothing was sent.", problems=tuple(problems.lines))
    return providers


def _check_distinct(file: str, output: str) -> None:
    """Raise `click.UsageError` if the output would be appended to the input."""
    if Path(file).exists() and Path(output).exists() and Path(file).samefile(output):
        raise click.UsageError(f"--output {output}: this is FILE itself.")
