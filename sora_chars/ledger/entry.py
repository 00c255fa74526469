"""One entry of the ledger: what was asked under one key, and what has become of it."""

from __future__ import annotations

import json
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal

import attrs

from sora_chars.errors import InvalidTransitionError, KeyConflictError, LedgerError, printable

from .states import EntryState, check_transition

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

By = Literal["key", "task", "token"]  # what an entry is found by
_HELD = {EntryState.SENDING, EntryState.RUNNING}
_SHOWN = 160
_encoder = json.JSONEncoder(sort_keys=True, separators=(",", ":"))  # json.dumps would make one a call


def to_json(value: object) -> str:
    """The canonical text of a JSON value: equal values give equal text. It is ASCII, which every database can keep."""
    return _encoder.encode(value)


@attrs.frozen(kw_only=True)
class Entry:
    """What was asked under `key`, and what has become of it. A new one per move, with the next `version`.

    `owner` is the process that sends or looks after it, `token_digest` the digest of its callback's token. Times are
    epoch seconds of this machine's clock. `request_json`, `result_json` and `error_json` are JSON texts; the
    properties without the ending are their values.
    """

    key: str
    provider: str
    kind: str
    state: EntryState
    request_json: str = attrs.field(repr=False)
    token_digest: str | None = attrs.field(default=None, repr=False)
    task_id: str | None = None
    owner: str | None = None
    result_json: str | None = attrs.field(default=None, repr=False)
    error_json: str | None = None
    credits: float | None = None
    created_at: float
    updated_at: float
    version: int = 1

    @property
    def request(self) -> Any:
        """What was asked."""
        return json.loads(self.request_json)

    @property
    def result(self) -> Any:
        """The provider's raw result, once there is one."""
        return None if self.result_json is None else json.loads(self.result_json)

    @property
    def error(self) -> Any:
        """Why it was refused, failed or is unknown."""
        return None if self.error_json is None else json.loads(self.error_json)

    def check_same(self, other: Entry) -> None:
        """Raise `KeyConflictError` unless both ask for the same."""
        if (self.provider, self.kind, self.request_json) != (other.provider, other.kind, other.request_json):
            raise KeyConflictError(
                f"Key {self.key} was asked before for something else: first {self._wish()}, now {other._wish()}.",
                hint="One key names one wish: take another key for another request.",
                key=self.key,
                first=self.request,
                second=other.request,
            )

    def transitioned(
        self,
        to: EntryState,
        *,
        at: float,
        owner: str | None,
        task_id: str | None = None,
        token_digest: str | None = None,
        result: Any = None,
        error: Any = None,
        credits: float | None = None,  # noqa: A002 # the provider's word
    ) -> Entry:
        """The entry after a move. A task id, a token and credits stay; `result` and `error` belong to one state only.

        Raises:
            InvalidTransitionError: the states do not follow, or no task id or a second one would be on record.
        """
        check_transition(self.key, self.state, to)
        task = task_id or self.task_id
        if self.task_id not in {None, task} or (to is EntryState.RUNNING and task is None):
            raise InvalidTransitionError(
                f"Entry {self.key} has task {self.task_id} and cannot go to {to} with task {printable(task_id)}.",
                key=self.key,
                state=self.state,
                to=to,
            )
        return Entry(  # spelled out: it is on the hot path, and attrs.evolve takes three times as long
            key=self.key,
            provider=self.provider,
            kind=self.kind,
            state=to,
            request_json=self.request_json,
            token_digest=token_digest or self.token_digest,
            task_id=task,
            owner=owner if to in _HELD else None,
            result_json=None if result is None else to_json(result),
            error_json=None if error is None else to_json(error),
            credits=self.credits if credits is None else credits,
            created_at=self.created_at,
            updated_at=at,
            version=self.version + 1,
        )

    def mentions(self, word: str) -> bool:
        """Whether `word` stands in the key, the task id, or a value of the request or the result, in any case."""
        wanted = word.casefold()
        texts = (self.key, self.task_id, *_texts(self.request), *_texts(self.result))
        return any(wanted in text.casefold() for text in texts if text)

    def _wish(self) -> str:
        return f"{self.kind} at {self.provider} {printable(self.request_json, limit=_SHOWN)}"


COLUMNS = tuple(field.name for field in attrs.fields(Entry))
MOVING = ("state", "owner", "result_json", "error_json", "credits", "updated_at", "version")
"""The columns that every move writes."""
NAMING = ("token_digest", "task_id")
"""The columns that a move may write besides, which are looked up by: writing one costs its index as well."""


def getter(columns: Sequence[str]) -> Callable[[Entry], tuple[Any, ...]]:
    """What reads the plain values of two or more columns."""
    # sqlite3 searches its adapters for whatever is no plain `str`, such as a EntryState: 1 us an entry.
    return attrgetter(*("state._value_" if name == "state" else name for name in columns))


to_row = getter(COLUMNS)


def from_row(row: Sequence[Any]) -> Entry:
    """The entry of a row in the order of `COLUMNS`."""
    facts = dict(zip(COLUMNS, row, strict=True))
    facts["state"] = EntryState(facts["state"])
    return Entry(**facts)


def check_storable(**texts: str | None) -> None:
    """Raise `LedgerError` for text that not every database can keep: empty, or with characters nobody can print."""
    for name, text in texts.items():
        if text is not None and not (text and text.isprintable()):
            raise LedgerError(f"{name}: {printable(repr(text), limit=_SHOWN)} is no text that can be recorded.")


def _texts(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case dict():
            for part in value.values():
                yield from _texts(part)
        case list():
            for part in value:
                yield from _texts(part)
        case _:
            pass
