"""Requests and responses of kkiai and its gateways."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from sora_chars import (
    GATEWAYS,
    AuthenticationError,
    BlockedError,
    Character,
    CharacterRequest,
    ConfigurationError,
    InsufficientCreditsError,
    Kkiai,
    Limits,
    MissingCharacterError,
    ModelUnavailableError,
    NoAnswerError,
    PermissionDeniedError,
    ProviderError,
    RateLimitedError,
    RequestRejectedError,
    ServiceUnavailableError,
    TaskRequest,
)
from sora_chars.providers.kkiai import character_body, read_character
from sora_chars.responses import Response

if TYPE_CHECKING:
    from sora_chars.models import Request

GOOD = {
    "id": "ch_0123456789abcdef0123456789abcdef",
    "username": "hfspncadz.mooflapand",
    "permalink": "https://sora.chatgpt.com/profile/hfspncadz.mooflapand",
    "profile_picture_url": "https://videos.example/p.jpg?sig=1",
}
PAGE = b"<!doctype html><html><title>Gateway</title><div id=root></div></html>"


def make_response(body: object, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return a response with this body: bytes as they are, other values as JSON."""
    return Response(status, headers or {}, body if isinstance(body, bytes) else json.dumps(body).encode())


def read_error(body: object, *, status: int = 400, headers: dict[str, str] | None = None) -> ProviderError:
    """Return the error that a response with this body is read to."""
    with pytest.raises(ProviderError) as caught:
        read_character(make_response(body, status=status, headers=headers), provider="kkiai")
    return caught.value


# Requests


@pytest.mark.parametrize(
    ("fields", "body"),
    [
        (
            {"from_task": "video_e50c76ca-21d4-40e9-8485-e4ead2d37133", "clip": "1,3"},
            {"timestamps": "1,3", "from_task": "video_e50c76ca-21d4-40e9-8485-e4ead2d37133"},
        ),
        (
            {"from_task": "sora-2:task_01k6x15vhrff09dkkqjrzwhm60", "clip": "3.55,5.55"},
            {"timestamps": "3.55,5.55", "from_task": "sora-2:task_01k6x15vhrff09dkkqjrzwhm60"},
        ),
        ({"video": "https://a/b.mp4", "clip": (2.3, 3.3)}, {"timestamps": "2.3,3.3", "url": "https://a/b.mp4"}),
        ({"video": "https://a/b.mp4", "clip": (0.0, 2.5)}, {"timestamps": "0,2.5", "url": "https://a/b.mp4"}),
    ],
)
def test_body(fields: dict[str, Any], body: dict[str, str]) -> None:
    """The body holds `timestamps` as text and exactly one source; no model and nothing else."""
    assert character_body(CharacterRequest(**fields)) == body


FROM_TASK: dict[str, Any] = {"from_task": "task_1", "clip": "1,3"}


@pytest.mark.parametrize(
    ("request_", "rejected"),
    [
        (CharacterRequest(**FROM_TASK), []),
        (CharacterRequest(**FROM_TASK | {"name": "rex"}), []),
        (CharacterRequest(**FROM_TASK | {"clip": None}), ["clip"]),
        (CharacterRequest(**FROM_TASK | {"clip": "0,0.99"}), ["clip"]),
        (CharacterRequest(**FROM_TASK | {"clip": "0,1"}), []),
        (CharacterRequest(**FROM_TASK | {"clip": "2.3,3.3"}), []),
        (CharacterRequest(**FROM_TASK | {"clip": "0,3"}), []),
        (CharacterRequest(**FROM_TASK | {"clip": "1.1,4.1"}), []),
        (CharacterRequest(**FROM_TASK | {"clip": "0,3.01"}), ["clip"]),
        (CharacterRequest(video="https://a/b.mp4", clip="1,3"), []),
        (CharacterRequest(video="b.mp4", clip="1,3"), ["video"]),
        (CharacterRequest(**FROM_TASK | {"prompt": "A dog"}), ["prompt"]),
        (CharacterRequest(**FROM_TASK | {"safety": ""}), ["safety"]),
        (CharacterRequest(video="b.mp4", clip="0,9", prompt="x", safety="x"), ["video", "clip", "prompt", "safety"]),
        (TaskRequest(model="m"), ["request"]),
        (CharacterRequest(images=["https://a/b.png"], clip="1,3"), ["images"]),
        (CharacterRequest(**FROM_TASK | {"voice": "v"}), ["voice"]),
    ],
)
def test_documented_limits(request_: Request, rejected: list[str]) -> None:
    """All rules that a request breaks are listed before it is sent; a request within them has none."""
    assert [line.partition(" must ")[0] for line in Kkiai("key").check(request_)] == rejected


