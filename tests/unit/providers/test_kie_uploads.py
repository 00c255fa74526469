"""When a character of kie.ai may end with the upload that it was made from."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sora_chars.providers.kie_codec import read_record
from sora_chars.providers.kie_uploads import SHORTEST_LIFETIME, expires_at
from sora_chars.responses import Response

NAME = "0123456789abcdef0123456789abcdef"
UPLOAD = f"https://tempfile.example/kieai/100000/sora-chars/{NAME}.mp4"


@pytest.mark.parametrize(
    ("url", "is_upload"),
    [
        (UPLOAD, True),
        (UPLOAD.removesuffix(".mp4"), True),
        (UPLOAD.replace(NAME, NAME + "0"), False),
        (UPLOAD.replace(NAME, NAME[:-1]), False),
        (UPLOAD.replace("/sora-chars/", "/other/"), False),
        ("https://clips.example/rex.mp4", False),
    ],
)
def test_uploads_are_known_by_their_urls(url: str, is_upload: object) -> None:
    """The files of this package's uploads are told from others, also in JSON inside JSON."""
    request = {"input": json.dumps({"character_file_url": [url]})}
    for form in (request, json.dumps(request)):
        assert (expires_at(form, 1000.0) == 1000.0 + SHORTEST_LIFETIME) is is_upload
        assert expires_at(form, None) is None


@pytest.mark.parametrize(("url", "expected"), [(UPLOAD, 1_000.0 + 24 * 3600), ("https://clips.example/rex.mp4", None)])
def test_records(url: str, expected: float | None) -> None:
    """The record of a task repeats its request, so any process knows when the character may end."""
    data: dict[str, Any] = {
        "taskId": "t1",
        "model": "sora-2-characters",
        "state": "success",
        "param": json.dumps({"input": json.dumps({"character_file_url": [url]}), "model": "sora-2-characters"}),
        "resultJson": json.dumps({"resultObject": {"character_id": "ch_1"}}),
        "createTime": 1_000_000,
    }
    body = json.dumps({"code": 200, "msg": "success", "data": data}).encode()
    snapshot = read_record(Response(200, {}, body), task_id="t1", provider="kie")
    assert snapshot.character
    assert snapshot.character.expires_at == expected
