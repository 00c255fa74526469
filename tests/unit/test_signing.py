"""Signatures over requests."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

from sora_chars.signing import JwtSigner, encode_jwt, header, sign_request


def decoded(part: str) -> Any:
    """Decode a part of a JWT."""
    return json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))


def test_jwt() -> None:
    """Each request has a new token with the documented claims, which ends after half an hour."""
    times = iter((1000.9, 1001.0))
    sign = JwtSigner("access", "secret", clock=lambda: next(times))
    first, second = (sign("GET", "https://a.example/", {}, b"")["Authorization"] for _ in range(2))
    head, claims, _ = first.removeprefix("Bearer ").split(".")
    assert decoded(head) == {"alg": "HS256", "typ": "JWT"}
    assert decoded(claims) == {"iss": "access", "exp": 2800, "nbf": 995}
    assert first != second


def test_the_keys_of_a_jwt_are_secrets() -> None:
    """The access key is in no header as it is, and is a secret of the request as the JWT is."""
    sign = JwtSigner("access-0123456789", "secret-0123456789")
    secrets = sign_request(sign, "GET", "https://a.example/", {"headers": {}})
    assert secrets[1:] == ["access-0123456789", "secret-0123456789"]
    assert secrets[0].startswith("eyJ")
    assert "0123456789" not in repr(sign)


def test_jwt_vector() -> None:
    """The token equals one that was computed step by step from RFC 7515."""
    text = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJpc3MiOiJhayIsImV4cCI6MTgwMCwibmJmIjotNX0"
    digest = hmac.new(b"sk", text.encode(), hashlib.sha256).digest()
    signature = base64.urlsafe_b64encode(digest).decode().rstrip("=")
    assert encode_jwt({"iss": "ak", "exp": 1800, "nbf": -5}, "sk") == f"{text}.{signature}"


def test_signs_what_is_sent() -> None:
    """A signer sees the method, the whole URL, the headers and the bytes of the body."""
    seen: list[tuple[object, ...]] = []

    def sign(method: str, url: str, headers: Any, body: bytes) -> dict[str, str]:
        seen.append((method, url, dict(headers), body))
        return {"Authorization": "HMAC-SHA256 Credential=short, Signature=0123456789abcdef0123", "X-Date": "1"}

    options: dict[str, Any] = {"headers": {"User-Agent": "x"}, "json": {"a": 1}, "params": {"page": 2}}
    secrets = sign_request(sign, "POST", "https://a.example/b?c=d", options)
    headers = {"User-Agent": "x", "Content-Type": "application/json"}
    assert seen == [("POST", "https://a.example/b?c=d&page=2", headers, b'{"a": 1}')]
    assert options["data"].getvalue() == b'{"a": 1}'
    assert "json" not in options
    assert options["headers"] == headers | {"Authorization": sign("", "", {}, b"")["Authorization"], "X-Date": "1"}
    assert secrets == ["0123456789abcdef0123"]


def test_constant_header() -> None:
    """A constant header is a signature that covers nothing."""
    options: dict[str, Any] = {"headers": {}}
    assert sign_request(header("X-Api-Key", "k" * 16), "GET", "https://a.example/", options) == ["k" * 16]
    assert options == {"headers": {"X-Api-Key": "k" * 16}}
