"""One entry of the ledger: the request recorded under a key, and its outcome."""

from __future__ import annotations

import json
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal

import attrs

from sora_chars.errors import InvalidTransitionError, KeyConflictError, LedgerError, UnreadableEntryError, printable
from sora_chars.redaction import mask, masked_repr, seal

from .states import ENDED, RESTARTS, EntryState, check_transition

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from sora_chars.models import Character, TaskSnapshot, Voice

Lookup = Literal["key", "task", "token"]
"""What an entry is found by: its key, its provider and task id, or its token's digest.

The last two also find an entry by its earlier attempts.
"""

_OWNED_STATES = {EntryState.SENDING, EntryState.RUNNING}
_PAID_STATES = _OWNED_STATES | {EntryState.SUCCEEDED, EntryState.DELETED, EntryState.UNKNOWN}
_MAX_SHOWN_CHARACTERS = 160  # of a request or a value in an error message
_encoder = json.JSONEncoder(sort_keys=True, separators=(",", ":"))  # json.dumps would build one per call


def to_json(value: object) -> str:
    """Encode a value as canonical JSON: equal values give equal text, in plain ASCII."""
    return _encoder.encode(value)


def current_form(kind: str, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return kind and fields of a recorded request as this version records them.

    Earlier versions recorded a request for a character from an image as kind "omni".
    """
    if kind != "omni" or "image" not in request:
        return kind, request
    fields = {
        "images": [request["image"]],
        "name": request.get("name"),
        "prompt": request.get("descriptions"),
        "voice": ",".join(request.get("audio_ids", ())) or None,
    }
    return "character", {name: value for name, value in fields.items() if value is not None}


def parse(key: str, text: str) -> Any:
    """Parse the JSON text of an entry.

    Raises:
        UnreadableEntryError: It is no JSON.
    """
    try:
        return json.loads(text)
    except ValueError as error:
        raise unreadable(key, error) from error


def _reason(key: str, text: str | None) -> dict[str, Any] | None:
    """Return a recorded error. One that another program wrote as text becomes the message of one."""
    reason = None if text is None else parse(key, text)
    return reason if reason is None or isinstance(reason, dict) else {"message": str(reason)}


def unreadable(key: str, error: Exception) -> UnreadableEntryError:
    """Return the error for an entry that another program has written."""
    return UnreadableEntryError(
        f"The ledger's entry of key {key} cannot be read ({type(error).__name__}: {printable(error)}).",
        hint="A newer version of sora-chars or another program wrote it. Update sora-chars, or correct the entry.",
        key=key,
    )


@attrs.frozen(kw_only=True)
class Entry:
    """A request recorded under a key, and its outcome.

    Entries are immutable: every transition makes a new one, with the next `version`.

    Attributes:
        key: The idempotency key, unique in a ledger.
        provider: The name of the provider that the request is for.
        kind: The kind of request: "character", "task" or "voice"; "omni" in entries of earlier
            versions, which `current_form` reads.
        state: What is known of the request; see `EntryState`.
        request_json: The request as JSON text; `request` is its value. Once the entry has
            succeeded, and is never sent again, a digest replaces the secret parts of links.
        token_digest: The SHA-256 digest of the token in its callback URL, if any.
        task_id: The provider's id of the task, once it is known.
        owner: The process that sends the request or polls the task; None if no
            process does.
        result_json: The result as JSON text, once the task has ended; `result` is
            its value.
        error_json: Why the request was rejected, has failed or is unknown, as JSON
            text; `error` is its value.
        credits: What the task cost, as the provider counts it.
        created_at: When the key was registered, in epoch seconds of the clock of the
            process that did it.
        updated_at: When the entry changed last, in the same way.
        version: Starts at 1 and grows by 1 with every transition.
        meta_json: The user's own facts as JSON text; `meta` is their value.
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
    error_json: str | None = attrs.field(default=None, repr=masked_repr)
    credits: float | None = None
    created_at: float
    updated_at: float
    version: int = 1
    meta_json: str | None = attrs.field(default=None, repr=False)

    @property
    def request(self) -> Any:
        """The recorded request."""
        return parse(self.key, self.request_json)

    @property
    def result(self) -> Any:
        """The recorded result, or None."""
        return None if self.result_json is None else parse(self.key, self.result_json)

    @property
    def error(self) -> Any:
        """The recorded reason why the request was rejected, failed or is unknown, or None."""
        return _reason(self.key, self.error_json)

    @property
    def meta(self) -> Any:
        """The user's own facts, which were registered with the request; an empty dict if there are none."""
        return {} if self.meta_json is None else parse(self.key, self.meta_json)

    @property
    def character(self) -> Character | None:
        """The recorded character, or None."""
        from .outcomes import character_of  # noqa: PLC0415 # it reads entries

        return character_of(self)

    def outcome(self) -> Character | Voice | TaskSnapshot:
        """Return the character, the voice or the finished snapshot of a `TaskRequest`.

        Raises:
            WaitTimeoutError: The request has not ended.
            SoraCharsError: Why there is no result; as `TaskHandle.result`.
        """
        from .outcomes import outcome_of  # noqa: PLC0415 # it reads entries

        return outcome_of(self)

    @property
    def may_have_been_paid(self) -> bool:
        """Whether this attempt may have been charged. A request is sent without being retried only if not."""
        return self.state in _PAID_STATES or (self.error or {}).get("charged", "no") != "no"

    def check_same_request(self, other: Entry) -> None:
        """Compare provider, kind and request with those of another entry.

        Raises:
            KeyConflictError: They differ.
        """
        same = self.request_json == other.request_json and self.kind == other.kind
        if not same:
            forms = (current_form(entry.kind, json.loads(seal(entry.request_json))) for entry in (self, other))
            same = next(forms) == next(forms)
        if self.provider != other.provider or not same:
            shown = self._request_summary()
            given = other._request_summary()
            raise KeyConflictError(
                f"Key {self.key} already belongs to another request. Recorded: {shown}. Given: {given}."
                f"{' They differ in a part that is not shown.' if shown == given else ''}",
                hint="A key identifies one request. Use a new key for a different request.",
                key=self.key,
                provider=self.provider,
                first=json.loads(mask(self.request_json)),
                second=json.loads(mask(other.request_json)),
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
        """Return the entry after a transition; nothing is written.

        Args:
            to: The new state.
            at: The time of the transition, in epoch seconds.
            owner: The process that owns the entry while it is sending or running. In
                every other state an entry has no owner.
            task_id: The provider's id of the task. None keeps the present one.
            token_digest: The digest of the callback's token. None keeps the present one.
            result: The result, a JSON value. The present one is not kept.
            error: The reason of a failure, a JSON value. The present one is not kept.
            credits: What the task cost. None keeps the present value.

        Raises:
            InvalidTransitionError: The state `to` may not follow the present one, the
                entry would run without a task id, or its task id would change.
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
        return Entry(  # on the hot path: attrs.evolve takes three times as long
            key=self.key,
            provider=self.provider,
            kind=self.kind,
            state=to,
            request_json=seal(self.request_json) if to is EntryState.SUCCEEDED else self.request_json,
            token_digest=token_digest or self.token_digest,
            task_id=task,
            owner=owner if to in _OWNED_STATES else None,
            result_json=None if result is None else to_json(result),
            error_json=None if error is None else to_json(error),
            credits=self.credits if credits is None else credits,
            created_at=self.created_at,
            updated_at=at,
            version=self.version + 1,
            meta_json=self.meta_json,
        )

    def texts(self) -> list[str]:
        """Return the text that a search finds: key, task id, and the values of request, result and `meta`, masked."""
        values = (*_texts(self.request), *_texts(self.result), *_texts(self.meta))
        return [self.key, self.task_id or "", *map(mask, values)]

    def restarted(self, to: EntryState, *, at: float, request: Mapping[str, Any] | None) -> Entry:
        """Return the entry at the start of another attempt, without task, result, error and cost.

        Raises:
            InvalidTransitionError: The entry may not restart from its state.
        """
        check_transition(self.key, self.state, to, RESTARTS)
        return attrs.evolve(
            self,
            state=to,
            request_json=self.request_json if request is None else to_json(request),
            token_digest=self.token_digest if to is EntryState.UNKNOWN else None,
            task_id=None,
            owner=None,
            result_json=None,
            error_json=None,
            credits=None,
            updated_at=at,
            version=self.version + 1,
        )

    def mentions(self, query: str) -> bool:
        """Search the text of this entry, ignoring case."""
        wanted = query.casefold()
        try:
            texts = self.texts()
        except UnreadableEntryError:
            texts = [self.key, self.task_id or ""]
        return any(wanted in text.casefold() for text in texts)

    def _request_summary(self) -> str:
        return f"{self.kind} at {self.provider} {printable(mask(self.request_json), limit=_MAX_SHOWN_CHARACTERS)}"


@attrs.frozen(kw_only=True)
class Attempt:
    """An earlier request of an entry, which a later one has replaced.

    Attributes:
        key: The idempotency key of the entry.
        number: Counts the attempts of an entry from 1; 0 before the attempt is stored.
        token_digest: The digest of the token in its callback URL, if any.
        task_id: The provider's id of its task, if there is one.
        provider: The name of the provider that the request was sent to.
        state: The state in which the attempt ended.
        request_json: The request as JSON text.
        result_json: The result as JSON text, if there is one.
        error_json: Why the request was rejected, has failed or is unknown, as JSON text.
        credits: What the task cost, as the provider counts it.
        ended_at: When the next attempt replaced this one, in epoch seconds.
    """

    key: str
    number: int = 0
    token_digest: str | None = attrs.field(default=None, repr=False)
    task_id: str | None = None
    provider: str
    state: EntryState
    request_json: str = attrs.field(repr=False)
    result_json: str | None = attrs.field(default=None, repr=False)
    error_json: str | None = None
    credits: float | None = None
    ended_at: float

    @property
    def error(self) -> Any:
        """The recorded reason why the attempt was rejected, failed or is unknown, or None."""
        return _reason(self.key, self.error_json)

    @classmethod
    def of(cls, entry: Entry, *, at: float) -> Attempt:
        """Return the present attempt of an entry, which ends at `at`."""
        copied = {name: getattr(entry, name) for name in ATTEMPT_COLUMNS if hasattr(entry, name)}
        return cls(**copied, ended_at=at)


COLUMNS = tuple(field.name for field in attrs.fields(Entry))
ATTEMPT_COLUMNS = tuple(field.name for field in attrs.fields(Attempt))
TRANSITION_COLUMNS = ("state", "owner", "result_json", "error_json", "credits", "updated_at", "version")
"""The columns that every transition writes."""
OCCASIONAL_COLUMNS = ("token_digest", "task_id", "request_json")
"""The columns that a transition may also write. Two have an index, which costs time to update; the last is long."""


def is_prunable(entry: Entry, before: float) -> bool:
    """Return whether an entry has ended, changed last before a time, and is no rejection that may have been paid."""
    in_doubt = entry.state is EntryState.REJECTED and entry.may_have_been_paid
    return entry.state in ENDED and entry.updated_at < before and not in_doubt


def column_getter(columns: Sequence[str]) -> Callable[[Entry | Attempt], tuple[Any, ...]]:
    """Return a function that reads two or more columns of an entry, or an attempt, as plain values."""
    # For every value that is not exactly a `str`, sqlite3 searches its adapters. For an
    # `EntryState` that would take 1 us per entry.
    return attrgetter(*("state._value_" if name == "state" else name for name in columns))


to_row = column_getter(COLUMNS)
to_attempt_row = column_getter(ATTEMPT_COLUMNS)


def from_row(row: Sequence[Any]) -> Entry:
    """Build an entry from a row in the order of `COLUMNS`."""
    values = dict(zip(COLUMNS, row, strict=True))
    try:
        values["state"] = EntryState(values["state"])
    except ValueError:  # a newer version of this package has written the row
        values["error_json"] = to_json({"message": f"this version does not know its state {values['state']}"})
        values["state"] = EntryState.UNKNOWN
    return Entry(**values)


def from_attempt_row(row: Sequence[Any]) -> Attempt:
    """Build an attempt from a row in the order of `ATTEMPT_COLUMNS`."""
    values = dict(zip(ATTEMPT_COLUMNS, row, strict=True))
    values["state"] = EntryState(values["state"])
    return Attempt(**values)


def check_storable(**texts: str | None) -> None:
    """Check that every store can record these texts.

    Raises:
        LedgerError: A text is empty or has an unprintable character.
    """
    for name, text in texts.items():
        if text is not None and not (text and text.isprintable()):
            shown = printable(repr(text), limit=_MAX_SHOWN_CHARACTERS)
            raise LedgerError(f"{name} must be printable text of at least one character, got {shown}.")


def _texts(value: Any) -> Iterator[str]:
    """Yield every string in a JSON value, except the names of fields."""
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
