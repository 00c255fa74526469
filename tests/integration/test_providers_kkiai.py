"""The provider kkiai against the emulator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from sora_chars import (
    AuthenticationError,
    CharacterSession,
    InsufficientCreditsError,
    InvalidRequestError,
    Kkiai,
    ModelUnavailableError,
    ProviderError,
    RequestRejectedError,
    ServiceUnavailableError,
    SoraCharsError,
    SubmissionUnknownError,
    TaskRequest,
)
from sora_chars.testing import Emulator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

KEY = "sk-test-4f81-0123456789"
ROUTE = ("POST", "/sora/v1/characters")
FROM_TASK: dict[str, Any] = {"from_task": "video_e50c76ca-21d4-40e9-8485-e4ead2d37133", "clip": "1,3"}


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    """Start an emulator that makes a character in some milliseconds."""
    async with Emulator(durations=(0.01, 0.03), kkiai_key=KEY) as running:
        yield running


@pytest.fixture
async def session(emulator: Emulator) -> AsyncIterator[CharacterSession]:
    """Open a session with kkiai."""
    async with CharacterSession(Kkiai(KEY, base_url=emulator.url)) as opened:
        yield opened


@pytest.mark.parametrize("source", [FROM_TASK, {"video": "https://videos.example/dog.mp4", "clip": (2.3, 3.3)}])
async def test_character_in_one_call(source: dict[str, Any], emulator: Emulator, session: CharacterSession) -> None:
    """The response to the only request is the character: the handle is done, and nothing is polled."""
    handle = await session.submit(**source, name="rex")
    assert handle.done()
    character = await handle
    assert character.mention == f"@{character.username}"
    assert character.permalink == f"https://sora.chatgpt.com/profile/{character.username}"
    assert str(character.picture_url).startswith(emulator.url)
    assert (character.name, character.provider, handle.task_id) == ("rex", "kkiai", character.id)
    assert [snapshot.state async for snapshot in handle.updates()] == ["success"]
    assert [request.path for request in emulator.requests] == [ROUTE[1]]


@pytest.mark.parametrize("tail", ["", "/", "/v1", "/v1/", "//v1"])
async def test_base_url_suffix(tail: str, emulator: Emulator) -> None:
    """A base URL with a trailing slash or "/v1" works."""
    async with CharacterSession(Kkiai(KEY, base_url=emulator.url + tail)) as session:
        assert (await session.create(**FROM_TASK)).id
    assert emulator.counts.characters == 1


@pytest.mark.parametrize(("name", "model"), [("laozhang", "sora-2-character"), ("juxin", None)])
async def test_gateway_model(name: str, model: str | None) -> None:
    """A gateway that requires a model gets it, and one that forbids it does not."""
    async with (
        Emulator(durations=(0, 0.01), kkiai_model=model) as emulator,
        CharacterSession(Kkiai.gateway(name, KEY, base_url=emulator.url)) as session,
    ):
        assert (await session.create(**FROM_TASK)).provider == name


async def test_invalid_request_is_not_sent(emulator: Emulator, session: CharacterSession) -> None:
    """A clip that is too long is rejected before sending, together with every other problem."""
    with pytest.raises(InvalidRequestError) as caught:
        await session.create(from_task="task_1", clip="0,3.01", prompt="A dog")
    assert [line.removeprefix("kkiai: ").partition(" must ")[0] for line in caught.value.problems] == ["clip", "prompt"]
    assert not emulator.requests


@pytest.mark.parametrize(
    ("kind", "settings", "error"),
    [
        ("kkiai_error", {"shape": 1}, ServiceUnavailableError),
        ("kkiai_error", {"shape": 2}, ServiceUnavailableError),
        ("kkiai_error", {"shape": 3}, ServiceUnavailableError),
        ("kkiai_error", {"shape": 4}, ServiceUnavailableError),
        ("kkiai_error", {"shape": 5}, ModelUnavailableError),
        ("kkiai_error", {"shape": 6}, ServiceUnavailableError),
        ("kkiai_error", {"shape": 7}, SubmissionUnknownError),
        ("kkiai_error", {"shape": 7, "status": 400}, RequestRejectedError),
        ("quota", {}, InsufficientCreditsError),
        ("model_not_found", {}, ModelUnavailableError),
        ("invalid_url", {}, ModelUnavailableError),
        ("get_origin_task_failed", {}, RequestRejectedError),
        ("task_not_exist", {}, RequestRejectedError),
        ("cameo_permission_denied", {}, RequestRejectedError),
        ("status", {"status": 524, "code": 524}, SubmissionUnknownError),
        ("html", {}, SubmissionUnknownError),
        ("html", {"status": 524}, SubmissionUnknownError),
        ("lost_response", {}, SubmissionUnknownError),
        ("reset", {}, SubmissionUnknownError),
        ("truncated", {}, SubmissionUnknownError),
        ("junk_json", {}, SubmissionUnknownError),
    ],
)
async def test_faults(
    kind: str,
    settings: dict[str, Any],
    error: type[SoraCharsError],
    emulator: Emulator,
    session: CharacterSession,
) -> None:
    """Each fault raises its own error at once, and the paid request is not repeated."""
    fault = emulator.fault(kind, on="character", times=None, **settings)
    with pytest.raises(error) as caught:
        await session.create(**FROM_TASK, key="my-key")
    assert type(caught.value) is error
    assert (fault.hits, emulator.request_counts[ROUTE]) == (1, 1)
    if isinstance(caught.value, ProviderError):
        assert caught.value.provider == "kkiai"
    elif isinstance(caught.value, SubmissionUnknownError):
        assert caught.value.key == "my-key"


@pytest.mark.parametrize("shape", [1, 2, 3, 4, 6])
async def test_request_id(shape: int, emulator: Emulator, session: CharacterSession) -> None:
    """The error holds the request id that the provider's support needs."""
    emulator.fault("kkiai_error", shape=shape)
    with pytest.raises(ProviderError) as caught:
        await session.create(**FROM_TASK)
    assert caught.value.request_id == "20261101120000abc"


