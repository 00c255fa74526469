"""`sora-chars resume`: waits for every task that the ledger records as running."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import attrs
import click
from rich.text import Text

from sora_chars.cli.options import Settings, task_options
from sora_chars.cli.render import character_json, error_json, one_line, task_json, voice_json
from sora_chars.cli.runner import UNKNOWN, exit_status, run
from sora_chars.cli.waiting import updates_with_pages
from sora_chars.errors import MissingCharacterError, SoraCharsError, TaskFailedError, WaitTimeoutError
from sora_chars.ledger import EntryState
from sora_chars.models import Character, Voice
from sora_chars.providers.kkiai import GATEWAYS
from sora_chars.session.session import CharacterSession

if TYPE_CHECKING:
    from sora_chars.cli.context import CommandContext
    from sora_chars.cli.output import StatusLine
    from sora_chars.models import TaskSnapshot
    from sora_chars.polling.handle import TaskHandle

_MAX_NAMED_KEYS = 5


@attrs.define(eq=False)
class Recovery:
    """The progress of `resume`.

    Attributes:
        context: The context of the command.
        succeeded: How many tasks have succeeded.
        failed: How many tasks have failed.
        running: How many tasks are recorded as running.
        unknown: The keys whose outcome is unknown.
        skipped: How many tasks are running at each other provider.
    """

    context: CommandContext
    succeeded: int = 0
    failed: int = 0
    running: int = 0
    unknown: list[str] = attrs.field(factory=list)
    skipped: Counter[str] = attrs.field(factory=Counter)
    _unknown_tasks: bool = False  # whether the provider of an unknown key has tasks
    _statuses: set[int] = attrs.field(factory=lambda: {0})

    @property
    def status(self) -> int:
        """The exit status: the highest of all tasks."""
        return max(self._statuses | ({UNKNOWN} if self.unknown else set()))

    async def wait_for_all(self, session: CharacterSession, timeout: float, line: StatusLine) -> None:
        """Wait up to `timeout` seconds for all running tasks, and print each as it ends."""
        deadline = asyncio.get_running_loop().time() + timeout
        handles = [handle async for handle in session.recover()]
        self.running = len(handles)
        line.update(_count(self.running))
        await asyncio.gather(*(self._wait_for(handle, deadline, line) for handle in handles))
        names = {provider.name for provider in session.providers}
        async for entry in session.ledger.entries(states={EntryState.UNKNOWN, EntryState.RUNNING}):
            if entry.state is EntryState.UNKNOWN:
                self.unknown.append(entry.key)
                self._unknown_tasks = self._unknown_tasks or entry.provider not in GATEWAYS
            elif entry.provider not in names:
                self.skipped[entry.provider] += 1

    async def _wait_for(self, handle: TaskHandle[Any], deadline: float, line: StatusLine) -> None:
        try:
            remaining = max(0.0, deadline - asyncio.get_running_loop().time())
            async for _ in updates_with_pages(self.context, handle, remaining):
                pass
            outcome = handle.outcome()
        except WaitTimeoutError as error:
            self._statuses.add(exit_status(error))
            return
        except SoraCharsError as error:
            self._statuses.add(exit_status(error))
            payload = error_json(error, task_id=handle.task_id, key=handle.key)
            line.print_result(payload, _result_line("FAIL", "red", handle, error))
            if not isinstance(error, TaskFailedError | MissingCharacterError):
                return  # the wait failed, not the task
            self.failed += 1
        else:
            self.succeeded += 1
            payload = _outcome_json(outcome, handle.key)
            line.print_result(payload, _result_line("ok  ", "green", handle, _outcome_text(outcome)))
        self.running -= 1
        line.update(_count(self.running))

    def print_summary(self) -> None:
        """Print how many tasks ended in which way, and how to continue."""
        output = self.context.output
        if output.as_json:
            names = ("succeeded", "failed", "running", "unknown", "skipped")
            output.show_json({"summary": {name: getattr(self, name) for name in names}})
            return
        counts = {"succeeded": self.succeeded, "failed": self.failed, "still running": self.running}
        output.note(", ".join(f"{count} {state}" for state, count in counts.items() if count) or "No task was running")
        if self.running:
            output.note(f"Continue with: {self.context.resume_command}")
        for provider, count in self.skipped.items():
            output.note(f"Skipped: {count} running at {one_line(provider)}")
        if self.unknown:
            more = ", ..." if len(self.unknown) > _MAX_NAMED_KEYS else ""
            output.note(f"Outcome unknown: {len(self.unknown)} ({', '.join(self.unknown[:_MAX_NAMED_KEYS])}{more})")
            output.note(self.context.resolve_hint("KEY", tasks=self._unknown_tasks))


@click.command()
@task_options
@click.pass_obj
def resume(context: CommandContext, /, **common: Any) -> int:
    """Wait for every task that is recorded as running.

    A request whose process was killed before the response arrived becomes
    `unknown`. It is not sent again automatically: see `sora-chars ledger
    resolve`.

    With --json, each task is one line as it ends, and a summary is the last line.
    """
    settings = Settings(**common)
    context.use(settings)
    context.resume_command = context.command("resume")
    recovery = run(context, _recover(context, settings))
    recovery.print_summary()
    return recovery.status


async def _recover(context: CommandContext, settings: Settings) -> Recovery:
    ledger = settings.location.open_existing()
    provider = settings.make_provider()
    recovery = Recovery(context)
    with context.output.status_line() as line:
        async with CharacterSession(provider, ledger=ledger, polling=settings.polling) as session:
            await recovery.wait_for_all(session, settings.wait_timeout, line)
    return recovery


def _count(running: int) -> str:
    return f"{running} running"


def _outcome_json(outcome: Character | Voice | TaskSnapshot, key: str) -> dict[str, Any]:
    if isinstance(outcome, Voice):
        return voice_json(outcome, key=key)
    return character_json(outcome, key=key) if isinstance(outcome, Character) else task_json(outcome) | {"key": key}


def _outcome_text(outcome: Character | Voice | TaskSnapshot) -> str:
    if isinstance(outcome, Voice):
        return outcome.id
    return outcome.mention or outcome.id if isinstance(outcome, Character) else f"{outcome.model}: {outcome.state}"


def _result_line(mark: str, style: str, handle: TaskHandle[Any], text: object) -> Text:
    return Text.assemble((mark, f"bold {style}"), f"  {one_line(handle.key)}  {one_line(text)}")
