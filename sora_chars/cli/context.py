"""The state of one command: its output, and the ids that an error must report."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import attrs

from .output import Output

if TYPE_CHECKING:
    from collections.abc import Callable

    from .ledger_location import LedgerLocation
    from .options import Settings

ASKED = ("heygen", "kling", "seedance", "vidu")
"""The providers that can be asked for the task of a key."""


@attrs.define(eq=False)
class CommandContext:
    """The state of one command.

    Attributes:
        output: Where the command writes.
        verbose: Whether to show exchanges with the provider, and tracebacks.
        key: The idempotency key, set just before a paid request is sent.
        task_id: The id of the task that was created.
        is_unknown: Whether the outcome of the paid request is unknown.
        has_tasks: False if the provider answers with the character itself;
            `task_id` is then the id of that character.
        provider_args: Arguments that select the same provider in other commands.
        ledger_args: Arguments that select the same ledger in other commands.
        ledger_name: The ledger as shown to the user, without its password; empty
            in commands without a ledger.
        ledger_in_memory: Whether the ledger ends with the command.
        resume_command: The command that continues this one after an interrupt.
        shows_pages: Whether the command shows the pages on which a person must act.
        stop_waiting: Ends the wait for responses after a signal, if there is a session.
    """

    output: Output = attrs.field(factory=Output)
    verbose: bool = False
    key: str | None = None
    task_id: str | None = None
    is_unknown: bool = False
    has_tasks: bool = True
    provider_args: tuple[str, ...] = ()
    ledger_args: tuple[str, ...] = ()
    ledger_name: str = ""
    ledger_in_memory: bool = False
    resume_command: str | None = None
    shows_pages: bool = False
    stop_waiting: Callable[[], None] | None = None

    def use(self, settings: Settings) -> None:
        """Remember the provider and the ledger, which suggested commands repeat."""
        self.provider_args = settings.provider_args
        self.use_ledger(settings.location)

    def use_ledger(self, location: LedgerLocation) -> None:
        """Remember the ledger, which suggested commands repeat."""
        self.ledger_args = location.args
        self.ledger_name = str(location)
        self.ledger_in_memory = location.in_memory

    def command(self, *words: str) -> str:
        """Return a command for the same provider and the same ledger."""
        return shlex.join(["sora-chars", *words, *self.provider_args, *self.ledger_args])

    def resolve_command(self, key: str, *words: str) -> str:
        """Return the `ledger resolve` command for an entry."""
        return shlex.join(["sora-chars", "ledger", "resolve", key, *words, *self.ledger_args])

    def resolve_hint(self, key: str, *, tasks: bool = True, asks: bool = False) -> str:
        """Return what to do about an entry whose outcome is unknown.

        Args:
            key: The entry's idempotency key.
            tasks: Whether the entry's provider has tasks.
            asks: Whether the provider can be asked for the task of a key.
        """
        if self.ledger_in_memory:
            return (
                "The request may have been accepted and charged. Its record ends with this command, so the same "
                "request would be sent again: check the provider's website first."
            )
        choice = "--task-id ID | --never-sent | --give-up" if tasks else "--never-sent | --give-up"
        choice = f"--ask | {choice}" if asks else choice
        return (
            "The request may have been accepted and charged, so it is not sent again automatically. "
            f"Check the provider's website, then run: {self.resolve_command(key)} {choice}"
        )

    def unrecorded_hint(self, key: str, task_id: str) -> str:
        """Return what to do about a task that exists but could not be recorded."""
        outcome = ("--task-id", task_id, "--unchecked") if self.has_tasks else ("--give-up",)
        later = f" When the ledger is writable again, run: {self.resolve_command(key, *outcome)}"
        if self.ledger_in_memory:
            later = ""
        if not self.has_tasks:
            return f"Keep this id: it is the id of the character.{later}"
        status = shlex.join(["sora-chars", "status", task_id, *self.provider_args])
        return f"Keep this id. This shows the task without a ledger: {status}{later and '.'}{later}"