# Responses


@pytest.mark.parametrize("status", [200, 201, 202])
@pytest.mark.parametrize("extra", [{}, {"display_name": "Rex", "profile_desc": "A dog", "new": 1}, {"error": None}])
def test_character(status: int, extra: dict[str, object]) -> None:
    """Any 2xx response with an id and a user name is a character; further members are kept."""
    body = GOOD | extra
    assert read_character(make_response(body, status=status), provider="kkiai") == Character(
        id=GOOD["id"],
        provider="kkiai",
        username=GOOD["username"],
        name="Rex" if "display_name" in extra else None,
        permalink=GOOD["permalink"],
        picture_url=GOOD["profile_picture_url"],
        usage={"prompt": f"@{GOOD['username']}"},
        raw=body,
    )


def test_minimal_character() -> None:
    """A character needs no link and no picture."""
    made = read_character(make_response({"id": "ch_1", "username": "a.b", "permalink": 5}), provider="p")
    assert (made.permalink, made.picture_url, made.mention) == (None, None, "@a.b")


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        "ok",
        None,
        {"username": "a.b"},
        {"id": "", "username": "a.b"},
        {"id": True, "username": "a.b"},
        {"code": 0, "data": {"username": "a.b"}},
        [{"id": "ch_1"}, {"id": "ch_2"}],
    ],
)
def test_success_without_character(body: object) -> None:
    """A success without an id raises an error with the payload."""
    with pytest.raises(MissingCharacterError) as caught:
        read_character(make_response(body), provider="kkiai")
    assert (caught.value.payload, caught.value.provider, caught.value.task_id) == (body, "kkiai", None)


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ({"id": "ch_1"}, None),
        ({"id": "ch_1", "username": ""}, None),
        ({"id": "ch_1", "name": "Rex"}, "Rex"),
        ({"code": 0, "msg": "success", "data": {"id": "ch_1", "name": "Rex"}}, "Rex"),
        ([{"id": "ch_1"}], None),
    ],
)
def test_an_id_is_enough(body: object, name: str | None) -> None:
    """A success in another shape that names one character is that character: it was paid for."""
    made = read_character(make_response(body), provider="kkiai")
    assert (made.id, made.username, made.name, made.raw) == ("ch_1", None, name, body)


TEXT = "it went wrong (request id: 20261101-abc)"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"error": {"message": TEXT, "message_zh": "x", "type": "t", "param": "", "code": "c"}}, 400, "c"),
        ({"error": {"message": TEXT, "type": "t", "code": ""}}, 400, "t"),
        ({"code": "get_origin_task_failed", "message": TEXT, "data": None}, 400, "get_origin_task_failed"),
        ({"code": "get_origin_task_failed", "message": TEXT, "data": None}, 200, "get_origin_task_failed"),
        ({"error": TEXT}, 400, None),
        ({"description": TEXT, "type": "t", "code": "c"}, 400, "c"),
        ({"error": {"message": TEXT, "type": "t", "code": "c"}}, 200, "c"),
        ({"error": {"message": TEXT}} | GOOD, 200, None),
        (TEXT.encode(), 400, None),
        (json.dumps(TEXT).encode(), 400, None),
    ],
    ids=["1", "1 by type", "2", "2 in 200", "3", "4", "6", "6 with a character", "7", "JSON text"],
)
def test_error_shapes(body: object, status: int, code: str | None) -> None:
    """Every known shape of errors gives the text, the code and the request id."""
    error = read_error(body, status=status)
    assert type(error) is RequestRejectedError
    assert (error.status, error.code, error.request_id) == (status, code, "20261101-abc")
    assert "it went wrong" in error.message


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        ({"error": {"message": "m1", "message_zh": "m2"}, "message": "m4"}, "m1"),
        ({"error": {"message": "", "message_zh": "m2"}, "message": "m4"}, "m2"),
        ({"error": {"message": 5}, "message": "m4"}, "m4"),
        ({"error": "m3", "message": "m4"}, "m3"),
        ({"error": 5, "message": "m4", "msg": "m5"}, "m4"),
        ({"msg": "m5", "detail": "m6", "description": "m7"}, "m5"),
        ({"detail": "m6", "description": "m7"}, "m6"),
        ({"description": "m7"}, "m7"),
        ({"other": "m8"}, '{"other": "m8"}'),
        ([1, 2], "[1, 2]"),
        (b"plain text", "plain text"),
    ],
)
def test_message_precedence(body: object, shown: str) -> None:
    """The message is the first text in the documented order of members, else the whole body."""
    error = read_error(body)
    assert error.message == f"kkiai answered HTTP 400: {shown}"
    assert error.request_id is None


