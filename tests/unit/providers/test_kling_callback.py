"""Callbacks of Kling: both forms, and their signature."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from sora_chars import CallbackEvent, InvalidCallbackError, Kling

SECRET = "whsec_dGVzdHNlY3JldHRlc3RzZWNyZXR0ZXN0c2VjcmV0MTI="
BODY = b'{"id":"1234567890","status":"succeeded","message":"","create_time":1781080778802,"update_time":1781080794151}'
NOW = 1781080794
SIGNED = {
    "webhook-id": "9876543210",
    "webhook-timestamp": str(NOW),
    "webhook-signature": "v1,UsKlJP00XoQyOn410NM9xv34sP+Gl0jnOO9Lcpr7NJ4=",
}


def read(
    headers: dict[str, str], body: bytes = BODY, *, now: float = NOW, secret: str | None = SECRET
) -> CallbackEvent:
    """Read a callback."""
    return Kling("key", webhook_secret=secret).read_callback(headers, body, now=now, tolerance=300)


def test_published_vector() -> None:
    """The signature that Kling publishes is accepted."""
    assert read(SIGNED).task_id == "1234567890"


@pytest.mark.parametrize("now", [NOW - 300, NOW + 300])
def test_timestamps_within_the_tolerance(now: float) -> None:
    """Five minutes either way are accepted."""
    assert read(SIGNED, now=now).provider == "kling"


@pytest.mark.parametrize(
    ("change", "body", "now"),
    [
        ({}, BODY, NOW + 301),
        ({}, BODY, NOW - 301),
        ({}, BODY, float("nan")),
        ({}, BODY + b" ", NOW),
        ({"webhook-id": "9876543211"}, BODY, NOW),
        ({"webhook-id": ""}, BODY, NOW),
        ({"webhook-timestamp": str(NOW + 1)}, BODY, NOW),
        ({"webhook-timestamp": "soon"}, BODY, NOW),
        ({"webhook-timestamp": ""}, BODY, NOW),
        ({"webhook-signature": ""}, BODY, NOW),
        ({"webhook-signature": "ключ"}, BODY, NOW),
        ({"webhook-signature": "v2" + SIGNED["webhook-signature"][2:]}, BODY, NOW),
        ({"webhook-signature": SIGNED["webhook-signature"][3:]}, BODY, NOW),
        ({"webhook-signature": SIGNED["webhook-signature"][:-2] + "A="}, BODY, NOW),
    ],
)
def test_forgery(change: dict[str, str], body: bytes, now: float) -> None:
    """A changed body, header, time or signature is rejected with 401."""
    with pytest.raises(InvalidCallbackError) as caught:
        read(SIGNED | change, body, now=now)
    assert caught.value.status == 401
    assert SIGNED["webhook-signature"] not in str(caught.value)


def test_another_secret() -> None:
    """A signature by another secret is rejected."""
    with pytest.raises(InvalidCallbackError):
        read(SIGNED, secret="whsec_" + base64.b64encode(b"another").decode())


@pytest.mark.parametrize("place", ["first", "last"])
def test_rotation(place: str) -> None:
    """During a rotation several signatures come, and any match counts."""
    other = "v1,AAAAJP00XoQyOn410NM9xv34sP+Gl0jnOO9Lcpr7NJ4="
    both = [SIGNED["webhook-signature"], other]
    headers = SIGNED | {"webhook-signature": " ".join(both if place == "first" else both[::-1])}
    assert read(headers).task_id == "1234567890"


def test_no_secret() -> None:
    """Without a secret the token in the URL alone authenticates the sender."""
    assert read({}, secret=None).task_id == "1234567890"


RESULT = {"elements": [{"element_id": 856528387816046601, "element_name": "Rex"}]}
RECORD: dict[str, Any] = {"task_id": "t1", "task_status": "succeed", "task_status_msg": "", "task_result": RESULT}


@pytest.mark.parametrize(
    ("body", "status", "character_id"),
    [
        (RECORD, "succeeded", "856528387816046601"),
        ({"code": 0, "data": RECORD}, "succeeded", "856528387816046601"),
        ({"id": "t1", "status": "succeeded", "outputs": RESULT["elements"]}, "succeeded", "856528387816046601"),
        ({"task_id": "t1", "task_status": "processing"}, "running", None),
        ({"id": "t1", "status": "processing", "message": "queued"}, "running", None),
        ({"task_id": "t1", "task_status": "failed", "task_status_msg": "no face"}, "failed", None),
        ({"id": "t1", "status": "failed", "message": "no face"}, "failed", None),
    ],
)
def test_both_forms(body: dict[str, Any], status: str, character_id: str | None) -> None:
    """The record of older routes and the event of newer ones claim the same, at any change of the state."""
    event = read({}, json.dumps(body).encode(), secret=None)
    snapshot = event.snapshot
    assert snapshot is not None
    assert (event.task_id, snapshot.status) == ("t1", status)
    assert (snapshot.character.id if snapshot.character else None) == character_id
    assert event.raw == body


def test_claim_without_an_element() -> None:
    """A success without an element claims nothing; its poll reports it."""
    assert read({}, b'{"task_id":"t1","task_status":"succeed"}', secret=None).snapshot is None


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'"t1"', b"{}", b'{"id":""}', b'{"task_id":"a\\nb"}', b'{"data":{}}', b'{"data":[1]}']
)
def test_junk(body: bytes) -> None:
    """A body without a task id is rejected with 400."""
    with pytest.raises(InvalidCallbackError) as caught:
        read({}, body, secret=None)
    assert caught.value.status == 400
