"""Requests for something other than a character, and what holds for the requests of every kind."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Required, TypedDict

import attrs

from sora_chars.errors import InvalidRequestError, printable
from sora_chars.ids import strip_blanks
from sora_chars.redaction import masked_repr

from .requests import FIELDS, CharacterRequest, key_problems, raise_if_invalid, type_problems, unknown_fields
from .sources import Source, source_problems, to_source

if TYPE_CHECKING:
    from collections.abc import Mapping


class JobFields(TypedDict, total=False):
    """A row of `create_many` for kie.ai's job API: the fields of a `TaskRequest`, and optionally its provider."""

    model: Required[str]
    input: Mapping[str, Any]
    key: str | None
    provider: str | None


@attrs.frozen(kw_only=True)
class TaskRequest:
    """A request to any model of the kie.ai job API. Its result is the finished `TaskSnapshot`.

    Attributes:
        model: Name of the model, such as "wan/2-7-image".
        input: JSON object that the model takes. It is sent as it is.
        key: Idempotency key, as in `CharacterRequest`.

    Raises:
        InvalidRequestError: The model is missing, or the input is not a JSON object.
    """

    model: str
    input: Mapping[str, Any] = attrs.field(factory=dict, repr=masked_repr)
    key: str | None = attrs.field(default=None, converter=strip_blanks)

    def __attrs_post_init__(self) -> None:
        problems = key_problems(self.key)
        problems += type_problems("model", self.model, (str,), "text")
        if not str(self.model).strip():
            problems.append("model must not be empty")
        try:
            text = json.dumps(self.input, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            problems.append(f"input must be JSON: {error}")
        else:
            if not text.startswith("{"):
                problems.append(f"input must be a JSON object, got {type(self.input).__name__}")
        raise_if_invalid(problems, what="The task request")


@attrs.frozen(kw_only=True)
class VoiceRequest:
    """A request for a voice from a recording. Its result is a `Voice`.

    Attributes:
        source: http(s) URL or local path of a recording of one clean voice, which may be a
            video.
        name: Name of the voice.
        key: Idempotency key, as in `CharacterRequest`.

    Raises:
        InvalidRequestError: The source or the name is missing or has the wrong type.
    """

    source: Source = attrs.field(converter=to_source, repr=masked_repr)
    name: str
    key: str | None = attrs.field(default=None, converter=strip_blanks)

    def __attrs_post_init__(self) -> None:
        problems = source_problems("source", self.source) + key_problems(self.key)
        name: object = self.name
        if not (isinstance(name, str) and name.strip()):
            problems.append(f"name must be text and not empty, got {printable(repr(name), limit=60)}")
        raise_if_invalid(problems, what="The voice request")


_JOB_FIELDS = tuple(field.name for field in attrs.fields(TaskRequest))

Request = CharacterRequest | TaskRequest | VoiceRequest


def as_request(request: Request | None, fields: Mapping[str, Any]) -> Request:
    """Return `request`, or a `CharacterRequest` made of `fields`.

    Raises:
        InvalidRequestError: Both or neither were given, or a field is unknown or invalid.
    """
    if request is None:
        raise_if_invalid(unknown_fields(fields, FIELDS), what="The character request")
        return CharacterRequest(**fields)
    if fields or not isinstance(request, Request):
        given = f"{type(request).__name__} with {', '.join(fields) or 'no fields'}"
        raise InvalidRequestError(
            f"request must be a CharacterRequest, a TaskRequest or a VoiceRequest, or be given as fields; got {given}."
        )
    return request


def of_row(fields: Mapping[str, Any]) -> Request:
    """Return the request of a row: a `TaskRequest` if it has a model or an input, else a `CharacterRequest`.

    Raises:
        InvalidRequestError: A field is unknown or invalid.
    """
    if not fields.keys() & {"model", "input"}:
        return as_request(None, fields)
    problems = unknown_fields(fields, _JOB_FIELDS)
    problems += [] if "model" in fields else ["model must be given with input"]
    raise_if_invalid(problems, what="The task request")
    return TaskRequest(**fields)


def with_changes(request: Request, changes: Mapping[str, Any]) -> Request:
    """Return a request in which some fields have other values.

    Raises:
        InvalidRequestError: A field is unknown or invalid.
    """
    allowed = [field.name for field in attrs.fields(type(request)) if field.name != "key"]
    raise_if_invalid(unknown_fields(changes, allowed), what="The request")
    made: Request = attrs.evolve(request, **changes)
    return made
