"""One command at work: what it was told of how to speak, and what it knows that must not be lost."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import click

from .keeping import Place
from .output import Screen

if TYPE_CHECKING:
    from collections.abc import Callable

    from .options import Settings

C = TypeVar("C", bound="Callable[..., Any]")


@attrs.define(eq=False)
class Job:
    """One command: where it speaks, and what is known of the task that it may have paid for."""

    screen: Screen = attrs.field(factory=Screen)
    verbose: bool = False
    key: str | None = None  # set when a paid request is about to be sent
    task_id: str | None = None
    has_tasks: bool = True  # else `task_id` is the id of the character that was made
    place: Place = attrs.field(factory=Place)
    address: tuple[str, ...] = ()  # the options that lead to the provider
    again: str | None = None  # the command that goes on when this one is interrupted

    def command(self, *words: str) -> str:
        """Another command, at the same provider and with the same ledger."""
        return shlex.join(["sora-chars", *words, *self.address, *self.place.options])

    def settling(self, key: str, *, tasks: bool = True) -> str:
        """What to do about an entry whose outcome is unknown. `tasks`: whether its provider has any."""
        choice = "--task-id ID | --never-sent | --give-up" if tasks else "--never-sent | --give-up"
        return (
            "It may exist and be charged, so it is never sent again by itself. "
            f"Look at the provider's own list, then: {self.resolve_command(key)} {choice}"
        )

    def resolve_command(self, key: str, *words: str) -> str:
        """The command that tells the ledger what a person found out."""
        return shlex.join(["sora-chars", "ledger", "resolve", key, *words, *self.place.options])

    def kept_outside(self, key: str, task_id: str) -> str:
        """What to do about a task that was made, and that the ledger could not be told of."""
        if not self.has_tasks:
            settle = self.resolve_command(key, "--give-up")
            return f"This is the id of the character. Once the ledger can be written again: {settle}"
        wait = shlex.join(["sora-chars", "wait", task_id, *self.address, "--ledger", "memory:"])
        settle = self.resolve_command(key, "--task-id", task_id)
        return f"Keep this id. Go on with: {wait}; once the ledger can be written again: {settle}"

    def take(self, settings: Settings) -> None:
        """Take over what other commands must be given to go on with this one's work."""
        self.address, self.place = settings.address, settings.place


def speaking(command: C) -> C:
    """Give a command `--json` and `-v`, which act on its `Job`."""
    json_option = click.option(
        "--json",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_set_json,
        help="One JSON object on stdout, and nothing else.",
    )
    verbose_option = click.option(
        "-v",
        "--verbose",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_set_verbose,
        help="Show each exchange with the provider on stderr, secrets masked.",
    )
    return json_option(verbose_option(command))


def _set_json(context: click.Context, _parameter: click.Parameter, value: bool) -> None:  # noqa: FBT001 # click calls it
    context.ensure_object(Job).screen.as_json = value


def _set_verbose(context: click.Context, _parameter: click.Parameter, value: bool) -> None:  # noqa: FBT001 # click calls it
    context.ensure_object(Job).verbose = value
