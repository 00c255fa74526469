"""The format and the signature of kie.ai's callbacks."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sora_chars import CallbackEvent, InvalidCallbackError
from sora_chars.providers.kie_callback import verify

if TYPE_CHECKING:
    from collections.abc import Mapping

NOW = 1_795_000_000.0
KEY = "whsec"
RECORD: Mapping[str, Any] = {
    "taskId": "t1",
    "model": "sora-2-characters-pro",
    "state": "success",
    "resultJson": '{"character_id": "ch_1"}',
}


def body(data: object = RECORD, **envelope: object) -> bytes:
    """Return the bytes of a callback."""
    return json.dumps({"code": 200, "msg": "ok", "data": data} | envelope).encode()


def signed(task_id: str = "t1", at: float = NOW, key: str = KEY) -> dict[str, str]:
    """Return the headers of kie.ai's signature."""
    timestamp = str(int(at))
    digest = hmac.new(key.encode(), f"{task_id}.{timestamp}".encode(), hashlib.sha256).digest()
    return {"x-webhook-timestamp": timestamp, "x-webhook-signature": base64.b64encode(digest).decode()}


def read(content: bytes, headers: Mapping[str, str] | None = None, key: str | bytes | None = None) -> CallbackEvent:
    """Verify a callback that arrives now."""
    return verify(headers or {}, content, now=NOW, hmac_key=key)


def rejection(content: bytes, headers: Mapping[str, str] | None = None, key: str | None = None) -> int:
    """Return the status with which a callback that arrives now is rejected."""
    with pytest.raises(InvalidCallbackError) as caught:
        read(content, headers, key)
    return caught.value.status


def test_success() -> None:
    """A success gives the character that its sender claims, and the code and message of the envelope."""
    event = read(body())
    assert event.snapshot is not None
    assert event.snapshot.character is not None
    assert (event.task_id, event.code, event.message) == ("t1", 200, "ok")
    assert (event.snapshot.task_id, event.snapshot.provider, event.snapshot.character.id) == ("t1", "kie", "ch_1")
    assert event.raw["data"] == RECORD


def test_failure() -> None:
    """The state decides, not the code: a failure can have code 200."""
    event = read(body({"taskId": "t1", "state": "fail", "failCode": "500", "failMsg": "no", "resultJson": None}))
    assert event.snapshot is not None
    assert event.snapshot.failure is not None
    assert (event.code, event.snapshot.state, event.snapshot.failure.code) == (200, "fail", "500")


def test_message() -> None:
    """Older pages write `message` for `msg`; values of another type are ignored."""
    assert read(body(msg=None, message="old")).message == "old"
    event = read(body(msg=["no", "text"], code="200"))
    assert (event.message, event.code) == ("", None)


def test_success_without_character() -> None:
    """A success without a character gives an event without a snapshot; the poll reports what is wrong."""
    event = read(body({**RECORD, "resultJson": "{}"}))
    assert (event.task_id, event.snapshot) == ("t1", None)


@pytest.mark.parametrize(
    "content",
    [
        {"data": {"taskId": "t1", "task_id": "t2"}, "taskId": "t3", "task_id": "t4"},
        {"data": {"task_id": "t1"}, "taskId": "t3", "task_id": "t4"},
        {"data": {"taskId": ""}, "taskId": "t1", "task_id": "t4"},
        {"data": {"taskId": True}, "task_id": "t1"},
        {"data": None, "taskId": "t1", "state": "success"},
        {"task_id": "t1"},
    ],
)
def test_task_id_places(content: object) -> None:
    """The id is the first valid one of data.taskId, data.task_id, taskId and task_id, also in the snapshot."""
    event = read(json.dumps(content).encode())
    assert event.task_id == "t1"
    assert event.snapshot is not None
    assert event.snapshot.task_id == "t1"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe\x00",
        b"{",
        b"[1]",
        b"null",
        b'{"taskId": NaN}',
        b"[" * 100_000,
        b'{"n": ' + b"9" * 5000 + b', "taskId": "t1"}',
        b"{}",
        body(None),
        body({"taskId": None}),
        body({"taskId": ["t1"]}),
        body({"taskId": ""}),
        body({"taskId": "t\n1"}),
        body({"taskId": "\ud800"}),
        body({"taskId": "t" * 201}),
    ],
    ids=range(16),
)
def test_junk(content: bytes) -> None:
    """A body that is not a JSON object, or has no printable task id, is rejected with 400."""
    assert rejection(content) == 400


def claim(event: CallbackEvent, *, deeper: int) -> str | None:
    """Return the task id of the claim, read some calls further down the stack."""
    if deeper:
        return claim(event, deeper=deeper - 1)
    return event.snapshot.task_id if event.snapshot else None


def test_any_depth() -> None:
    """Any depth of nesting, also just below the limit of the parser, gives an event or a rejection."""
    for field in ("resultJson", "state", "param"):
        for depth in range(850, 1100):
            nested = b"[" * depth + b"]" * depth
            content = b'{"model":"sora-2-characters","state":"success","taskId":"t1","%s":%s}' % (
                field.encode(),
                nested,
            )
            try:
                assert claim(read(content), deeper=30) in {"t1", None}
            except InvalidCallbackError as error:
                assert error.status == 400  # noqa: PT017 # most depths raise nothing


