"""`sora-chars characters`: the saved characters of the ledger, and their deletion at the providers."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import attrs
import click

from sora_chars.cli.options import Settings, address_options, ledger_options, output_options, provider_choice
from sora_chars.cli.render import CHARACTER_COLUMNS, character_rows, one_line, saved_json, saved_row, shown_entry_json
from sora_chars.cli.runner import run
from sora_chars.errors import ConfigurationError
from sora_chars.ledger import queries
from sora_chars.protocols import Provider
from sora_chars.session.deleting import find_target
from sora_chars.session.session import CharacterSession

from .ledger import limit_option, note_count

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sora_chars.cli.context import CommandContext
    from sora_chars.cli.ledger_location import LedgerLocation
    from sora_chars.ledger import Entry
    from sora_chars.session.deleting import Target

_LIST = "ls"


class CharactersGroup(click.Group):
    """A group whose command `ls` is meant where no command is named: `characters rex` lists what mentions "rex"."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put `ls` before arguments that name no command."""
        helps = ctx.help_option_names
        return super().parse_args(ctx, args if args and args[0] in {*self.commands, *helps} else [_LIST, *args])


@click.group(cls=CharactersGroup)
def characters() -> None:
    """List the saved characters, newest first, or delete some.

    `sora-chars characters [QUERY]` lists; `sora-chars characters rm` deletes.
    """


@characters.command(_LIST)
@click.argument("query", default="")
@limit_option
@ledger_options
@output_options
@click.pass_obj
def list_characters(context: CommandContext, /, *, query: str, limit: int, location: LedgerLocation) -> None:
    """List the saved characters, newest first; the name of this command may be omitted.

    With QUERY, lists only the characters whose record contains it, in upper or
    lower case. If QUERY is the key or the id of one character, shows its details.
    """
    context.use_ledger(location)
    found = run(context, _characters(location, query, limit + 1))
    shown = found[:limit]
    now = time.time()
    payload = {"characters": [saved_json(saved) for saved in shown]}
    if len(found) == 1 and query in {found[0].key, found[0].character.id}:
        context.output.show(payload, character_rows(found[0].character, key=found[0].key), title="Character")
        return
    rows: list[tuple[str, ...]] = [saved_row(saved, now) for saved in shown]
    columns: tuple[str, ...] = CHARACTER_COLUMNS
    if context.output.out.is_terminal and not any(row[-1] for row in rows):  # most characters have no end
        columns = columns[:-1]
        rows = [row[:-1] for row in rows]
    context.output.show_table(payload, rows, columns=columns, stacked=(1, 1, 2))
    note_count(context, len(found), limit, "characters", query=query)


@characters.command("rm")
@click.argument("names", metavar="KEY_OR_ID...", nargs=-1, required=True)
@click.option("--yes", is_flag=True, help="Delete without asking.")
@provider_choice(default=None, help_text="Provider of ids that the ledger does not record.")
@address_options
@ledger_options
@output_options
@click.pass_obj
def remove(
    context: CommandContext,
    /,
    *,
    names: tuple[str, ...],
    yes: bool,
    provider: str | None,
    base_url: str | None,
    proxy: str | None,
    location: LedgerLocation,
) -> None:
    """Delete characters at their providers.

    Free of charge; it cannot be undone. The ledger keeps each entry as "deleted": its
    key is not sent again, and `characters` no longer lists it. On a terminal the
    command asks first.
    """
    context.use_ledger(location)
    address = _Address(base_url, proxy)
    targets = run(context, _find(location, names, provider, address))
    left = [target for target in targets if not target.is_deleted]
    if left and not yes and not _confirmed(left):
        context.output.note("Nothing was deleted.")
        return
    for name, target in zip(names, targets, strict=True):
        entry = target.entry if target.is_deleted else run(context, _delete(location, target, address))
        payload = {
            "deleted": {"provider": target.provider, "id": target.character_id, "key": entry and entry.key},
            "entry": entry and shown_entry_json(entry),
        }
        before = "already " if target.is_deleted else ""
        rows = [("deleted", one_line(f"{target.character_id} at {target.provider}, {before}as {name}"))]
        context.output.show(payload, rows, title="Deleted")


@attrs.frozen
class _Address:
    """How the providers are reached."""

    base_url: str | None
    proxy: str | None

    def provider(self, name: str) -> Provider:
        """Return the provider of that name.

        Raises:
            ConfigurationError: Its key is missing, or it has no route that deletes characters.
        """
        made = Settings(provider=name, base_url=self.base_url, proxy=self.proxy, timeout=None).make_provider()
        if type(made).delete is Provider.delete:
            raise ConfigurationError(f"{name} has no route that deletes characters. Nothing was deleted.")
        return made


def _confirmed(targets: Sequence[Target]) -> bool:
    """Ask on a terminal whether to delete.

    Raises:
        click.UsageError: There is no terminal to ask on.
    """
    if not sys.stdin.isatty():
        raise click.UsageError("Deleting cannot be undone. Without a terminal to ask on, add --yes.")
    names = ", ".join(one_line(f"{target.character_id} at {target.provider}") for target in targets)
    noun = "character" if len(targets) == 1 else "characters"
    return click.confirm(f"Delete {len(targets)} {noun} for good: {names}?", err=True)


async def _characters(location: LedgerLocation, query: str, limit: int) -> list[queries.SavedCharacter]:
    async with location.open_existing() as ledger:
        return [saved async for saved in queries.characters(ledger, query or None, limit=limit)]


async def _find(
    location: LedgerLocation, names: Sequence[str], provider: str | None, address: _Address
) -> list[Target]:
    """Return what each name means. Every name and every provider is checked before anything is deleted."""
    async with location.open_existing() as ledger:
        targets = [await find_target(ledger, name, provider) for name in names]
    for name in {target.provider for target in targets if not target.is_deleted}:
        address.provider(name)
    return targets


async def _delete(location: LedgerLocation, target: Target, address: _Address) -> Entry | None:
    name = target.entry.key if target.entry else target.character_id
    async with CharacterSession(address.provider(target.provider), ledger=location.open()) as session:
        return await session.delete(name, provider=target.provider)
