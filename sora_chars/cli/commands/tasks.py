"""The commands for one task or one free request: create, run, wait, status, credit, models."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import click

from sora_chars.cli.accepted import clip_takers, image_counts, local_takers, requiring
from sora_chars.cli.options import Settings, create_options, json_input, query_options, task_options, voice_options
from sora_chars.cli.render import (
    MODEL_COLUMNS,
    character_json,
    character_rows,
    model_rows,
    models_json,
    task_json,
    task_rows,
    voice_json,
    voice_rows,
)
from sora_chars.cli.runner import run as run_command
from sora_chars.cli.single_task import submit_and_wait, wait_for
from sora_chars.cli.video_options import video_options
from sora_chars.errors import InvalidRequestError, NoAnswerError
from sora_chars.ids import new_key
from sora_chars.ledger import EntryState
from sora_chars.ledger.outcomes import character_deleted
from sora_chars.models import Character, CharacterRequest, TaskRequest, Voice, VoiceRequest
from sora_chars.providers.kkiai import GATEWAYS
from sora_chars.session.session import CharacterSession

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from sora_chars.cli.context import CommandContext
    from sora_chars.models import Request, TaskSnapshot
    from sora_chars.polling.handle import TaskHandle
    from sora_chars.protocols import Provider

key_option = click.option(
    "--key",
    metavar="KEY",
    help="Idempotency key: the same request with the same key is never paid twice.  [default: a new UUID]",
)


retry_option = click.option(
    "--retry", "is_retry", is_flag=True, help="Send a --key again that failed or was rejected; this is paid."
)


@click.command()
@click.option("--from-task", metavar="ID", help="Finished task whose video shows the character.")
@click.option(
    "--video",
    metavar="URL_OR_PATH",
    help=f"Video that shows the character. {local_takers()} take a local file; the others take URLs.",
)
@click.option(
    "--image",
    "images",
    multiple=True,
    metavar="URL_OR_PATH",
    help=f"Image that shows the character; may be repeated, the frontal one first: {image_counts()}.",
)
@click.option(
    "--clip",
    metavar="START,END",
    help=f"Part of the video in seconds, such as 3.55,5.55: needed with --from-task by {clip_takers('from_task')}, "
    f"and with --video by {clip_takers('video')}.",
)
@click.option("--name", metavar="TEXT", help=f"Name of the character; required by {requiring('name')}.")
@click.option(
    "--prompt",
    metavar="TEXT",
    help=f"Description of the character; required by {requiring('prompt')}, by kie not with --video.",
)
@click.option("--safety", metavar="TEXT", help="What the character must not be used for.")
@click.option("--voice", metavar="ID", help="The provider's id of a voice.")
@key_option
@retry_option
@video_options
@create_options
@click.pass_obj
def create(
    context: CommandContext,
    /,
    *,
    from_task: str | None,
    video: str | None,
    images: tuple[str, ...],
    clip: str | None,
    name: str | None,
    prompt: str | None,
    safety: str | None,
    voice: str | None,
    key: str | None,
    is_retry: bool,
    **common: Any,
) -> None:
    """Create a character from a finished task, a video or images.

    The command waits for the character and prints it. After an interrupt or a
    timeout the task keeps running: continue with `sora-chars wait`.
    """
    request = CharacterRequest(
        from_task=from_task,
        video=video,
        images=images or None,
        clip=clip,
        name=name,
        prompt=prompt,
        safety=safety,
        voice=voice,
        key=new_key() if key is None else key,
    )
    _submit_and_show(context, Settings(**common), request, is_retry=is_retry)


@click.command()
@click.option("--model", metavar="MODEL", required=True, help="Model, as listed by `sora-chars models`.")
@click.option(
    "--input", "inputs", type=json_input, default="{}", metavar="JSON|@FILE", help="Input of the model.  [default: {}]"
)
@key_option
@retry_option
@create_options
@click.pass_obj
def run(context: CommandContext, /, *, model: str, inputs: Any, key: str | None, is_retry: bool, **common: Any) -> None:
    """Run a task of any model of kie.ai's job API.

    The command waits for the task and prints its result.
    """
    request = TaskRequest(model=model, input=inputs, key=new_key() if key is None else key)
    _submit_and_show(context, Settings(**common), request, is_retry=is_retry)


@click.command()
@click.argument("source", metavar="URL_OR_PATH")
@click.option("--name", metavar="TEXT", required=True, help="Name of the voice, up to 20 characters.")
@key_option
@retry_option
@voice_options
@click.pass_obj
def voice(
    context: CommandContext, /, *, source: str, name: str, key: str | None, is_retry: bool, **common: Any
) -> None:
    """Create a voice from a recording, for `create --voice`.

    kling takes mp3, wav, mp4 or mov of 5 to 30 s with one clean voice, as a URL or with
    --hosting NAME. The command waits for the voice and prints its id.
    """
    request = VoiceRequest(source=source, name=name, key=new_key() if key is None else key)
    _submit_and_show(context, Settings(**common), request, is_retry=is_retry)


@click.command()
@click.argument("task", metavar="TASK_ID|KEY")
@task_options
@click.pass_obj
def wait(context: CommandContext, /, *, task: str, **common: Any) -> None:
    """Wait for a task that was created earlier.

    The task is given by its id or by its idempotency key.
    """
    settings = Settings(**common)
    context.use(settings)
    outcome, time_taken = run_command(context, _find_and_wait(context, settings, task))
    _show(context, outcome, key=context.key, time_taken=time_taken)


@click.command()
@click.argument("task_id")
@query_options
@click.pass_obj
def status(context: CommandContext, /, *, task_id: str, **common: Any) -> None:
    """Fetch the current state of a task.

    Sends one request. The exit status is 0 while the task is running.
    """
    _show(context, run_command(context, _fetch_task(Settings(**common), task_id)))


@click.command()
@query_options
@click.pass_obj
def credit(context: CommandContext, /, **common: Any) -> None:
    """Show the credits left in the account."""
    settings = Settings(**common)
    amount = run_command(context, _fetch_credit(settings))
    rows = [("provider", settings.provider), ("credits", f"{amount:.10g}")]
    context.output.show({"provider": settings.provider, "credit": amount}, rows, title="Credits")


@click.command()
@click.argument("query", default="")
@query_options
@click.pass_obj
def models(context: CommandContext, /, *, query: str, **common: Any) -> None:
    """List the models that the provider offers now.

    With QUERY, lists only the models whose name, title, provider or type
    contains it, in upper or lower case.
    """
    settings = Settings(**common)
    offered = run_command(context, _fetch_models(settings))
    found = [m for m in offered if query.lower() in f"{m.model} {m.title} {m.provider} {m.task_type}".lower()]
    context.output.show_table(models_json(settings.provider, found), model_rows(found), columns=MODEL_COLUMNS)
    context.output.note(f"{len(found)} of {len(offered)} models")


def _submit_and_show(context: CommandContext, settings: Settings, request: Request, *, is_retry: bool) -> None:
    context.use(settings)
    outcome, time_taken = run_command(context, submit_and_wait(context, settings, request, is_retry=is_retry))
    _show(context, outcome, key=request.key, time_taken=time_taken)


def _show(
    context: CommandContext,
    outcome: Character | Voice | TaskSnapshot,
    *,
    key: str | None = None,
    time_taken: str | None = None,
) -> None:
    if isinstance(outcome, Character):
        rows = character_rows(outcome, key=key, time_taken=time_taken)
        context.output.show(character_json(outcome, key=key), rows, title="Character")
    elif isinstance(outcome, Voice):
        rows = voice_rows(outcome, key=key, time_taken=time_taken)
        context.output.show(voice_json(outcome, key=key), rows, title="Voice")
    else:
        context.output.show(task_json(outcome), task_rows(outcome, time_taken=time_taken), title="Task")


async def _find_and_wait(context: CommandContext, settings: Settings, task: str) -> tuple[Any, str]:
    """Return the outcome of an existing task, and the time that the command waited as text.

    Raises:
        InvalidRequestError: The key has no task.
    """
    provider = settings.make_provider()
    with context.output.status_line() as line:
        async with CharacterSession(provider, ledger=settings.location.open(), polling=settings.polling) as session:
            handle = await _find(context, session, task)
            context.task_id = handle.task_id
            line.update(f"{provider.name} task {handle.task_id}: not polled yet")
            return await wait_for(context, line, handle, settings.wait_timeout)


async def _find(context: CommandContext, session: CharacterSession, task: str) -> TaskHandle[Any]:
    """Return the handle of a task, given its id or its idempotency key."""
    (provider,) = session.providers
    entry = await session.entry(task) or await session.ledger.by_task(provider.name, task)
    if entry is None:
        return session.resume(task)
    context.key = entry.key
    if entry.state is EntryState.DELETED:
        raise character_deleted(entry)
    if entry.task_id is None:
        tasks = entry.provider not in GATEWAYS
        hint = context.resolve_hint(entry.key, tasks=tasks) if entry.state is EntryState.UNKNOWN else ""
        raise InvalidRequestError(f"Key {entry.key} has no task to wait for: its state is {entry.state}.", hint=hint)
    return session.resume(entry.task_id, provider=entry.provider, key=entry.key)


async def _fetch_task(settings: Settings, task_id: str) -> Character | Voice | TaskSnapshot:
    """Return the result of a task, or its snapshot while it is running.

    Raises:
        TaskFailedError: The task has failed.
    """
    async with _provider(settings) as provider:
        snapshot = await provider.fetch(task_id)
    return snapshot.outcome()


async def _fetch_credit(settings: Settings) -> float:
    async with _provider(settings) as provider:
        return await provider.credit()


async def _fetch_models(settings: Settings) -> list[Any]:
    async with _provider(settings) as provider:
        return await provider.models()


@asynccontextmanager
async def _provider(settings: Settings) -> AsyncGenerator[Provider]:
    """Open the provider for a free request, which `--timeout` limits."""
    timeout = settings.response_timeout
    async with settings.make_provider() as provider:
        try:
            async with asyncio.timeout(timeout):
                yield provider
        except TimeoutError:
            message = f"{provider.name} did not respond within {timeout:g} seconds."
            raise NoAnswerError(message, provider=provider.name) from None
