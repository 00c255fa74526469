"""Writes a ledger as lines of JSON, from which `sora_chars.cli.ledger_import` reads it back."""

from __future__ import annotations

import json
import os
import sys
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TextIO

import attrs

from sora_chars.errors import ConfigurationError, UnreadableEntryError
from sora_chars.ledger.entry import Attempt, parse
from sora_chars.ledger.queries import with_attempts

from .render import entry_json

if TYPE_CHECKING:
    from collections.abc import Generator

    from .ledger_location import LedgerLocation

LEFT_OUT = 1  # exit status


async def export_entries(location: LedgerLocation, output: str) -> tuple[int, list[str]]:
    """Write every entry of a ledger to a new file, or to stdout for "-".

    Returns:
        How many entries were written, and why others could not be read.
    """
    written = 0
    unreadable: list[str] = []
    async with location.open_existing() as ledger:
        with _new_file(output) as file:
            async for entry, attempts in with_attempts(ledger):
                try:
                    facts = entry_json(entry)
                    if attempts:
                        facts["attempts"] = [_attempt_json(attempt) for attempt in attempts]
                except UnreadableEntryError as error:
                    unreadable.append(error.message)
                    continue
                file.write(json.dumps(facts) + "\n")
                written += 1
    return written, unreadable


def _attempt_json(attempt: Attempt) -> dict[str, Any]:
    """Return an attempt like an entry, without the key and the number, which its place tells."""
    facts = {name: value for name, value in attrs.asdict(attempt).items() if name not in {"key", "number"}}
    for name in [name for name in facts if name.endswith("_json")]:
        text = facts.pop(name)
        facts[name.removesuffix("_json")] = None if text is None else parse(attempt.key, text)
    return facts


@contextmanager
def _new_file(output: str) -> Generator[TextIO]:
    """Create a file, or give stdout for "-". An existing file is never overwritten: it may be the ledger."""
    if output == "-":
        yield sys.stdout
        sys.stdout.flush()
        return
    try:
        with open(output, "x", opener=partial(os.open, mode=0o600)) as file:
            yield file
    except OSError as error:
        raise ConfigurationError(f"--output {output}: {os.strerror(error.errno or 0)}.") from error