def error(code: str = "", message: str = "no", type_: str = "new_api_error") -> dict[str, object]:
    """Return the body of an error of the first shape."""
    return {"error": {"message": message, "type": type_, "param": "", "code": code}}


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (401, error(), AuthenticationError),
        (403, error("insufficient_user_quota"), InsufficientCreditsError),
        (402, error(), InsufficientCreditsError),
        (429, error("insufficient_user_quota"), InsufficientCreditsError),
        (429, error("pre_consume_token_quota_failed"), InsufficientCreditsError),
        (429, error("x", type_="insufficient_quota"), InsufficientCreditsError),
        (429, {"code": "pre_consume_token_quota_failed", "message": "no"}, InsufficientCreditsError),
        (403, error(), PermissionDeniedError),
        (429, error("rate_limit_exceeded"), RateLimitedError),
        (429, b"slow down", RateLimitedError),
        (503, error("model_not_found"), ModelUnavailableError),
        (404, error(message="Invalid URL (POST /sora/v1/characters)"), ModelUnavailableError),
        (400, error(message="Invalid URL (POST /sora/v1/characters)"), ModelUnavailableError),
        (404, b"404 page not found", ModelUnavailableError),
        (404, PAGE, ModelUnavailableError),
        (200, PAGE, ModelUnavailableError),
        (201, b"\n" + PAGE, ModelUnavailableError),
        (500, error("get_origin_task_failed"), RequestRejectedError),
        (400, error("task_not_exist"), RequestRejectedError),
        (400, error("cameo_permission_denied"), RequestRejectedError),
        (400, error("sora_content_violation"), RequestRejectedError),
        (500, error("do_request_failed"), ServiceUnavailableError),
        (400, error("do_request_failed"), ServiceUnavailableError),
        (200, {"code": "do_request_failed", "message": "deadline exceeded"}, ServiceUnavailableError),
        (503, error(), ServiceUnavailableError),
        (302, b"", BlockedError),
        (408, error(), NoAnswerError),
        (502, error(), NoAnswerError),
        (504, b"", NoAnswerError),
        (524, PAGE, NoAnswerError),
        (408, b"timeout", NoAnswerError),
        (101, b"", NoAnswerError),
        (99, error(), NoAnswerError),
        (500, PAGE, NoAnswerError),
        (503, b"upstream connect error", NoAnswerError),
        (200, b'{"id":"ch_0123', NoAnswerError),
        (200, b"", NoAnswerError),
        (204, b"", NoAnswerError),
        (200, b"\xff\xfe", NoAnswerError),
    ],
)
def test_error_classes(status: int, body: object, kind: type[ProviderError]) -> None:
    """Each documented situation has its own error, and only a rate limit allows a second request."""
    found = read_error(body, status=status)
    assert type(found) is kind
    assert found.status == status
    assert (found.transient and found.harmless) == (kind is RateLimitedError)


@pytest.mark.parametrize(
    ("body", "hint"),
    [
        (error("cameo_permission_denied"), "Use another clip"),
        (error(message="upstream: sora_content_violation"), "Use another clip"),
        (b"cameo_permission_denied", "Use another clip"),
        (error("task_not_exist"), "Check from_task"),
        (error("insufficient_user_quota"), "Top up"),
        (error("something_else"), ""),
    ],
)
def test_hints(body: object, hint: str) -> None:
    """The hint comes from the code or from a code inside the text."""
    found = read_error(body).hint
    assert hint in found
    assert bool(found) == bool(hint)


def test_retry_after() -> None:
    """The error of a rate limit holds the seconds of Retry-After."""
    assert read_error(error(), status=429, headers={"Retry-After": "3"}).retry_after == 3


# Settings


