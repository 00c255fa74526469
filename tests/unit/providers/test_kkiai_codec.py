from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from sora_chars import (
    GATEWAYS,
    AuthenticationError,
    Character,
    CharacterRequest,
    ConfigurationError,
    InsufficientCreditsError,
    Kkiai,
    Limits,
    MissingCharacterError,
    ModelUnavailableError,
    NoAnswerError,
    OmniCharacterRequest,
    PermissionDeniedError,
    ProviderError,
    RateLimitedError,
    RequestRejectedError,
    ServiceUnavailableError,
    TaskRequest,
)
from sora_chars.providers.kkiai import character_body, read_character
from sora_chars.transport import Response

if TYPE_CHECKING:
    from sora_chars.models import Request

GOOD = {
    "id": "ch_0123456789abcdef0123456789abcdef",
    "username": "hfspncadz.mooflapand",
    "permalink": "https://sora.chatgpt.com/profile/hfspncadz.mooflapand",
    "profile_picture_url": "https://videos.example/p.jpg?sig=1",
}
PAGE = b"<!doctype html><html><title>Gateway</title><div id=root></div></html>"


def answer(body: object, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """An answer with this body: bytes as they are, everything else as JSON."""
    return Response(status, headers or {}, body if isinstance(body, bytes) else json.dumps(body).encode())


def refusal(body: object, *, status: int = 400, headers: dict[str, str] | None = None) -> ProviderError:
    """The error that this answer is read to."""
    with pytest.raises(ProviderError) as caught:
        read_character(answer(body, status=status, headers=headers), provider="kkiai")
    return caught.value


# What is sent


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
def test_the_body_is_the_documented_one(fields: dict[str, Any], body: dict[str, str]) -> None:
    """The body holds `timestamps` as text and exactly one source, as given; no model and nothing else."""
    assert character_body(CharacterRequest(**fields)) == body


FROM_TASK: dict[str, Any] = {"from_task": "task_1", "clip": "1,3"}


@pytest.mark.parametrize(
    ("request_", "refused"),
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
        (CharacterRequest(video="b.mp4", clip="0,9", prompt="x", safety="x"), ["clip", "video", "prompt", "safety"]),
        (TaskRequest(model="m"), ["request"]),
        (OmniCharacterRequest(image="https://a/b.png", descriptions="d"), ["request"]),
    ],
)
def test_the_documented_limits_are_kept(request_: Request, refused: list[str]) -> None:
    """What kkiai cannot take is refused before sending, all of it at once, and what it takes is not."""
    assert [line.partition(":")[0] for line in Kkiai("key").check(request_)] == refused


# What is read


@pytest.mark.parametrize("status", [200, 201, 202])
@pytest.mark.parametrize("extra", [{}, {"display_name": "Rex", "profile_desc": "A dog", "new": 1}, {"error": None}])
def test_a_character_is_read(status: int, extra: dict[str, object]) -> None:
    """Any 2xx with an id and a user name is a character; what else there is, is kept."""
    body = GOOD | extra
    assert read_character(answer(body, status=status), provider="kkiai") == Character(
        id=GOOD["id"],
        provider="kkiai",
        username=GOOD["username"],
        name="Rex" if "display_name" in extra else None,
        permalink=GOOD["permalink"],
        picture_url=GOOD["profile_picture_url"],
        raw=body,
    )


def test_id_and_user_name_are_enough() -> None:
    """A character needs no link and no picture."""
    made = read_character(answer({"id": "ch_1", "username": "a.b", "permalink": 5}), provider="p")
    assert (made.permalink, made.picture_url, made.mention) == (None, None, "@a.b")


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        "ok",
        None,
        {"id": "ch_1"},
        {"username": "a.b"},
        {"id": "", "username": "a.b"},
        {"id": "ch_1", "username": ""},
        {"id": 1, "username": "a.b"},
        {"code": 0, "data": {"id": "ch_1"}},
    ],
)
def test_success_without_a_character(body: object) -> None:
    """Success without an id or a user name is an error of its own that shows the payload."""
    with pytest.raises(MissingCharacterError) as caught:
        read_character(answer(body), provider="kkiai")
    assert (caught.value.payload, caught.value.provider, caught.value.task_id) == (body, "kkiai", None)


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
def test_each_shape_of_an_error(body: object, status: int, code: str | None) -> None:
    """Every known shape gives the text, the code and the request id."""
    error = refusal(body, status=status)
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
        (b"", ""),
    ],
)
def test_which_text_is_the_message(body: object, shown: str) -> None:
    """The message is the first text of the contract's list, else the body itself."""
    error = refusal(body)
    assert error.message == f"kkiai answered HTTP 400: {shown}"
    assert error.request_id is None


