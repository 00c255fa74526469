"""How requests are authenticated: a signature over each request, where a constant API key is not enough."""

from __future__ import annotations

import base64
import hashlib
import hmac
import io
import json
import re
import time
from typing import TYPE_CHECKING, Any

from yarl import URL

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Sign = Callable[[str, str, Mapping[str, str], bytes], Mapping[str, str]]
    """Returns the headers that authenticate a request, given its method, URL, headers and body."""

_MIN_SECRET_LENGTH = 16  # characters; a shorter word of a header is no secret
_JWT_SECONDS = 1800
_JWT_EARLY_SECONDS = 5


def header(name: str, value: str) -> Sign:
    """Return a signer that sends a constant header."""
    headers = {name: value}
    return lambda _method, _url, _headers, _body: headers


def sign_request(sign: Sign, method: str, url: str, options: dict[str, Any]) -> Sequence[str]:
    """Add the headers of a signer to the options of aiohttp's request, and return the secrets in them.

    A JSON body is encoded here, because a signature covers its bytes. The body of an
    upload is not signed.
    """
    headers: dict[str, str] = options["headers"]
    body = b""
    if "json" in options:
        body = json.dumps(options.pop("json")).encode()
        headers["Content-Type"] = "application/json"
        options["data"] = io.BytesIO(body)  # aiohttp writes it in pieces; images may have megabytes
    signed = sign(method, str(URL(url).update_query(options.get("params") or {})), dict(headers), body)
    headers.update(signed)
    words = re.split(r"[\s,]+|\w+=(?=\w)|/(?=\d{8}/)", " ".join(signed.values()))  # a date follows an access key
    return [word for word in words if len(word) >= _MIN_SECRET_LENGTH]


def jwt_signer(access_key: str, secret_key: str, *, clock: Callable[[], float] = time.time) -> Sign:
    """Return a signer that makes a new JWT for each request: HS256, valid for 30 minutes.

    Source: Kling docs, "Authentication" of access and secret keys.
    """

    def sign(_method: str, _url: str, _headers: Mapping[str, str], _body: bytes) -> dict[str, str]:
        now = int(clock())
        claims = {"iss": access_key, "exp": now + _JWT_SECONDS, "nbf": now - _JWT_EARLY_SECONDS}
        return {"Authorization": f"Bearer {encode_jwt(claims, secret_key)}"}

    return sign


def encode_jwt(claims: Mapping[str, Any], secret_key: str) -> str:
    """Return a JSON Web Token of RFC 7519 with the algorithm HS256. A library would bring asymmetric ones too."""
    parts = [json.dumps(part, separators=(",", ":")).encode() for part in ({"alg": "HS256", "typ": "JWT"}, claims)]
    text = b".".join(map(_base64url, parts))
    return (text + b"." + _base64url(hmac.digest(secret_key.encode(), text, hashlib.sha256))).decode()


def _base64url(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
