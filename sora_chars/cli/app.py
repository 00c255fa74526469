"""The commands, and the one place that turns whatever ends them into an exit status."""

from __future__ import annotations

import io
import os
import sys
import traceback
from typing import TYPE_CHECKING, Any

import click

from sora_chars.errors import (
    LedgerError,
    MissingCharacterError,
    ProviderError,
    SoraCharsError,
    SubmissionUnknownError,
    WatcherStoppedError,
    printable,
)
from sora_chars.ids import new_key
from sora_chars.models import Character, CharacterRequest, TaskRequest

from . import waiting
from .commands.batch import batch
from .commands.demo import demo
from .commands.emulate import emulate
from .commands.ledger import characters, ledger
from .commands.pace import pace
from .commands.resume import resume
from .context import Job, speaking
from .keeping import keeping
from .options import Settings, json_input, polling, submitting, talking
from .output import Screen
from .render import character_json, character_rows, error_json, model_rows, models_json, task_json, task_rows
from .runner import BUG, USAGE, CommandInterruptedError, exit_status, run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sora_chars.models import TaskSnapshot


class BugError(SoraCharsError):
    """Stands for an exception that nobody foresaw."""


def main(arguments: Sequence[str]) -> int:
    """Run one command.

    The status: 0 done; 2 bad usage, or a request refused before sending; 3 refused by the provider; 4 the task failed;
    5 still running when the time ran out; 6 outcome unknown, or not on record; 130 and 143 interrupted; 1 the demo went
    wrong; 70 a bug.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that this locale cannot write is no crash
    job = Job(Screen(as_json="--json" in arguments))  # usage errors come before the option is read
    try:
        return _status(job, arguments)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains at its end
        return 1


def _status(job: Job, arguments: Sequence[str]) -> int:
    try:
        status: int | None = cli.main(list(arguments), prog_name="sora-chars", standalone_mode=False, obj=job)
    except click.ClickException as error:
        return _fail_usage(job, error)
    except (KeyboardInterrupt, click.Abort):
        return _fail(job, CommandInterruptedError("Interrupted."))
    except SoraCharsError as error:
        return _fail(job, error)
    except Exception as error:  # noqa: BLE001 # the border: no traceback reaches a user who did not ask for it
        return _fail_bug(job, error)
    return status or 0


def _fail_usage(job: Job, error: click.ClickException) -> int:
    if job.screen.as_json:
        job.screen.show_json({"error": {"type": "UsageError", "message": error.format_message()}})
    else:
        error.show()
    return USAGE


def _fail(job: Job, error: SoraCharsError) -> int:
    error.hint = _hint(job, error)
    paid = job.task_id or isinstance(error, (CommandInterruptedError, MissingCharacterError))
    job.screen.fail(error_json(error, task_id=job.task_id, key=job.key if paid else None))
    return 128 + error.number if isinstance(error, CommandInterruptedError) else exit_status(error)


def _hint(job: Job, error: SoraCharsError) -> str:
    """What to do about an error, in commands where there are any."""
    match error:
        case SubmissionUnknownError():
            return job.settling(error.key, tasks=job.has_tasks)
        case LedgerError(key=str(key), task_id=str(task_id)):
            return job.kept_outside(key, task_id)
        case LedgerError():
            return f"{error.hint} The ledger is {job.place}; --ledger names another.".strip()
        case ProviderError() | WatcherStoppedError() if job.task_id:
            return f"{error.hint} The task may go on: {job.command('wait', job.task_id)}".strip()
        case _:
            return error.hint


def _fail_bug(job: Job, error: Exception) -> int:
    if job.verbose:
        for line in "".join(traceback.format_exception(error)).split("\n"):  # which may quote a provider
            click.echo("".join(c if c.isprintable() else " " for c in line), err=True)
    bug = BugError(
        f"{type(error).__name__}: {printable(error)}",
        hint="This is a fault of sora-chars: please report it with what the same command prints with -v.",
    )
    job.screen.fail(error_json(bug, task_id=job.task_id, key=job.key))
    return BUG


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(None, "-V", "--version", package_name="sora-chars")
def cli() -> None:
    """HeapEntry a piece of video into a reusable character.

    Keys come from KIE_API_KEY, KKIAI_API_KEY and, for a gateway NAME, NAME_API_KEY. `sora-chars demo` needs none.
    """


for command in (batch, demo, emulate, characters, ledger, pace, resume):
    cli.add_command(command)


@cli.command()
@talking
@click.option("--from-task", metavar="ID", help="The finished task whose video holds the character.")
@click.option("--video", metavar="URL_OR_PATH", help="The video that holds the character; kie uploads a local file.")
@click.option("--clip", metavar="START,END", help="The part of the video, in seconds, as in 3.55,5.55.")
@click.option("--name", help="A name for the character.")
@click.option("--prompt", help="What the character is like.")
@click.option("--safety", help="What the character must not be used for.")
@click.option("--key", help="Your name for this wish; asked again, it pays nothing. [default: a new UUID]")
@submitting
@polling
@keeping
@speaking
@click.pass_obj
def create(
    job: Job,
    /,
    *,
    from_task: str | None,
    video: str | None,
    clip: str | None,
    name: str | None,
    prompt: str | None,
    safety: str | None,
    key: str | None,
    **common: Any,
) -> None:
    """Make a character from a finished task or a video, and wait for it."""
    request = CharacterRequest(
        from_task=from_task,
        video=video,
        clip=clip,
        name=name,
        prompt=prompt,
        safety=safety,
        key=new_key() if key is None else key,
    )
    _make(job, Settings(**common), request)


@cli.command("run")
@talking
@click.option("--model", required=True, help="The model, as `sora-chars models` lists it.")
@click.option("--input", "inputs", type=json_input, default="{}", metavar="JSON|@FILE", help="What the model is given.")
@click.option("--key", help="Your name for this wish; asked again, it pays nothing. [default: a new UUID]")
@submitting
@polling
@keeping
@speaking
@click.pass_obj
def run_model(job: Job, /, *, model: str, inputs: Any, key: str | None, **common: Any) -> None:
    """Run any other job model of kie, and wait for its result."""
    request = TaskRequest(model=model, input=inputs, key=new_key() if key is None else key)
    _make(job, Settings(**common), request)


@cli.command()
@click.argument("task", metavar="TASK_ID|KEY")
@talking
@polling
@keeping
@speaking
@click.pass_obj
def wait(job: Job, /, *, task: str, **common: Any) -> None:
    """Go on waiting for a task."""
    settings = Settings(**common)
    job.take(settings)
    outcome, how = run(job, waiting.wait(job, settings, task))
    _show(job, outcome, key=job.key, how=how)


@cli.command()
@click.argument("task_id")
@talking
@speaking
@click.pass_obj
def status(job: Job, /, *, task_id: str, **common: Any) -> None:
    """Look at a task once."""
    _show(job, run(job, waiting.look(Settings(**common), task_id)))


@cli.command()
@talking
@speaking
@click.pass_obj
def credit(job: Job, /, **common: Any) -> None:
    """Show how many credits are left."""
    settings = Settings(**common)
    left = run(job, waiting.ask_credit(settings))
    rows = [("provider", settings.provider), ("credits", f"{left:.10g}")]
    job.screen.show({"provider": settings.provider, "credit": left}, rows, title="Credits")


@cli.command()
@click.argument("word", default="")
@talking
@speaking
@click.pass_obj
def models(job: Job, /, *, word: str, **common: Any) -> None:
    """List the models that can be asked for now: all, or those that WORD occurs in."""
    settings = Settings(**common)
    offered = run(job, waiting.ask_models(settings))
    found = [m for m in offered if word.lower() in f"{m.model} {m.title} {m.provider} {m.task_type}".lower()]
    head = ("model", "makes", "title")
    job.screen.show_table(models_json(settings.provider, found), model_rows(found), head=head)
    job.screen.note(f"{len(found)} of {len(offered)} models")


def _make(job: Job, settings: Settings, request: CharacterRequest | TaskRequest) -> None:
    job.take(settings)
    outcome, how = run(job, waiting.make(job, settings, request))
    _show(job, outcome, key=request.key, how=how)


def _show(job: Job, outcome: Character | TaskSnapshot, *, key: str | None = None, how: str | None = None) -> None:
    if isinstance(outcome, Character):
        rows = character_rows(outcome, key=key, how=how)
        job.screen.show(character_json(outcome, key=key), rows, title="Character")
    else:
        job.screen.show(task_json(outcome), task_rows(outcome, how=how), title="Task")
