"""A request that is recorded in a transaction of the caller's, with other tables of the same database."""

from __future__ import annotations

import re
from itertools import count
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@attrs.frozen
class Registration:
    """The statement that records a request, for any driver of the ledger's database.

    It returns the key, or no row if the key is recorded already; then
    `CharacterSession.entry` shows for which request. In another ledger than that of the
    session it fails, because the column "key" would be null.

    Attributes:
        key: The idempotency key of the request.
        statement: The statement with `%s` for each value, as psycopg and Django take it.
        values: The values, in their order.
        columns: The names of the values.
    """

    key: str
    statement: str = attrs.field(repr=False)
    values: Sequence[Any] = attrs.field(repr=False)
    columns: Sequence[str] = attrs.field(repr=False)

    @property
    def numbered(self) -> str:
        """The statement with `$1`, `$2` and so on, as asyncpg takes it."""
        numbers = count(1)
        return re.sub("%s", lambda _: f"${next(numbers)}", self.statement)

    @property
    def named(self) -> str:
        """The statement with `:key` and so on, for `text()` of SQLAlchemy with `parameters`."""
        names = iter(self.columns)
        return re.sub("%s", lambda _: f":{next(names)}", self.statement)

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The values by their names in `named`."""
        return dict(zip(self.columns, self.values, strict=True))
