"""Callbacks of Wavespeed, with their own kind of signature, and of Evolink, which are not signed."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

import pytest

from sora_chars import CallbackEvent, Evolink, InvalidCallbackError, Wavespeed

SECRET = "whsec_e9EE3BdyXSxcB4ZyZUKjQUEoQX4sF9P1+eMpb/KluCM="
ID = "e6832d4abffb4d79bfbca19783fca133"
NOW = 1758798328
BODY = b'{"id":"e6832d4abffb4d79bfbca19783fca133","model":"m","outputs":[{"element_id":5}],"status":"completed"}'
# By `openssl dgst -sha256 -hmac`, as Wavespeed's page shows it, with the text after "whsec_" as the key.
SIGNATURE = "v3,f2ab577c2c4212c90af64b4cee74b5533a576da19b54c536a28e0ea88dad160a"
SIGNED = {"webhook-id": ID, "webhook-timestamp": str(NOW), "webhook-signature": SIGNATURE}


def read(
    headers: dict[str, str], body: bytes = BODY, *, now: float = NOW, secret: str | None = SECRET
) -> CallbackEvent:
    """Read a callback of Wavespeed."""
    return Wavespeed("key", webhook_secret=secret).read_callback(headers, body, now=now, tolerance=300)


def signed(body: bytes, *, key: bytes = SECRET[6:].encode(), id_: str = ID) -> dict[str, str]:
    """Return the headers that sign a body."""
    digest = hmac.new(key, f"{id_}.{NOW}.".encode() + body, hashlib.sha256).hexdigest()
    return SIGNED | {"webhook-id": id_, "webhook-signature": f"v3,{digest}"}


def test_signature() -> None:
    """A signature that the shell command of Wavespeed's page makes is accepted."""
    assert read(SIGNED).task_id == ID
    assert signed(BODY) == SIGNED


@pytest.mark.parametrize("now", [NOW - 300, NOW + 300])
def test_timestamps_within_the_tolerance(now: float) -> None:
    """Five minutes either way are accepted."""
    assert read(SIGNED, now=now).provider == "wavespeed"


@pytest.mark.parametrize(
    ("change", "body", "now"),
    [
        ({}, BODY, NOW + 301),
        ({}, BODY, NOW - 301),
        ({}, BODY, float("nan")),
        ({}, BODY + b" ", NOW),
        ({"webhook-id": "another"}, BODY, NOW),
        ({"webhook-id": ""}, BODY, NOW),
        ({"webhook-timestamp": str(NOW + 1)}, BODY, NOW),
        ({"webhook-timestamp": "soon"}, BODY, NOW),
        ({"webhook-timestamp": ""}, BODY, NOW),
        ({"webhook-signature": ""}, BODY, NOW),
        ({"webhook-signature": "ключ"}, BODY, NOW),
        ({"webhook-signature": "v1" + SIGNATURE[2:]}, BODY, NOW),
        ({"webhook-signature": SIGNATURE[3:]}, BODY, NOW),
        ({"webhook-signature": SIGNATURE.upper()}, BODY, NOW),
        ({"webhook-signature": SIGNATURE[:-1]}, BODY, NOW),
        ({"webhook-signature": "v3," + base64.b64encode(bytes.fromhex("00")).decode()}, BODY, NOW),
    ],
)
def test_forgery(change: dict[str, str], body: bytes, now: float) -> None:
    """A changed body, header, time, version or signature is rejected with 401."""
    with pytest.raises(InvalidCallbackError) as caught:
        read(SIGNED | change, body, now=now)
    assert caught.value.status == 401
    assert SIGNATURE not in str(caught.value)


def test_keys() -> None:
    """The key is the text after the prefix as it is: neither the decoded text nor another secret fits."""
    for key in (base64.b64decode(SECRET[6:]), SECRET.encode(), b"another"):
        with pytest.raises(InvalidCallbackError):
            read(signed(BODY, key=key))


def test_signature_without_an_id() -> None:
    """A callback without an id is rejected, also if it is signed as such."""
    with pytest.raises(InvalidCallbackError, match="not signed"):
        read(signed(BODY, id_=""))


def test_the_form_of_standard_webhooks_is_rejected() -> None:
    """A digest in base64 is no signature of Wavespeed."""
    digest = bytes.fromhex(SIGNATURE[3:])
    for version in ("v1", "v3"):
        with pytest.raises(InvalidCallbackError):
            read(SIGNED | {"webhook-signature": f"{version},{base64.b64encode(digest).decode()}"})


def test_no_secret() -> None:
    """Without a secret the token in the URL alone authenticates the sender."""
    assert read({}, secret=None).task_id == ID


ELEMENT = {"element_id": 856528387816046601, "element_name": "Rex"}


@pytest.mark.parametrize(
    ("body", "status", "character_id", "message"),
    [
        ({"id": ID, "status": "completed", "outputs": [ELEMENT]}, "succeeded", "856528387816046601", ""),
        ({"data": {"id": ID, "status": "completed", "outputs": [json.dumps(ELEMENT)]}}, "succeeded", None, ""),
        ({"id": ID, "status": "failed", "error": "no face"}, "failed", None, "no face"),
        ({"id": ID, "status": "processing", "error": ""}, "running", None, ""),
        ({"id": ID, "status": "completed", "outputs": []}, None, None, ""),
    ],
)
def test_claims_of_wavespeed(body: dict[str, Any], status: str | None, character_id: str | None, message: str) -> None:
    """The record, bare or in an envelope, claims a result; a success without an element claims nothing."""
    event = read({}, json.dumps(body).encode(), secret=None)
    snapshot = event.snapshot
    assert (event.task_id, event.message, event.raw) == (ID, message, body)
    assert (snapshot.status if snapshot else None) == status
    if character_id:
        assert snapshot is not None
        assert snapshot.character is not None
        assert snapshot.character.id == character_id


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"id": "t1", "status": "completed", "result_data": ELEMENT}, "succeeded", ""),
        ({"id": "t1", "status": "failed", "error": {"message": "no face", "code": "x"}}, "failed", "no face"),
        ({"id": "t1", "status": "failed", "error": {"message": 5}}, "failed", ""),
        ({"id": "t1", "status": "cancelled"}, "failed", ""),
        ({"id": "t1", "status": "completed"}, None, ""),
    ],
)
def test_claims_of_evolink(body: dict[str, Any], status: str | None, message: str) -> None:
    """The body is the task, and needs no signature."""
    event = Evolink("key").read_callback({}, json.dumps(body).encode(), now=NOW, tolerance=300)
    snapshot = event.snapshot
    assert (event.task_id, event.provider, event.message) == ("t1", "evolink", message)
    assert (snapshot.status if snapshot else None) == status


@pytest.mark.parametrize("provider", [Wavespeed("key"), Evolink("key")])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"t1"',
        b"{}",
        b'{"id":""}',
        b'{"id":"a\\nb"}',
        b'{"id":true}',
        b'{"data":{}}',
        b'{"data":[1]}',
    ],
)
def test_junk(provider: Any, body: bytes) -> None:
    """A body without a task id is rejected with 400."""
    with pytest.raises(InvalidCallbackError) as caught:
        provider.read_callback({}, body, now=NOW, tolerance=300)
    assert caught.value.status == 400