@pytest.mark.parametrize("key", [KEY, KEY.encode()])
@pytest.mark.parametrize("age", [-300, 0, 300])
def test_signature_within_tolerance(key: str | bytes, age: int) -> None:
    """A correct signature is valid from 300 s before to 300 s after its time."""
    assert read(body(), signed(at=NOW - age), key).task_id == "t1"


@pytest.mark.parametrize("age", [-301, 301])
def test_replay(age: int) -> None:
    """A correct signature is rejected with 401 outside the tolerance."""
    assert rejection(body(), signed(at=NOW - age), KEY) == 401


GOOD = signed()


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-webhook-timestamp": GOOD["x-webhook-timestamp"]},
        {"x-webhook-signature": GOOD["x-webhook-signature"]},
        signed(key="another"),
        signed(task_id="t2"),
        GOOD | {"x-webhook-timestamp": str(int(NOW) + 1)},
        GOOD | {"x-webhook-timestamp": f" {int(NOW)}"},
        GOOD | {"x-webhook-timestamp": f"{int(NOW)}\n"},
        GOOD | {"x-webhook-timestamp": "١٧٩٥٠٠٠٠٠٠"},
        GOOD | {"x-webhook-timestamp": "9" * 5000},
        GOOD | {"x-webhook-timestamp": f"-{int(NOW)}"},
        GOOD | {"x-webhook-timestamp": "nan"},
        GOOD | {"x-webhook-signature": ""},
        GOOD | {"x-webhook-signature": "é" * 44},
        GOOD | {"x-webhook-signature": "\udcff"},
        GOOD | {"x-webhook-signature": GOOD["x-webhook-signature"].rstrip("=")},
        GOOD | {"x-webhook-signature": GOOD["x-webhook-signature"].swapcase()},
    ],
    ids=range(17),
)
def test_forgery(headers: Mapping[str, str]) -> None:
    """A missing, foreign or malformed signature or timestamp is rejected with 401."""
    assert rejection(body(), headers, KEY) == 401


@pytest.mark.parametrize("timestamp", ["١٧٩٥٠٠٠٠٠٠", "9" * 13, "9" * 5000], ids=["other digits", "13", "5000"])
def test_signed_invalid_timestamp(timestamp: str) -> None:
    """A timestamp that is not a number of seconds is rejected even if it is signed."""
    digest = hmac.new(KEY.encode(), f"t1.{timestamp}".encode(), hashlib.sha256).digest()
    headers = {"x-webhook-timestamp": timestamp, "x-webhook-signature": base64.b64encode(digest).decode()}
    assert rejection(body(), headers, KEY) == 401


def test_broken_clock() -> None:
    """A clock that returns NaN accepts no signature."""
    with pytest.raises(InvalidCallbackError):
        verify(signed(), body(), now=float("nan"), hmac_key=KEY)


def test_errors_hide_secrets() -> None:
    """The error shows neither the signature, nor the correct one, nor the key."""
    with pytest.raises(InvalidCallbackError) as caught:
        read(body(), signed(key="another"), KEY)
    shown = f"{caught.value!r} {caught.value}"
    for secret in (KEY, signed()["x-webhook-signature"], signed(key="another")["x-webhook-signature"]):
        assert secret not in shown


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NAMES = [
    "taskId", "task_id", "state", "model", "resultJson", "failCode", "failMsg", "param", "createTime", "completeTime",
    "creditsConsumed", "progress",
]  # fmt: skip
RECORDS = st.fixed_dictionaries(
    {}, optional={name: JSON | st.sampled_from(["t1", "success", "fail", RECORD["model"]]) for name in NAMES}
)
ENVELOPES = st.fixed_dictionaries({"data": RECORDS | JSON}, optional={"msg": JSON, "code": JSON, "taskId": JSON})


@given(
    content=st.binary()
    | JSON.map(lambda value: json.dumps(value).encode())
    | ENVELOPES.map(lambda value: json.dumps(value).encode()),
    timestamp=st.text() | st.just(GOOD["x-webhook-timestamp"]),
    signature=st.text() | st.just(GOOD["x-webhook-signature"]),
    key=st.none() | st.just(KEY),
)
@example(content=body(), timestamp=GOOD["x-webhook-timestamp"], signature="\udcff", key=KEY)
def test_any_input(content: bytes, timestamp: str, signature: str, key: str | None) -> None:
    """Any bytes as body and any text as header give an event or a rejection."""
    try:
        event = read(content, {"x-webhook-timestamp": timestamp, "x-webhook-signature": signature}, key)
    except InvalidCallbackError as error:
        assert error.status in {400, 401}  # noqa: PT017 # both are valid
    else:
        assert event.task_id
        assert event.snapshot is None or event.snapshot.task_id == event.task_id
        assert key is None or signature == GOOD["x-webhook-signature"]
