"""Records a request without sending it, also in a transaction of the caller's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs

from sora_chars.errors import ConfigurationError, InvalidRequestError, LedgerError, printable
from sora_chars.ids import new_key
from sora_chars.ledger.serialize import to_record
from sora_chars.models import as_request
from sora_chars.observers import observation

from .submission import not_sent

if TYPE_CHECKING:
    from sora_chars.ledger import Entry
    from sora_chars.ledger.postgres_ledger import Connection, PostgresLedger
    from sora_chars.models import Request

    from .dispatcher import Dispatcher

_MAX_SHOWN = 60  # characters of a value in a message


def keyed_request(request: Request | None, fields: Mapping[str, Any]) -> Request:
    """Return a request, or one made of its fields. A whole request may be given a key as the only field.

    Raises:
        InvalidRequestError: Both or neither were given, or a field is unknown or invalid.
    """
    if request is None or set(fields) != {"key"}:
        return as_request(request, fields)
    checked = as_request(request, {})
    if checked.key not in {None, fields["key"]}:
        raise InvalidRequestError(f"key: the request has the key {printable(checked.key)} already.")
    keyed: Request = attrs.evolve(checked, key=fields["key"])
    return keyed


def new_entry(dispatcher: Dispatcher, request: Request, provider: str | None, meta: Mapping[str, Any] | None) -> Entry:
    """Return the entry of a request that a provider accepts; nothing is written.

    Raises:
        InvalidRequestError: No provider accepts the request, or `meta` is no JSON object.
    """
    facts = _checked(meta)
    chosen = dispatcher.choose(request, provider)
    kind, record = to_record(request)
    return dispatcher.ledger.new_entry(
        key=request.key or new_key(),
        provider=chosen.name,
        kind=kind,
        request=record,
        meta=dispatcher.observers.meta() | facts,
    )


async def register(dispatcher: Dispatcher, entry: Entry, connection: Connection | None) -> Entry:
    """Record a new entry, and return the recorded entry of its key; see `CharacterSession.register`."""
    if connection is not None:
        return await postgres_ledger(dispatcher).insert_with(connection, entry)
    try:
        return await dispatcher.ledger.record(entry)
    except LedgerError as error:
        if observed := observation.get():
            observed.ledger_failed(printable(error))
        raise not_sent(error, entry.key, entry.provider) from error


def postgres_ledger(dispatcher: Dispatcher) -> PostgresLedger:
    """Return the ledger of the session.

    Raises:
        ConfigurationError: It is not in a PostgreSQL database.
    """
    ledger: Any = dispatcher.ledger
    if not hasattr(ledger, "insert_with"):  # its class needs an extra
        raise ConfigurationError(
            "connection: only a PostgreSQL ledger records a request in a transaction of yours.",
            hint="Use a ledger in the database of your other tables, or register without a connection.",
        )
    found: PostgresLedger = ledger
    return found


def _checked(meta: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the facts as they are read from the ledger, where every name is text."""
    given: object = {} if meta is None else meta  # callers without a type checker pass anything
    if not isinstance(given, Mapping):
        raise InvalidRequestError(f"meta must be a JSON object, got {type(given).__name__}.")
    try:
        facts: dict[str, Any] = json.loads(json.dumps(dict(given), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequestError(f"meta must be JSON: {printable(error, limit=_MAX_SHOWN)}.") from error
    return facts
