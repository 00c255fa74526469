"""`sora-chars ledger` and `sora-chars characters`: what is on record. No key and no network is needed."""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, TextIO

import click

from sora_chars.cli.context import speaking
from sora_chars.cli.keeping import keeping
from sora_chars.cli.render import ENTRY_HEAD, SAVED_HEAD, entry_json, entry_row, entry_rows, saved_json, saved_row
from sora_chars.cli.runner import run
from sora_chars.errors import ConfigurationError, InvalidRequestError
from sora_chars.ledger import EntryState, queries, transitions
from sora_chars.providers.kkiai import GATEWAYS

if TYPE_CHECKING:
    from collections.abc import Collection, Generator

    from sora_chars.cli.context import Job
    from sora_chars.cli.keeping import Place
    from sora_chars.ledger import Entry

limiting = click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="How many at most.")


@click.command()
@click.argument("word", default="")
@limiting
@keeping
@speaking
@click.pass_obj
def characters(job: Job, /, *, word: str, limit: int, place: Place) -> None:
    """List the characters that were made, newest first: all, or those whose records mention WORD."""
    job.place = place
    found = run(job, _characters(place, word, limit + 1))
    shown, now = found[:limit], time.time()
    payload = {"characters": [saved_json(saved) for saved in shown]}
    job.screen.show_table(payload, [saved_row(saved, now) for saved in shown], head=SAVED_HEAD, stacked=2)
    _note_count(job, len(found), limit, "character")


@click.group()
def ledger() -> None:
    """Look at the record of what was asked, sent and received, and settle what is unknown."""


@ledger.command("ls")
@click.argument("word", default="")
@click.option("--state", "states", type=click.Choice([*map(str, EntryState)]), multiple=True, help="Only these.")
@limiting
@keeping
@speaking
@click.pass_obj
def list_entries(job: Job, /, *, word: str, states: Collection[str], limit: int, place: Place) -> None:
    """List the entries, newest first: all, or those that mention WORD."""
    job.place = place
    found = run(job, _entries(place, word, [EntryState(state) for state in states] or list(EntryState), limit + 1))
    shown, now = found[:limit], time.time()
    payload = {"entries": [entry_json(entry) for entry in shown]}
    job.screen.show_table(payload, [entry_row(entry, now) for entry in shown], head=ENTRY_HEAD)
    _note_count(job, len(found), limit, "entry")


@ledger.command()
@click.argument("key")
@keeping
@speaking
@click.pass_obj
def show(job: Job, /, *, key: str, place: Place) -> None:
    """Show all that is known of a key."""
    job.place = place
    _show(job, run(job, _find(place, key)))


@ledger.command()
@click.argument("key")
@click.option("--task-id", metavar="ID", help="It became this task, as you saw at the provider.")
@click.option("--never-sent", is_flag=True, help="It never arrived: asked again, it is sent.")
@click.option("--give-up", is_flag=True, help="It counts as failed, for good.")
@keeping
@speaking
@click.pass_obj
def resolve(job: Job, /, *, key: str, task_id: str | None, never_sent: bool, give_up: bool, place: Place) -> None:
    """Record what you found out about a key whose outcome is unknown. Nothing is sent."""
    job.place = place
    if (task_id is not None) + never_sent + give_up != 1:
        raise click.UsageError("Give exactly one of --task-id ID, --never-sent and --give-up.")
    _show(job, run(job, _resolve(place, key, task_id=task_id, never_sent=never_sent, give_up=give_up)))


@ledger.command()
@click.option("--output", default="-", metavar="FILE", help="A new file, which only you may read. [default: stdout]")
@keeping
@click.pass_obj
def export(job: Job, /, *, output: str, place: Place) -> None:
    """Write every entry as one line of JSON, oldest first."""
    job.place = place
    written = run(job, _export(place, output))
    if output != "-":
        job.screen.note(f"{written} entries in {output}")


def _show(job: Job, entry: Entry) -> None:
    job.screen.show({"entry": entry_json(entry)}, entry_rows(entry), title="Entry")
    if entry.state is EntryState.UNKNOWN:
        job.screen.note(job.settling(entry.key, tasks=entry.provider not in GATEWAYS))
    elif entry.state is EntryState.RUNNING:
        job.screen.note(f"Wait for it with: {job.command('wait', entry.key)}")
    elif entry.state in {EntryState.PENDING, EntryState.REJECTED}:
        job.screen.note("Nothing was paid. Asked again under this key, it is sent.")


def _note_count(job: Job, found: int, limit: int, what: str) -> None:
    if found > limit:
        job.screen.note(f"The newest {limit}. There are more: --limit {2 * limit}")
    elif not found:
        job.screen.note(f"No {what} in {job.place}")


async def _characters(place: Place, word: str, limit: int) -> list[queries.SavedCharacter]:
    async with place.find() as ledger:
        return [saved async for saved in queries.characters(ledger, word or None, limit=limit)]


async def _entries(place: Place, word: str, states: Collection[EntryState], limit: int) -> list[Entry]:
    async with place.find() as ledger:
        found = ledger.entries(states=states, newest_first=True, query=word or None, limit=limit)
        return [entry async for entry in found]


async def _find(place: Place, key: str) -> Entry:
    async with place.find() as ledger:
        return await queries.find(ledger, key)


async def _resolve(place: Place, key: str, *, task_id: str | None, never_sent: bool, give_up: bool) -> Entry:
    async with place.find() as ledger:
        entry = await queries.find(ledger, key)
        if task_id is not None and entry.provider in GATEWAYS:
            raise InvalidRequestError(
                f"--task-id: {entry.provider} has no tasks.",
                hint="Give --never-sent if it made no character, --give-up if it did, or if nobody will ever know.",
            )
        return await transitions.resolve(ledger, key, task_id=task_id, never_sent=never_sent, give_up=give_up)


async def _export(place: Place, output: str) -> int:
    written = 0
    async with place.find() as ledger:
        with _writing(output) as file:
            async for entry in ledger.entries():
                file.write(json.dumps(entry_json(entry)) + "\n")
                written += 1
    return written


@contextmanager
def _writing(output: str) -> Generator[TextIO]:
    """The file, made anew: one that is there, perhaps the ledger itself, is never written over."""
    if output == "-":
        yield sys.stdout
        sys.stdout.flush()
        return
    try:
        with open(output, "x", opener=partial(os.open, mode=0o600)) as file:
            yield file
    except OSError as error:
        raise ConfigurationError(f"--output {output}: {os.strerror(error.errno or 0)}.") from error
