"""Uploads of files with odd names, and URLs of uploads that cannot be sent on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sora_chars import HeyGen, NoAnswerError, Wavespeed
from sora_chars.providers.seedance_icover import read_presigned
from sora_chars.providers.wavespeed_codec import read_upload
from sora_chars.responses import Response
from tests.support.raw_server import KEY, http, responds, serving_raw

if TYPE_CHECKING:
    from collections.abc import Callable

ANSWER = {"code": 200, "data": {"download_url": "https://files.example/1", "asset_id": "https://files.example/1"}}
NAMES = [b"a\r\nX-Evil: 1.mp4", 'rex \N{DOG FACE} "1".mp4'.encode(), b"\xff\xfe.mp4", b"\n"]
PROVIDERS: list[Callable[..., Any]] = [Wavespeed, HeyGen]


@pytest.mark.parametrize("make", PROVIDERS)
@pytest.mark.parametrize("name", NAMES)
async def test_odd_names(tmp_path: Path, make: Callable[..., Any], name: bytes) -> None:
    """A name with line breaks, emoji, quotes or undecodable bytes is sent without what no header can hold."""
    path = Path(os.fsdecode(bytes(tmp_path) + b"/" + name))
    path.write_bytes(b"clip")
    server_answers = responds(http(json.dumps(ANSWER).encode()))
    async with serving_raw(server_answers) as server, make(KEY, base_url=server.url) as provider:
        assert await provider.upload(path) == "https://files.example/1"
    (request,) = server.requests
    assert b"\r\nX-Evil" not in request
    assert b'filename="' in request


@pytest.mark.parametrize("url", ["https://", "https://a.example/b c", "https://a.example/b\n", "javascript:x", None])
def test_urls_that_cannot_be_sent_on(url: str | None) -> None:
    """An upload without a whole URL fails, before anything is paid for with it."""
    uploaded = {"code": 200, "data": {"download_url": url}}
    with pytest.raises(NoAnswerError, match="no download_url"):
        read_upload(Response(200, {}, json.dumps(uploaded).encode()))
    presigned = {"code": 0, "data": {"uploadUrl": "https://a.example/", "publicUrl": url}}
    with pytest.raises(NoAnswerError, match="no address for the upload"):
        read_presigned(Response(200, {}, json.dumps(presigned).encode()), base_url="https://icover.ai")
