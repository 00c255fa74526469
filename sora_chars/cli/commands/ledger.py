"""`sora-chars ledger`: the recorded requests."""

from __future__ import annotations

import tempfile
import time
from typing import TYPE_CHECKING

import click

from sora_chars.cli.commands.prune import prune
from sora_chars.cli.context import ASKED
from sora_chars.cli.input_file import open_input
from sora_chars.cli.ledger_export import LEFT_OUT, export_entries
from sora_chars.cli.ledger_import import copy_checked, insert_entries
from sora_chars.cli.options import Settings, address_options, ledger_options, output_options
from sora_chars.cli.render import (
    ENTRY_COLUMNS,
    entry_row,
    entry_rows,
    error_json,
    one_line,
    shown_entry_json,
)
from sora_chars.cli.runner import CommandInterruptedError, exit_status, run
from sora_chars.errors import InvalidRequestError, LedgerError, ProviderError, SoraCharsError
from sora_chars.ledger import EntryState, queries, transitions
from sora_chars.providers.kkiai import GATEWAYS
from sora_chars.session.session import CharacterSession

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Iterable, Sequence
    from typing import Any

    from sora_chars.cli.context import CommandContext
    from sora_chars.cli.ledger_import import ImportCounts
    from sora_chars.cli.ledger_location import LedgerLocation
    from sora_chars.ledger import Entry

DIFFERENT = 1  # exit status
_MAX_PROBLEMS = 20  # that are shown

limit_option = click.option(
    "--limit", type=click.IntRange(1), default=50, show_default=True, metavar="N", help="Show at most this many."
)


@click.group()
def ledger() -> None:
    """List, export, import, resolve and prune the recorded requests.

    The ledger records each request before it is sent, and its outcome. Apart from
    `resolve`, these commands need no API key and no network.
    """


ledger.add_command(prune)


@ledger.command("ls")
@click.argument("query", default="")
@click.option(
    "--state",
    "states",
    type=click.Choice([*map(str, EntryState)]),
    multiple=True,
    metavar="STATE",
    help=f"Only entries in this state: {', '.join(EntryState)}. May be repeated.",
)
@limit_option
@ledger_options
@output_options
@click.pass_obj
def list_entries(
    context: CommandContext, /, *, query: str, states: Collection[str], limit: int, location: LedgerLocation
) -> None:
    """List the entries, newest first.

    With QUERY, lists only the entries that contain it, in upper or lower case.
    """
    context.use_ledger(location)
    wanted = [EntryState(state) for state in states] or list(EntryState)
    found = run(context, _entries(location, query, wanted, limit + 1))
    shown = found[:limit]
    now = time.time()
    payload = {"entries": [shown_entry_json(entry) for entry in shown]}
    rows = [entry_row(entry, now) for entry in shown]
    context.output.show_table(payload, rows, columns=ENTRY_COLUMNS, stacked=(1, 1), flexible="request")
    note_count(context, len(found), limit, "entries", query=query, states=states)


@ledger.command()
@click.argument("key")
@ledger_options
@output_options
@click.pass_obj
def show(context: CommandContext, /, *, key: str, location: LedgerLocation) -> None:
    """Show the entry of a key."""
    context.use_ledger(location)
    _show(context, run(context, _find(location, key)))