@pytest.mark.parametrize(
    ("name", "base_url", "model"),
    [
        ("kkiai", "https://www.kkiai.com", None),
        ("juxin", "https://api.jxincm.cn", None),
        ("t8star", "https://ai.t8star.cn", None),
        ("comfly", "https://ai.comfly.chat", None),
        ("gptbest", "https://api.gptbest.vip", None),
        ("yunwu", "https://yunwu.ai", None),
        ("geekai", "https://api.geekai.pro", None),
        ("laozhang", "https://api.laozhang.ai", "sora-2-character"),
        ("apiyi", "https://api.apiyi.com", "sora-2-character"),
    ],
)
def test_gateway_settings(name: str, base_url: str, model: str | None) -> None:
    """Each known gateway has its host, and a model if it requires one."""
    provider = Kkiai.gateway(name, "key")
    assert (provider.name, provider._transport.base_url) == (name, base_url)
    assert provider.extra_body == ({"model": model} if model else {})


def test_gateway_registry() -> None:
    """Nine gateways are known; three of them note that the clip must have sound."""
    assert len(GATEWAYS) == 9
    assert [name for name, known in GATEWAYS.items() if "sound" in known.note] == ["t8star", "comfly", "gptbest"]


def test_gateway_options() -> None:
    """Options override the settings of a known gateway."""
    provider = Kkiai.gateway(
        "apiyi", "key", extra_body={"model": "sora-character"}, name="mine", limits=Limits(creates=(1, 1.0))
    )
    assert (provider.name, provider.extra_body) == ("mine", {"model": "sora-character"})
    assert provider._transport.limits == Limits(creates=(1, 1.0))


def test_unknown_gateway() -> None:
    """The error lists the known gateways."""
    with pytest.raises(ConfigurationError, match="laozhang"):
        Kkiai.gateway("unknown", "key")


@pytest.mark.parametrize(
    "base_url",
    [
        "https://www.kkiai.com",
        "https://www.kkiai.com/",
        "https://www.kkiai.com/v1",
        "https://www.kkiai.com/v1/",
        "https://www.kkiai.com//v1//",
    ],
)
def test_base_url_suffix(base_url: str) -> None:
    """A trailing slash or "/v1" of the base URL is removed."""
    assert Kkiai("key", base_url=base_url)._transport.base_url == "https://www.kkiai.com"


@pytest.mark.parametrize(
    "base_url", ["www.kkiai.com", "ftp://a", "https://", "https://u:p@a", "https://a?x=1", "https://a b"]
)
def test_invalid_base_url(base_url: str) -> None:
    """The error for an invalid base URL names the setting."""
    with pytest.raises(ConfigurationError, match="base_url"):
        Kkiai("key", base_url=base_url)


@pytest.mark.parametrize(("name", "variable"), [("kkiai", "KKIAI_API_KEY"), ("laozhang", "LAOZHANG_API_KEY")])
def test_missing_key(name: str, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a key the constructor fails, and the hint names the environment variable."""
    monkeypatch.delenv(variable, raising=False)
    with pytest.raises(ConfigurationError, match=f"Set {variable}"):
        Kkiai.gateway(name)
    monkeypatch.setenv(variable, "from-the-environment")
    assert Kkiai.gateway(name)._transport.api_key == "from-the-environment"


@pytest.mark.parametrize(
    ("status", "body", "kind", "charged"),
    [
        (500, {"error": {"code": "do_request_failed", "message": "upstream"}}, ServiceUnavailableError, "maybe"),
        (503, {"code": "overloaded", "message": "busy"}, ServiceUnavailableError, "maybe"),
        (500, {"timestamp": 1, "path": "/sora", "status": 500, "error": "Internal Server Error"}, NoAnswerError, "no"),
        (500, {"message": "Internal server error"}, NoAnswerError, "no"),
        (599, {"detail": "proxy"}, NoAnswerError, "no"),
        (400, {"error": {"message": "bad clip"}}, RequestRejectedError, "no"),
        (413, PAGE, BlockedError, "no"),
        (451, b"", BlockedError, "no"),
    ],
)
def test_what_a_rejection_proves(status: int, body: object, kind: type[ProviderError], charged: str) -> None:
    """The gateway's own server fault is a rejection without proof; what another wrote leaves the create unknown."""
    error = read_error(body, status=status)
    assert (type(error), error.charged) == (kind, charged)
