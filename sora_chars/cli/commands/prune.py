"""`sora-chars ledger prune`: removes old entries from a ledger."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from sora_chars.cli.options import ledger_options, output_options
from sora_chars.cli.runner import run

if TYPE_CHECKING:
    from sora_chars.cli.context import CommandContext
    from sora_chars.cli.ledger_location import LedgerLocation

_SECONDS = {"h": 3600, "d": 86_400, "w": 604_800}


def _seconds(_context: click.Context, _option: click.Parameter, value: str) -> float:
    found = re.fullmatch(r"(\d{1,6})([hdw])", value.strip())
    if found is None:
        raise click.BadParameter(f"must be a number of hours, days or weeks, such as 12h, 90d or 8w; got {value!r}.")
    return float(int(found[1]) * _SECONDS[found[2]])


@click.command()
@click.option("--older-than", callback=_seconds, required=True, metavar="AGE", help="Such as 90d; also h and w.")
@click.option("--dry-run", is_flag=True, help="Count the entries, and remove nothing.")
@ledger_options
@output_options
@click.pass_obj
def prune(context: CommandContext, /, *, older_than: float, dry_run: bool, location: LedgerLocation) -> None:
    """Remove the finished entries that did not change for AGE.

    Entries that are unfinished or unknown stay, and so do rejected ones that may
    have been paid. A removed key is a new key: a request with it is sent and paid
    again. The ids of the characters are removed too, so export the ledger first.
    """
    context.use_ledger(location)
    count = run(context, _prune(location, older_than, dry_run=dry_run))
    name, title = ("would_remove", "would remove") if dry_run else ("removed", "removed")
    context.output.show({name: count}, [(title, str(count)), ("ledger", context.ledger_name)], title="Prune")


async def _prune(location: LedgerLocation, older_than: float, *, dry_run: bool) -> int:
    async with location.open_existing() as ledger:
        return await ledger.prune(older_than=older_than, dry_run=dry_run)