class ResolveCommand(click.Command):
    """A command whose usage shows the options of which exactly one is required."""

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Return the pieces of the usage line."""
        return [*super().collect_usage_pieces(ctx), "(--ask | --task-id ID | --never-sent | --give-up | --undo)"]


@ledger.command(cls=ResolveCommand)
@click.argument("keys", metavar="KEY...", nargs=-1, required=True)
@click.option("--ask", is_flag=True, help="Ask the provider for the task of the key, where it can be asked.")
@click.option("--task-id", metavar="ID", help="The request created this task, as the provider's site shows.")
@click.option("--unchecked", is_flag=True, help="Record --task-id without fetching the task. Needs no API key.")
@click.option("--never-sent", is_flag=True, help="The provider never received the request; it may be sent again.")
@click.option("--give-up", is_flag=True, help="Record the request as failed.")
@click.option("--undo", is_flag=True, help="Take the last resolution back, unless the task has ended.")
@address_options
@ledger_options
@output_options
@click.pass_obj
def resolve(
    context: CommandContext,
    /,
    *,
    keys: tuple[str, ...],
    ask: bool,
    task_id: str | None,
    unchecked: bool,
    base_url: str | None,
    proxy: str | None,
    location: LedgerLocation,
    **others: bool,
) -> int | None:
    """Find out or record the outcome of requests whose outcome is unknown.

    No request is sent again. heygen, kling, seedance and vidu can be asked, free of
    charge: --ask. At the other providers, check their website first. The task that
    --task-id names is fetched from the provider before it is recorded.
    """
    context.use_ledger(location)
    if (task_id is not None) + ask + sum(others.values()) != 1:
        raise click.UsageError("Give exactly one of --ask, --task-id ID, --never-sent, --give-up and --undo.")
    if task_id is not None and len(keys) > 1:
        raise click.UsageError("--task-id names the task of one key.")
    if unchecked and task_id is None:
        raise click.UsageError("--unchecked requires --task-id.")
    address = {"base_url": base_url, "proxy": proxy}

    async def decide(key: str) -> Entry:
        if ask:
            entry = await _ask(location, key, address)
            context.output.note(f"{entry.provider} was asked for key {entry.key} and shows {entry.task_id}.")
            return entry
        if task_id is None:
            return await _resolve(location, key, **others)
        return await _resolve_task(location, key, task_id, address, unchecked=unchecked)

    return _for_each(context, keys, decide)


def _for_each(context: CommandContext, keys: Sequence[str], decide: Callable[[str], Coroutine[Any, Any, Entry]]) -> int:
    """Decide about each key, also after one that failed, and return the highest exit status."""
    status = 0
    for key in keys:
        try:
            entry = run(context, decide(key))
        except (CommandInterruptedError, LedgerError):
            raise
        except SoraCharsError as error:
            status = max(status, exit_status(error))
            context.output.show_error(error_json(error, key=key))
        else:
            _show(context, entry)
    return status


@ledger.command()
@click.option(
    "--output", default="-", metavar="FILE", help="A new file, readable only by its owner.  [default: stdout]"
)
@ledger_options
@click.pass_obj
def export(context: CommandContext, /, *, output: str, location: LedgerLocation) -> int:
    """Write every entry as a line of JSON, oldest first, with its earlier attempts.

    The lines hold the links of the requests as they were given, with their
    signatures. Every other command masks these. Entries that cannot be read are
    reported and left out; the exit status is then 1.
    """
    context.use_ledger(location)
    written, unreadable = run(context, export_entries(location, output))
    if output != "-":
        context.output.note(f"{written} entries written to {output}")
    for problem in unreadable:
        context.output.note(f"left out: {problem}")
    return LEFT_OUT if unreadable else 0


@ledger.command("import")
@click.argument("file")
@ledger_options
@output_options
@click.pass_obj
def import_entries(context: CommandContext, /, *, file: str, location: LedgerLocation) -> int:
    """Add the entries of an export that the ledger lacks.

    FILE is what `sora-chars ledger export` wrote; - is stdin. All lines are checked
    before anything is written. An entry whose key is recorded is never changed: if
    it differs, its key is reported, and the exit status is 1.
    """
    context.use_ledger(location)
    with tempfile.TemporaryFile() as copy:
        with open_input(file) as lines:
            _check_lines(context, copy_checked(lines, copy))
        copy.seek(0)
        counts = run(context, _import(location, copy))
    for line in counts.examples:
        context.output.note(line)
    numbers = {name: getattr(counts, name) for name in ("inserted", "skipped", "different")}
    rows = [(name, str(number)) for name, number in numbers.items()]
    context.output.show({"import": numbers}, [*rows, ("ledger", context.ledger_name)], title="Import")
    return DIFFERENT if counts.different else 0


def _check_lines(context: CommandContext, problems: list[tuple[int, str]]) -> None:
    """Raise `InvalidRequestError` if there are broken lines, after printing the first ones."""
    if not problems:
        return
    texts = [f"line {number}: {problem}" for number, problem in problems[:_MAX_PROBLEMS]]
    texts += [f"and {len(problems) - _MAX_PROBLEMS} more"] if len(problems) > _MAX_PROBLEMS else []
    for text in texts:
        context.output.note(text)
    count = "1 line is" if len(problems) == 1 else f"{len(problems)} lines are"
    raise InvalidRequestError(f"{count} broken. Nothing was written.", problems=tuple(texts))


def _show(context: CommandContext, entry: Entry) -> None:
    context.output.show({"entry": shown_entry_json(entry)}, entry_rows(entry), title="Entry")
    if entry.state is EntryState.UNKNOWN:
        context.output.note(
            context.resolve_hint(entry.key, tasks=entry.provider not in GATEWAYS, asks=entry.provider in ASKED)
        )
    elif entry.state is EntryState.RUNNING:
        context.output.note(f"Wait for it with: {context.command('wait', entry.key)}")
    elif entry.state is EntryState.REJECTED and entry.may_have_been_paid:
        context.output.note("The rejection does not prove that nothing was paid. The key is not sent again by itself.")
    elif entry.state in {EntryState.PENDING, EntryState.REJECTED}:
        context.output.note("Nothing was paid. The same request with this key will be sent.")


def note_count(
    context: CommandContext, found: int, limit: int, what: str, *, query: str, states: Collection[str] = ()
) -> None:
    """Note that there are more than `limit`, or none."""
    if found > limit:
        context.output.note(f"Showing the newest {limit}. For more, use --limit {2 * limit}")
    elif not found:
        state = f" {' or '.join(states)}" if states else ""
        match = f" match {one_line(query)!r}" if query else ""
        context.output.note(f"No{state} {what} in {context.ledger_name}{match}")


async def _entries(location: LedgerLocation, query: str, states: Collection[EntryState], limit: int) -> list[Entry]:
    async with location.open_existing() as ledger:
        found = ledger.entries(states=states, newest_first=True, query=query or None, limit=limit)
        return [entry async for entry in found]


async def _find(location: LedgerLocation, key: str) -> Entry:
    async with location.open_existing() as ledger:
        return await queries.find(ledger, key)


async def _ask(location: LedgerLocation, key: str, address: dict[str, str | None]) -> Entry:
    async with location.open_existing() as ledger:
        entry = await queries.find(ledger, key)
        settings = Settings(provider=entry.provider, base_url=address["base_url"], proxy=address["proxy"], timeout=None)
        async with CharacterSession(settings.make_provider(), ledger=ledger) as session:
            return await session.resolve(key, ask=True)


async def _resolve(location: LedgerLocation, key: str, **decision: bool) -> Entry:
    async with location.open_existing() as ledger:
        return await transitions.resolve(ledger, key, task_id=None, **decision)


async def _resolve_task(
    location: LedgerLocation, key: str, task_id: str, address: dict[str, str | None], *, unchecked: bool
) -> Entry:
    """Record a task, and fetch it first from the provider of the entry."""
    async with location.open_existing() as ledger:
        entry = await queries.find(ledger, key)
        if entry.provider in GATEWAYS:
            raise InvalidRequestError(
                f"--task-id: {entry.provider} has no tasks.",
                hint="Use --never-sent if no character was created; otherwise, or if you cannot find out, --give-up.",
            )
        if unchecked:
            return await transitions.resolve(ledger, key, task_id=task_id)
        settings = Settings(provider=entry.provider, base_url=address["base_url"], proxy=address["proxy"], timeout=None)
        try:
            async with CharacterSession(settings.make_provider(), ledger=ledger) as session:
                return await session.resolve(key, task_id=task_id)
        except (ProviderError, InvalidRequestError) as error:
            if error.hint:
                error.hint = error.hint.replace("pass unchecked=True", "add --unchecked")
            raise


async def _import(location: LedgerLocation, lines: Iterable[bytes]) -> ImportCounts:
    async with location.open() as ledger:
        return await insert_entries(ledger, lines)
