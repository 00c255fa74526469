"""`sora-chars resume`: every running task of the ledger, watched until all have ended."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import attrs
import click
from rich.text import Text

from sora_chars.cli.context import Job, speaking
from sora_chars.cli.keeping import keeping
from sora_chars.cli.options import Settings, polling, talking
from sora_chars.cli.render import character_json, error_json, shown, task_json
from sora_chars.cli.runner import UNKNOWN, exit_status, run
from sora_chars.cli.waiting import WAIT
from sora_chars.errors import SoraCharsError, WaitTimeoutError
from sora_chars.ledger import EntryState
from sora_chars.models import Character
from sora_chars.session.session import CharacterSession

if TYPE_CHECKING:
    from sora_chars.cli.output import Line
    from sora_chars.models import TaskSnapshot
    from sora_chars.polling.handle import TaskHandle

_NAMED = 5  # keys


@attrs.define(eq=False)
class Recovery:
    """What `resume` has seen so far. `unknown` names keys, `left_alone` counts tasks by their provider."""

    job: Job
    succeeded: int = 0
    failed: int = 0
    running: int = 0
    unknown: list[str] = attrs.field(factory=list[str])
    left_alone: Counter[str] = attrs.field(factory=Counter[str])
    _statuses: set[int] = attrs.field(factory=lambda: {0})

    @property
    def status(self) -> int:
        """The exit status: of all that did not end well the one that asks most of a person."""
        return max(self._statuses | ({UNKNOWN} if self.unknown else set()))

    async def watch(self, session: CharacterSession, limit: float, line: Line) -> None:
        """WatchedTask all for up to `limit` seconds, and tell of each as it ends."""
        deadline = asyncio.get_running_loop().time() + limit
        handles = [handle async for handle in session.recover()]
        self.running = len(handles)
        line.say(_count(self.running))
        await asyncio.gather(*(self._follow(handle, deadline, line) for handle in handles))
        names = {provider.name for provider in session.providers}
        async for entry in session.ledger.entries(states={EntryState.UNKNOWN, EntryState.RUNNING}):
            if entry.state is EntryState.UNKNOWN:
                self.unknown.append(entry.key)
            elif entry.provider not in names:
                self.left_alone[entry.provider] += 1

    async def _follow(self, handle: TaskHandle[Any], deadline: float, line: Line) -> None:
        try:
            outcome = await handle.result(max(0.0, deadline - asyncio.get_running_loop().time()))
        except WaitTimeoutError as error:
            self._statuses.add(exit_status(error))
            return
        except SoraCharsError as error:
            self._statuses.add(exit_status(error))
            self.failed += 1
            line.tell(error_json(error, task_id=handle.task_id, key=handle.key), _line("BAD", "red", handle, error))
        else:
            self.succeeded += 1
            line.tell(_outcome_json(outcome, handle.key), _line("ok ", "green", handle, _gist(outcome)))
        self.running -= 1
        line.say(_count(self.running))

    def sum_up(self) -> None:
        """Say how it went, and what is left to do."""
        screen = self.job.screen
        if screen.as_json:
            names = ("succeeded", "failed", "running", "unknown", "left_alone")
            screen.show_json({"summary": {name: getattr(self, name) for name in names}})
            return
        seen = {"ended well": self.succeeded, "ended badly": self.failed, "still running": self.running}
        screen.note(", ".join(f"{count} {how}" for how, count in seen.items() if count) or "No task was running")
        if self.running:
            screen.note(f"Go on with: {self.job.again}")
        for provider, count in self.left_alone.items():
            screen.note(f"Left alone: {count} running at {shown(provider)}")
        if self.unknown:
            more = ", ..." if len(self.unknown) > _NAMED else ""
            screen.note(f"{len(self.unknown)} of unknown outcome: {', '.join(self.unknown[:_NAMED])}{more}")
            screen.note(self.job.settling("KEY"))


@click.command("resume")
@talking
@polling
@keeping
@speaking
@click.pass_obj
def resume(job: Job, /, **common: Any) -> int:
    """Go on waiting for every task that the ledger says is running.

    With --json each task is one line as it ends, and a summary the last. What a process that was killed had just sent
    becomes `unknown`; it is never sent again by itself.
    """
    settings = Settings(**common)
    job.take(settings)
    job.again = job.command("resume")
    recovery = run(job, _recover(job, settings))
    recovery.sum_up()
    return recovery.status


async def _recover(job: Job, settings: Settings) -> Recovery:
    ledger, provider = settings.place.find(), settings.make_provider()
    recovery = Recovery(job)
    with job.screen.line() as line:
        async with CharacterSession(provider, ledger=ledger, polling=settings.pace) as session:
            await recovery.watch(session, settings.timeout or WAIT, line)
    return recovery


def _count(running: int) -> str:
    return f"{running} running"


def _outcome_json(outcome: Character | TaskSnapshot, key: str) -> dict[str, Any]:
    return character_json(outcome, key=key) if isinstance(outcome, Character) else task_json(outcome) | {"key": key}


def _gist(outcome: Character | TaskSnapshot) -> str:
    return outcome.mention or outcome.id if isinstance(outcome, Character) else f"{outcome.model}: {outcome.state}"


def _line(mark: str, style: str, handle: TaskHandle[Any], what: object) -> Text:
    return Text.assemble((mark, f"bold {style}"), f"  {shown(handle.key)}  {shown(what)}")
