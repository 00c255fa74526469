"""Responses to creates that no page documents: ids in other places, and statuses that gateways write."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from sora_chars import BlockedError, NoAnswerError, ProviderError
from sora_chars.providers import evolink_codec, heygen_codec, kling_codec, seedance_codec, vidu_codec, wavespeed_codec
from sora_chars.responses import Response

if TYPE_CHECKING:
    from collections.abc import Callable

READERS: dict[str, Callable[[Response], Any]] = {
    "wavespeed": partial(wavespeed_codec.read_element, provider="p"),
    "evolink": partial(evolink_codec.read_element, provider="p"),
    "kling": partial(kling_codec.read_created, provider="p"),
    "vidu": partial(vidu_codec.read_created, provider="p"),
    "seedance": partial(seedance_codec.read_created, asset_type="Video", provider="p"),
    "heygen": partial(heygen_codec.read_created, model="m", provider="p"),
}


def respond(status: int, body: object) -> Response:
    """Return a response with a JSON body, or with the bytes themselves."""
    return Response(status, {}, body if isinstance(body, bytes) else json.dumps(body).encode())


@pytest.mark.parametrize("status", [200, 201, 303, 400, 403, 429, 500, 504])
@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("wavespeed", {"code": "200", "data": {"id": "t1"}}),
        ("wavespeed", {"data": {"id": "t1"}}),
        ("wavespeed", {"id": "t1", "status": "created"}),
        ("evolink", {"data": {"id": "t1", "status": "pending"}}),
        ("evolink", {"id": "t1", "status": None}),
        ("kling", {"data": {"task_id": "t1"}}),
        ("kling", {"code": "0", "data": {"task_id": "t1"}}),
    ],
)
def test_an_id_in_an_unknown_envelope(name: str, body: object, status: int) -> None:
    """A gateway that leaves out or misspells the rest of its format has made the task that it names."""
    assert READERS[name](respond(status, body)).task_id == "t1"


@pytest.mark.parametrize("name", ["wavespeed", "evolink"])
def test_a_bare_id_of_a_success(name: str) -> None:
    """With a status of success, an id alone names the task."""
    assert READERS[name](respond(201, {"id": "t1"})).task_id == "t1"


@pytest.mark.parametrize("name", ["wavespeed", "evolink"])
@pytest.mark.parametrize(
    ("status", "body"),
    [(422, {"id": "request-1"}), (400, {"id": "request-1", "error": {"message": "bad"}}), (200, {"id": ["t1"]})],
)
def test_the_id_of_an_error(name: str, status: int, body: object) -> None:
    """An id beside an error is that of the HTTP request, and names no task."""
    with pytest.raises(ProviderError):
        READERS[name](respond(status, body))


@pytest.mark.parametrize("name", READERS)
def test_see_other_proves_nothing(name: str) -> None:
    """HTTP 303 answers a request that was carried out: the outcome is unknown, and nothing is sent again."""
    with pytest.raises(NoAnswerError, match="303"):
        READERS[name](respond(303, b""))


@pytest.mark.parametrize("name", READERS)
def test_other_redirects_are_rejections(name: str) -> None:
    """HTTP 307 names another address for the same request, which was not carried out."""
    with pytest.raises(BlockedError, match="redirect"):
        READERS[name](respond(307, b""))