async def test_timeout_is_unknown(emulator: Emulator) -> None:
    """After a timeout the character may exist, so the request is not repeated."""
    emulator.fault("delay", on="character", seconds=5.0)
    async with CharacterSession(Kkiai(KEY, base_url=emulator.url, timeout=0.2)) as session:
        with pytest.raises(SubmissionUnknownError, match="no answer within"):
            await session.create(**FROM_TASK)
    assert (emulator.counts.characters, emulator.request_counts[ROUTE]) == (1, 1)


async def test_rate_limit_is_retried(emulator: Emulator, session: CharacterSession) -> None:
    """A rate limit means that nothing was done: the request is repeated, and creates one character."""
    emulator.fault("rate")
    assert (await session.create(**FROM_TASK)).id
    assert (emulator.counts.characters, emulator.request_counts[ROUTE]) == (1, 2)


async def test_other_request_type(session: CharacterSession, emulator: Emulator) -> None:
    """`submit` raises TypeError for another type of request, and sends nothing."""

    def on_send() -> NoReturn:
        pytest.fail("the request was about to be sent")

    with pytest.raises(TypeError, match="TaskRequest"):
        await session.providers[0].submit(TaskRequest(model="m"), key="k", callback_url=None, on_send=on_send)
    assert not emulator.requests


async def test_wrong_key(emulator: Emulator) -> None:
    """A wrong key is rejected once, and no message shows it."""
    async with CharacterSession(Kkiai("sk-wrong-77-0123456789", base_url=emulator.url)) as session:
        with pytest.raises(AuthenticationError) as caught:
            await session.create(**FROM_TASK)
    assert "sk-wrong-77-0123456789" not in str(caught.value)
    assert emulator.request_counts[ROUTE] == 1


async def test_clip_is_cut_by_the_gateway(emulator: Emulator) -> None:
    """The clip of a video is part of the request; it is not cut here, whatever is installed."""
    async with CharacterSession(Kkiai(KEY, base_url=emulator.url)) as session:
        assert (await session.create(video="https://a.example/rex.mp4", clip="1,3")).provider == "kkiai"
    assert emulator.counts.characters == 1
