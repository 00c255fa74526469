"""The tree of errors, their texts and their pickles."""

from __future__ import annotations

import inspect
import pickle
import re
from typing import Any

import attrs
import pytest

from sora_chars import errors
from sora_chars.errors import (
    InvalidRequestError,
    NoAnswerError,
    RateLimitedError,
    RequestRejectedError,
    ServiceUnavailableError,
    SoraCharsError,
    WaitTimeoutError,
    printable,
)

FACTS: dict[str, Any] = {
    "message": "it went wrong",
    "hint": "Do this.",
    "problems": ("clip must span 1 to 4 seconds, got 9",),
    "provider": "kie",
    "status": 418,
    "code": "teapot",
    "request_id": "r-1",
    "retry_after": 2.5,
    "transient": True,
    "harmless": True,
    "creates_only": True,
    "key": "k-1",
    "task_id": "t-1",
    "snapshot": {"state": "fail"},
    "payload": {"resultUrls": []},
    "handle": "a handle",
    "first": {"from_task": "a"},
    "second": {"from_task": "b"},
    "entry": "an entry",
    "state": "running",
    "to": "pending",
    "charged": "maybe",
    "location": "https://portal.invalid/login",
}
ALL = sorted(
    (kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, SoraCharsError)),
    key=lambda kind: kind.__name__,
)


def documented_tree() -> dict[str, str | None]:
    """Read the tree in the docstring of the module: each class and its parent."""
    parents: dict[str, str | None] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"    ([ │├└─]*)(\w+Error)\b", line)
        if found:
            depth = len(found[1]) // 4
            name = found[2]
            path[depth:] = [name]
            parents[name] = path[depth - 1] if depth else None
    return parents


def make(kind: type[SoraCharsError]) -> SoraCharsError:
    """Make an error with every attribute that it can have."""
    return kind(**{field.name: FACTS[field.name] for field in attrs.fields(kind)})


def test_documented_tree() -> None:
    """The tree in the docstring names every class under its real parent."""
    real = {kind.__name__: None if kind is SoraCharsError else kind.__bases__[0].__name__ for kind in ALL}
    assert documented_tree() == real


@pytest.mark.parametrize("kind", ALL)
def test_pickle(kind: type[SoraCharsError]) -> None:
    """A pickled error keeps its class and all its attributes."""
    error = make(kind)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert {field.name: getattr(copy, field.name) for field in attrs.fields(kind)} == {
        field.name: FACTS[field.name] for field in attrs.fields(kind)
    }


@pytest.mark.parametrize("kind", ALL)
def test_text_and_repr(kind: type[SoraCharsError]) -> None:
    """The text of an error is its message and its hint; the repr is its class and its message."""
    error = make(kind)
    assert str(error) == "it went wrong. Do this."
    assert repr(error) == f"{kind.__name__}('it went wrong')"
    error.message = "did it go wrong?"
    assert str(error) == "did it go wrong? Do this."
    error.hint = ""
    assert str(error) == "did it go wrong?"


@pytest.mark.parametrize(
    ("kind", "transient", "harmless"),
    [
        (RateLimitedError, True, True),
        (ServiceUnavailableError, True, False),
        (NoAnswerError, True, False),
        (RequestRejectedError, False, False),
    ],
)
def test_transient_and_harmless(
    kind: type[errors.ProviderError],
    transient: bool,  # noqa: FBT001 # a column of the table
    harmless: bool,  # noqa: FBT001 # a column of the table
) -> None:
    """Only a rate limit is harmless by default, so nothing else repeats a paid request."""
    error = kind("no")
    assert (error.transient, error.harmless) == (transient, harmless)


def test_builtin_bases() -> None:
    """An invalid request is a ValueError and a timed-out wait is a TimeoutError."""
    assert isinstance(InvalidRequestError("x"), ValueError)
    assert isinstance(WaitTimeoutError("x"), TimeoutError)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("two\r\n \tin", "two in"),
        ("\x1b[31mred\x00\x07", "[31mred"),
        ("\u202eevil\ud800", "evil"),
        ("x" * 10, "x" * 10),
        ("x" * 11, "x" * 9 + "…"),
        ("\n" * 100 + "late", ""),
        (42, "42"),
    ],
    ids=["plain", "lines", "control", "invisible", "limit", "above", "bounded", "number"],
)
def test_printable(text: object, shown: str) -> None:
    """Text of unknown origin becomes one printable line of bounded length."""
    assert printable(text, limit=10) == shown


@pytest.mark.parametrize("kind", ALL)
def test_attributes_are_documented(kind: type[SoraCharsError]) -> None:
    """The docstring of each error lists the attributes that the class adds."""
    own = set(vars(kind).get("__annotations__", {}))
    if kind is not errors.ProviderError:
        own -= {"transient", "harmless"}  # other defaults for attributes of ProviderError
    if kind is not SoraCharsError:
        own -= {"charged"}
    assert own == set(re.findall(r"^    (\w+): ", inspect.getdoc(kind) or "", re.MULTILINE))
