"""The root command, and the place where every exception becomes an exit status."""

from __future__ import annotations

import io
import os
import sys
import traceback
from importlib import import_module
from typing import TYPE_CHECKING

import click

from sora_chars.errors import (
    ConfigurationError,
    LedgerError,
    MissingCharacterError,
    ProviderError,
    SoraCharsError,
    SubmissionUnknownError,
    TaskNotFoundError,
    WatcherStoppedError,
    printable,
)
from sora_chars.redaction import mask

from .context import ASKED, CommandContext
from .output import Output
from .render import error_json
from .runner import BUG, OUTPUT, USAGE, CommandInterruptedError, exit_status
from .streams import StdoutError, discard_stdout

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS = {
    "batch": ("batch", "Create a character for each row of a JSONL or CSV file."),
    "characters": ("characters", "List the saved characters, newest first, or delete some."),
    "create": ("tasks", "Create a character from a finished task, a video or images."),
    "credit": ("tasks", "Show the credits left in the account."),
    "cut": ("cut", "Cut a video to what a provider takes."),
    "demo": ("demo", "Create three characters locally; no account is needed."),
    "durations": ("durations", "Show how long the tasks of each model take."),
    "emulate": ("emulate", "Serve an emulator of the providers on this machine."),
    "ledger": ("ledger", "List, export, import, resolve and prune the recorded requests."),
    "models": ("tasks", "List the models that the provider offers now."),
    "providers": ("providers", "List the providers, or show what one of them takes."),
    "resume": ("resume", "Wait for every task that is recorded as running."),
    "run": ("tasks", "Run a task of any model of kie.ai's job API."),
    "status": ("tasks", "Fetch the current state of a task."),
    "voice": ("tasks", "Create a voice from a recording, for `create --voice`."),
    "wait": ("tasks", "Wait for a task that was created earlier."),
    "worker": ("worker", "Run the jobs of an application until SIGINT or SIGTERM."),
}
"""Each command's module in `commands` and the first sentence of its help text."""
_OWN_EMULATOR = {"demo", "emulate"}  # these ignore SORA_CHARS_EMULATOR


class BugError(SoraCharsError):
    """An exception that the command line did not expect."""


class LazyGroup(click.Group):
    """A group that imports the module of a command when that command runs.

    `sora-chars --help` imports none of them: the session and aiohttp would take
    longer to import than everything else.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"{__package__}.commands.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(None, "-V", "--version", package_name="sora-chars")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Turn a video or images into a reusable character.

    The API key of a provider NAME is read from NAME_API_KEY, such as KLING_API_KEY;
    see `sora-chars providers`. Start with `sora-chars demo`, which needs no key. With
    SORA_CHARS_EMULATOR=URL, every command speaks to the emulator at URL.
    """
    if os.environ.get("SORA_CHARS_EMULATOR") and ctx.invoked_subcommand not in _OWN_EMULATOR:
        from sora_chars.providers.base import emulator_url  # noqa: PLC0415 # few commands need the providers

        notice = f"Emulator at {emulator_url()} (SORA_CHARS_EMULATOR): no real key is sent."
        click.echo(notice, err=True)


def main(arguments: Sequence[str]) -> int:
    """Run one command and return its exit status.

    0: success. 1: the demo found a fault, imported entries differ from recorded
    ones, or stdout could not be written. 2: bad usage, or a request that was
    rejected before it was sent. 3: the provider rejected the request, failed or
    could not be reached. 4: the task failed. 5: not ended when the timeout expired,
    or rows of a batch were not sent. 6: the outcome is unknown, or is not in the
    ledger. 129, 130 and 143: ended by SIGHUP, Ctrl-C or SIGTERM. 70: a bug.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for names that the locale's encoding lacks
    context = CommandContext(Output(as_json="--json" in arguments))  # usage errors precede the parsing of --json
    status = 0
    try:
        status = _status(context, arguments)
        sys.stdout.flush()
    except (BrokenPipeError, StdoutError) as error:
        discard_stdout()
        return status or _fail_output(context, error)
    return status


def _status(context: CommandContext, arguments: Sequence[str]) -> int:
    try:
        status: int | None = cli.main(list(arguments), prog_name="sora-chars", standalone_mode=False, obj=context)
    except click.ClickException as error:
        return _fail_usage(context, error)
    except (KeyboardInterrupt, click.Abort):
        return _fail(context, CommandInterruptedError("Interrupted."))
    except SoraCharsError as error:
        return _fail(context, error)
    except (BrokenPipeError, StdoutError):
        raise
    except Exception as error:  # noqa: BLE001 # the border: a traceback is shown with -v only
        return _fail_bug(context, error)
    return status or 0


def _fail_output(context: CommandContext, error: OSError) -> int:
    """Report on stderr that stdout cannot be written, unless its reader went away, and return the status."""
    if not isinstance(error, BrokenPipeError):
        context.output.as_json = False
        message = f"stdout cannot be written: {os.strerror(error.errno or 0)}."
        hint = "What was paid is in the ledger." if context.key and not context.ledger_in_memory else ""
        payload = error_json(SoraCharsError(message, hint=hint), task_id=context.task_id, key=context.key)
        context.output.show_error(payload)
    return OUTPUT


def _fail_usage(context: CommandContext, error: click.ClickException) -> int:
    if context.output.as_json:
        context.output.show_json({"error": {"type": "UsageError", "message": mask(error.format_message())}})
    else:
        text = io.StringIO()  # click repeats what it does not understand, and that may be a signed link
        error.show(text)
        click.echo(mask(text.getvalue()), nl=False, err=True)
    return USAGE


def _fail(context: CommandContext, error: SoraCharsError) -> int:
    error.hint = _hint(context, error)
    may_be_charged = context.task_id or isinstance(error, CommandInterruptedError | MissingCharacterError)
    key = context.key if may_be_charged else None
    context.output.show_error(error_json(error, task_id=context.task_id, key=key))
    return 128 + error.number if isinstance(error, CommandInterruptedError) else exit_status(error)


def _hint(context: CommandContext, error: SoraCharsError) -> str:
    """Return what to do about an error, in terms of commands where there are any."""
    match error:
        case SubmissionUnknownError(key=str(key)):
            return context.resolve_hint(key, tasks=context.has_tasks, asks=error.provider in ASKED)
        case LedgerError(key=str(key), task_id=str(task_id)):
            return context.unrecorded_hint(key, task_id)
        case LedgerError() if context.ledger_name:
            other = "--ledger selects another one, which knows no key of this one."
            return f"{error.hint} The ledger is {context.ledger_name}; {other}".strip()
        case ProviderError() | WatcherStoppedError() if _may_run(context, error):
            wait = context.command("wait", context.task_id or "")
            return f"{error.hint} The task may still be running: {wait}".strip()
        case ConfigurationError():
            return error.hint.replace(", or pass api_key=", "")
        case _:
            return error.hint


def _may_run(context: CommandContext, error: SoraCharsError) -> bool:
    """Return whether there is a task: it was created, or at least the provider does not deny it."""
    return bool(context.task_id) and not (isinstance(error, TaskNotFoundError) and context.key is None)


def _fail_bug(context: CommandContext, error: Exception) -> int:
    if context.verbose:
        for line in mask("".join(traceback.format_exception(error))).split("\n"):  # a line may quote a provider
            click.echo("".join(c if c.isprintable() else " " for c in line), err=True)
    bug = BugError(
        f"{type(error).__name__}: {printable(error)}",
        hint="This is a bug in sora-chars. Run the command again with -v and report its output.",
    )
    context.output.show_error(error_json(bug, task_id=context.task_id, key=context.key))
    return BUG
