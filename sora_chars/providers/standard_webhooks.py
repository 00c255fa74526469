"""Signatures of callbacks by the specification Standard Webhooks, as plain functions.

Source: standardwebhooks.com, "Verifying webhook authenticity".
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from typing import TYPE_CHECKING

from sora_chars.errors import ConfigurationError, InvalidCallbackError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_PREFIX = "whsec_"


def webhook_key(secret: str) -> bytes:
    """Return the key in a secret: the base64 after "whsec_".

    Raises:
        ConfigurationError: It is no such secret.
    """
    text = secret.strip().removeprefix(_PREFIX)
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not key:
        raise ConfigurationError('webhook_secret must be "whsec_" and base64.', hint="Copy it from the provider.")
    return key


def plain_key(secret: str) -> bytes:
    """Return the key in a secret of a provider that takes the text after "whsec_" as it is.

    Raises:
        ConfigurationError: There is no text.
    """
    key = secret.strip().removeprefix(_PREFIX).encode()
    if not key:
        raise ConfigurationError('webhook_secret must be "whsec_" and text.', hint="Copy it from the provider.")
    return key


def check_signature(
    headers: Mapping[str, str],
    body: bytes,
    *,
    key: bytes,
    now: float,
    tolerance: float,
    version: str = "v1",
    encode: Callable[[bytes], bytes] = base64.b64encode,
) -> None:
    """Check HMAC-SHA256 over `id.timestamp.body`, in constant time. Any of several signatures may match.

    Args:
        headers: Names in lower case, or a mapping that ignores case.
        body: The whole body, as it was received.
        key: The key in the secret.
        now: Current time in seconds since the epoch.
        tolerance: Seconds by which the signed timestamp may differ from `now`.
        version: The version that stands before each signature.
        encode: How a digest is written in the header.

    Raises:
        InvalidCallbackError: Status 401. The signature or the timestamp is missing or wrong.
    """
    id_ = headers.get("webhook-id", "")
    timestamp = headers.get("webhook-timestamp", "")
    if not id_ or not re.fullmatch("[0-9]{1,12}", timestamp):
        raise InvalidCallbackError("Callback rejected: it is not signed.", status=401)
    signed = b".".join((id_.encode(errors="replace"), timestamp.encode(), body))
    expected = version.encode() + b"," + encode(hmac.digest(key, signed, hashlib.sha256))
    if not any([_matches(given, expected) for given in headers.get("webhook-signature", "").split(" ")]):  # noqa: C419 # all are compared
        raise InvalidCallbackError("Callback rejected: its signature is wrong.", status=401)
    if not abs(now - int(timestamp)) <= tolerance:  # also rejects a `now` that is NaN
        raise InvalidCallbackError("Callback rejected: its timestamp is too old or too far ahead.", status=401)


def _matches(given: str, expected: bytes) -> bool:
    # Compared as bytes: compare_digest raises TypeError for text that is not ASCII.
    return hmac.compare_digest(given.encode(errors="replace"), expected)
