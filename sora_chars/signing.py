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

import attrs
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
    known: Sequence[str] = getattr(sign, "secrets", ())  # those that no header shows as they are
    signed = sign(method, str(URL(url).update_query(options.get("params") or {})), dict(headers), body)
    headers.update(signed)
    words = re.split(r"[\s,]+|\w+=(?=\w)|/(?=\d{8}/)", " ".join(signed.values()))  # a date follows an access key
    return [word for word in (*words, *known) if len(word) >= _MIN_SECRET_LENGTH]


@attrs.frozen(repr=False)
class JwtSigner:
    """A signer that makes a new JWT for each request: HS256, valid for 30 minutes.

    Source: Kling docs, "Authentication" of access and secret keys.
    """

    access_key: str
    secret_key: str
    clock: Callable[[], float] = attrs.field(default=time.time, kw_only=True)

    def __call__(self, _method: str, _url: str, _headers: Mapping[str, str], _body: bytes) -> dict[str, str]:
        """Return the header of a request."""
        now = int(self.clock())
        claims = {"iss": self.access_key, "exp": now + _JWT_SECONDS, "nbf": now - _JWT_EARLY_SECONDS}
        return {"Authorization": f"Bearer {encode_jwt(claims, self.secret_key)}"}

    @property
    def secrets(self) -> tuple[str, str]:
        """The keys, which a JWT holds in another encoding or not at all. A provider's message may repeat them."""
        return self.access_key, self.secret_key


def encode_jwt(claims: Mapping[str, Any], secret_key: str) -> str:
    """Return a JSON Web Token of RFC 7519 with the algorithm HS256. A library would bring asymmetric ones too."""
    parts = [json.dumps(part, separators=(",", ":")).encode() for part in ({"alg": "HS256", "typ": "JWT"}, claims)]
    text = b".".join(map(_base64url, parts))
    return (text + b"." + _base64url(hmac.digest(secret_key.encode(), text, hashlib.sha256))).decode()


def _base64url(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