def error(code: str = "", message: str = "no", type_: str = "new_api_error") -> dict[str, object]:
    """An error of the first shape."""
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
        (503, error(), ServiceUnavailableError),
        (302, b"", RequestRejectedError),
        (408, error(), NoAnswerError),
        (502, error(), NoAnswerError),
        (504, b"", NoAnswerError),
        (524, PAGE, NoAnswerError),
        (408, b"timeout", NoAnswerError),
        (500, PAGE, NoAnswerError),
        (503, b"upstream connect error", NoAnswerError),
        (200, b'{"id":"ch_0123', NoAnswerError),
        (200, b"", NoAnswerError),
        (204, b"", NoAnswerError),
        (200, b"\xff\xfe", NoAnswerError),
    ],
)
def test_the_table_of_situations(status: int, body: object, kind: type[ProviderError]) -> None:
    """Each situation of the contract is its own error, and only a rate limit may repeat the call."""
    met = refusal(body, status=status)
    assert type(met) is kind
    assert met.status == status
    assert (met.transient and met.harmless) == (kind is RateLimitedError)


@pytest.mark.parametrize(
    ("body", "hint"),
    [
        (error("cameo_permission_denied"), "take another clip"),
        (error(message="upstream: sora_content_violation"), "take another clip"),
        (b"cameo_permission_denied", "take another clip"),
        (error("task_not_exist"), "check from_task"),
        (error("insufficient_user_quota"), "Top up"),
        (error("something_else"), ""),
    ],
)
def test_an_error_says_what_to_do(body: object, hint: str) -> None:
    """Where something can be done about an error, its hint says so, also when only the text tells."""
    met = refusal(body)
    assert hint in met.hint
    assert bool(met.hint) == bool(hint)


def test_retry_after_is_heeded() -> None:
    """A rate limit holds the seconds that the server asked for."""
    assert refusal(error(), status=429, headers={"Retry-After": "3"}).retry_after == 3


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
def test_the_known_gateways(name: str, base_url: str, model: str | None) -> None:
    """Each known gateway has its host, and its model where it demands one."""
    provider = Kkiai.gateway(name, "key")
    assert (provider.name, provider._transport.base_url) == (name, base_url)
    assert provider.extra_body == ({"model": model} if model else {})


def test_the_registry_holds_the_gateways_of_the_contract() -> None:
    """The registry holds the nine gateways of the contract; three of them say that the clip must have sound."""
    assert len(GATEWAYS) == 9
    assert [name for name, known in GATEWAYS.items() if "sound" in known.note] == ["t8star", "comfly", "gptbest"]


def test_a_gateway_takes_other_settings() -> None:
    """What a known gateway has can be overridden, and the limits given."""
    provider = Kkiai.gateway(
        "apiyi", "key", extra_body={"model": "sora-character"}, name="mine", limits=Limits(creates=(1, 1.0))
    )
    assert (provider.name, provider.extra_body) == ("mine", {"model": "sora-character"})
    assert provider._transport.limits == Limits(creates=(1, 1.0))


def test_an_unknown_gateway_is_refused() -> None:
    """The error names the gateways that there are."""
    with pytest.raises(ConfigurationError, match="laozhang"):
        Kkiai.gateway("nobody", "key")


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
def test_a_pasted_base_url_loses_its_tail(base_url: str) -> None:
    """The path hangs off the host root, whatever base URL was pasted."""
    assert Kkiai("key", base_url=base_url)._transport.base_url == "https://www.kkiai.com"


@pytest.mark.parametrize(
    "base_url", ["www.kkiai.com", "ftp://a", "https://", "https://u:p@a", "https://a?x=1", "https://a b"]
)
def test_a_wrong_base_url_is_refused(base_url: str) -> None:
    """A base URL that is none is named when the provider is built."""
    with pytest.raises(ConfigurationError, match="base_url"):
        Kkiai("key", base_url=base_url)


@pytest.mark.parametrize(("name", "variable"), [("kkiai", "KKIAI_API_KEY"), ("laozhang", "LAOZHANG_API_KEY")])
def test_a_missing_key_names_its_variable(name: str, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a key nothing is built, and the error says which variable would give it."""
    monkeypatch.delenv(variable, raising=False)
    with pytest.raises(ConfigurationError, match=f"Set {variable}"):
        Kkiai.gateway(name)
    monkeypatch.setenv(variable, "from-the-environment")
    assert Kkiai.gateway(name)._transport.api_key == "from-the-environment"
