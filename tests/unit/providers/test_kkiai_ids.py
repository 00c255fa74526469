"""Where an answer of kkiai and its gateways may hold the id of a character."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sora_chars import MissingCharacterError, ProviderError
from sora_chars.providers.kkiai import read_character
from sora_chars.responses import Response

GOOD = {"id": "ch_1", "username": "rex.dog"}


def make_response(body: object, *, status: int = 200) -> Response:
    """Return a response with this JSON."""
    return Response(status, {}, json.dumps(body).encode())


@pytest.mark.parametrize("status", [302, 404, 500, 502])
def test_an_id_counts_whatever_the_status_is(status: int) -> None:
    """A character id is never thrown away, unless it stands beside an error."""
    assert read_character(make_response(GOOD, status=status), provider="kkiai").id == GOOD["id"]
    with pytest.raises(ProviderError):
        read_character(make_response({"id": "req-1", "message": "no"}, status=status), provider="kkiai")


@pytest.mark.parametrize(
    ("body", "character_id"),
    [
        ({"id": 123}, "123"),
        ({"id": " ch_1 "}, "ch_1"),
        ({"character_id": "ch_1"}, "ch_1"),
        ({"character": {"id": "ch_1"}}, "ch_1"),
        ({"result": {"character_id": 5}}, "5"),
        ({"code": 0, "data": {"character": {"id": "ch_1"}}}, "ch_1"),
        ({"code": 200, "msg": "ok", "data": [{"id": "ch_1"}]}, "ch_1"),
        ([GOOD], "ch_1"),
    ],
)
def test_an_id_counts_whatever_its_place_is(body: Any, character_id: str) -> None:
    """A character that was paid for is found in each envelope, also with a number as its id."""
    character = read_character(make_response(body), provider="kkiai")
    assert (character.id, character.raw) == (character_id, body)


@pytest.mark.parametrize(
    "body", [{"id": True}, {"id": ""}, {"data": [{"id": "a"}, {"id": "b"}]}, {"data": {}}, [[[[[GOOD]]]]]]
)
def test_a_success_without_one_id(body: Any) -> None:
    """A success that names no single character shows its payload, and may have been paid."""
    with pytest.raises(MissingCharacterError) as caught:
        read_character(make_response(body), provider="kkiai")
    assert caught.value.payload == body
