"""Fuzzing of the functions that read responses of providers."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sora_chars import SoraCharsError, TaskSnapshot
from sora_chars.providers import (
    evolink_codec,
    heygen_codec,
    kie_account,
    kling_codec,
    seedance_codec,
    wavespeed_codec,
)
from sora_chars.providers import kie_codec as codec
from sora_chars.providers.kkiai import read_character
from sora_chars.responses import Response

if TYPE_CHECKING:
    from collections.abc import Callable

READERS: dict[str, Callable[[Response], object]] = {
    "task id": codec.read_task_id,
    "record": partial(codec.read_record, task_id="t", provider="kie"),
    "omni": partial(codec.read_omni, provider="kie"),
    "upload": kie_account.read_upload,
    "credit": kie_account.read_credit,
    "models": kie_account.read_models,
    "character": partial(read_character, provider="kkiai"),
    "wavespeed create": partial(wavespeed_codec.read_element, provider="wavespeed"),
    "wavespeed poll": partial(wavespeed_codec.read_record, task_id="t", provider="wavespeed"),
    "evolink create": partial(evolink_codec.read_element, provider="evolink"),
    "evolink poll": partial(evolink_codec.read_record, task_id="t", provider="evolink"),
    "seedance create": partial(seedance_codec.read_created, asset_type="Video", provider="seedance"),
    "seedance poll": partial(seedance_codec.read_asset, task_id="t", provider="seedance"),
    "heygen create": partial(heygen_codec.read_created, model="m", provider="heygen"),
    "heygen poll": partial(heygen_codec.read_look, task_id="t", provider="heygen"),
    "kling poll": partial(kling_codec.read_record, task_id="t", provider="kling"),
}
KEYS = [
    *("code", "msg", "message", "data", "error", "message_zh", "type", "detail", "description"),
    *(
        "taskId",
        "state",
        "model",
        "param",
        "resultJson",
        "failCode",
        "failMsg",
        "costTime",
        "completeTime",
        "createTime",
    ),
    *("creditsConsumed", "progress", "input", "character_user_name", "character_id", "resultObject", "characterId"),
    *("character_id_list", "downloadUrl", "models", "title", "provider", "taskType"),
    *("id", "username", "display_name", "permalink", "profile_picture_url"),
    *("status", "outputs", "element_id", "created_at", "executionTime", "download_url", "balance"),
    *("created", "result_data", "elements", "user", "remaining_credits"),
    *("ResponseMetadata", "Result", "Error", "Code", "Message", "RequestId", "Items", "TotalCount", "Id", "Name"),
    *("Status", "AssetType", "CreateTime", "avatar_item", "avatar_type", "group_id", "next_token", "has_more", "name"),
]
WORDS = [
    "",
    "t",
    "success",
    "fail",
    "completed",
    "failed",
    "Active",
    "Failed",
    "pending_consent",
    "2026-09-25T09:12:48Z",
    "sora-2-characters",
    "recordInfo is null",
    "insufficient_quota",
    "{",
    "\ud800",
]
STATUSES = st.sampled_from([200, 201, 204, 302, 400, 401, 402, 403, 404, 408, 422, 429, 455, 500, 502, 524])
HEADERS = st.dictionaries(
    st.sampled_from(["Retry-After", "Content-Type"]), st.text() | st.sampled_from(["1e999", "nan"])
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**4000, -(10**4000), 2**63, 200, 408, 429, 501]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(), max_size=20),  # with lone surrogates
    st.sampled_from(WORDS),
)
JUNK = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), inner, max_size=8)
        | inner.map(lambda value: json.dumps(value, default=str))  # JSON in a string, as kie.ai sends it
    ),
    max_leaves=25,
)
RECORDS = st.fixed_dictionaries({"taskId": st.just("t")}, optional={key: JUNK for key in KEYS if key != "taskId"})
ENVELOPES = st.fixed_dictionaries(
    {"code": st.just(200) | JUNK, "data": RECORDS | JUNK}, optional={"msg": JUNK, "error": JUNK}
)


def read(reader: str, status: int, headers: dict[str, str], body: bytes) -> None:
    """Read a response: the result is a value, or an error of this package that can be shown."""
    try:
        value = READERS[reader](Response(status, headers, body))
        repr(value)
        if isinstance(value, TaskSnapshot):
            value.outcome()
    except SoraCharsError as error:
        shown = str(error)
    else:
        return
    assert shown.isprintable()
    assert len(shown) < 2000


@pytest.mark.parametrize("reader", READERS)
@given(status=STATUSES | st.integers(100, 599), headers=HEADERS, body=st.binary())
@settings(deadline=None)
def test_any_bytes(reader: str, status: int, headers: dict[str, str], body: bytes) -> None:
    """Any bytes under any status and headers give a value or an error of this package."""
    read(reader, status, headers, body)


@pytest.mark.parametrize("reader", READERS)
@given(status=STATUSES, headers=HEADERS, body=ENVELOPES | RECORDS | JUNK)
@settings(deadline=None)
def test_any_json(reader: str, status: int, headers: dict[str, str], body: Any) -> None:
    """So does JSON with the right members and wrong values."""
    read(reader, status, headers, json.dumps(body).encode())


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "member", ["code", "msg", "data", "error", "id", "state", "resultJson", "failMsg", "param", "models", "characterId"]
)
def test_any_depth(reader: str, member: str) -> None:
    """So does nesting of any depth, also just below the limit of the parser."""
    for depth in (*range(920, 990), 100_000):
        for opening, closing in ((b"[", b"]"), (b'{"error":', b"}")):
            nested = opening * depth + b"1" + closing * depth
            head = b'{"taskId":"t","state":"success","model":"sora-2-characters","%s":' % member.encode()
            read(reader, 200, {}, head + nested + b"}")
            read(reader, 200, {}, b'{"code":200,"data":' + head + nested + b"}}")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "body",
    [
        b'{"code":' + b"9" * 5000 + b"}",
        b'{"code":200,"data":' + b"9" * 5000 + b"}",
        b'{"code":200,"data":NaN}',
        b'{"code":1e999}',
        b'{"code":' + b"9" * 4000 + b"}",
        b'{"code":200,"data":{"taskId":"t","state":"fail","failCode":"' + b"\\n9" * 4000 + b'"}}',
        b'{"code":200,"data":{"taskId":"t","createTime":1e999}}',
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
        b'{"code":200,"code":401}',
        b'"\\ud800"',
        b"\x00" * 100_000,
    ],
    ids=["code", "digits", "nan", "infinite", "large", "long", "time", "bom", "utf-16", "double", "surrogate", "zeros"],
)
def test_known_json_traps(reader: str, body: bytes) -> None:
    """So does input that JSON parsers are known to fail on."""
    for status in (200, 400, 500):
        read(reader, status, {}, body)
