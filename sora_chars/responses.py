"""A provider's response as bytes, and how its JSON is read."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_MAX_CODE = 999_999
GATEWAY_FAULTS = frozenset({408, 502, 504, *range(520, 528)})  # a proxy or a CDN writes these, not the provider


@attrs.frozen(eq=False, repr=False)
class Response:
    """A response: the HTTP status, the headers (case-insensitive) and the body, without the API key."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def is_success(self) -> bool:
        """Whether the HTTP status is one of 200 to 299."""
        return HTTPStatus.OK <= self.status < HTTPStatus.MULTIPLE_CHOICES

    @property
    def retry_after(self) -> float | None:
        """The `Retry-After` header in seconds; None if it is absent, a date, or longer than a day."""
        text = self.headers.get("Retry-After")
        try:
            seconds = -1.0 if text is None else float(text)
        except ValueError:
            return None
        return seconds if 0 <= seconds < 24 * 3600 else None  # false for NaN too

    @property
    def date(self) -> float | None:
        """The `Date` header in seconds since the epoch; None if it is absent or invalid."""
        try:
            return parsedate_to_datetime(self.headers.get("Date") or "").timestamp()
        except (ValueError, OverflowError):
            return None


def parse_json(body: bytes | str, *, exact_integers: bool = False) -> Any:
    """Read strict JSON, with orjson if it is installed. With orjson, integers beyond 64 bits become floats.

    Args:
        body: The text.
        exact_integers: Read integers of any size exactly, without orjson.

    Raises:
        ValueError: The text is not JSON, for any reason (encoding, depth, NaN, a number of a million digits).
    """
    text = body if isinstance(body, str) else body.decode(json.detect_encoding(body), "surrogatepass")
    # orjson rejects surrogates, and accepts deeper nesting than the rest of the package: json decides about both.
    if _fast and not exact_integers and text.count("[") + text.count("{") < _MAX_FAST_DEPTH:
        with suppress(ValueError):
            return _fast(text)
    try:
        return _DECODER.decode(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def json_object(response: Response, *, exact_integers: bool = False) -> dict[str, Any] | None:
    """Return the JSON object that a response holds, or None; see `parse_json`."""
    try:
        body = parse_json(response.body, exact_integers=exact_integers)
    except ValueError:
        return None
    return body if isinstance(body, dict) else None


def as_number(value: object) -> float | None:
    """Return a finite number from a number of JSON or its text; None for anything else."""
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def as_code(value: Any) -> int | None:
    """Return the code of an error in JSON; None for what is no integer of a code's size."""
    is_code = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _MAX_CODE
    return value if is_code else None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


_MAX_FAST_DEPTH = 500
_fast: Callable[[bytes | str], Any] | None = None
with suppress(ImportError):  # an extra
    import orjson

    _fast = orjson.loads

_DECODER = json.JSONDecoder(parse_constant=_no_constant)  # `json.loads` would create one for every call
