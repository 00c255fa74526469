"""The provider HeyGen against the emulator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from sora_chars import (
    AuthenticationError,
    CharacterRequest,
    EntryState,
    InsufficientCreditsError,
    NoAnswerError,
    RequestRejectedError,
    SubmissionUnknownError,
    TaskFailedError,
    TaskNotFoundError,
    TaskRequest,
)
from sora_chars.testing import Emulator
from tests.support.heygen_account import KEY, PHOTO, VIDEO, only_look, provider_of, session_at
from tests.support.images import jpeg

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

TWIN: dict[str, Any] = {"video": VIDEO, "name": "Rex"}


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    """Start an emulator whose avatars take some milliseconds."""
    async with Emulator(durations=(0.02, 0.04), heygen_key=KEY) as running:
        yield running


@pytest.mark.parametrize(("fields", "kind"), [(TWIN, "digital_twin"), ({"images": [PHOTO], "name": "Rex"}, "photo")])
async def test_character(emulator: Emulator, fields: dict[str, Any], kind: str) -> None:
    """A clip becomes a digital twin and a photo a photo avatar, used by its id."""
    async with session_at(emulator) as session:
        character = await session.create(**fields)
    look = only_look(emulator)
    assert (look.kind, character.id, character.name, character.task_id) == (
        kind, look.look_id, look.name, look.look_id
    )  # fmt: skip
    assert character.usage == {"type": "avatar", "avatar_id": look.look_id}
    assert character.picture_url is not None


async def test_local_files_are_uploaded(emulator: Emulator, tmp_path: Path, make_clip: Callable[..., Path]) -> None:
    """A local file is uploaded first, and the avatar is made from its id."""
    path = tmp_path / "front.jpg"
    path.write_bytes(jpeg(300, 300))
    async with session_at(emulator) as session:
        await session.create(images=[path], name="Rex")
        await session.create(video=make_clip(20.0), name="Rex")
        assert await provider_of(session).upload(path) in emulator.heygen.files
    assert list(emulator.heygen.files.values()) == ["jpg", "mp4", "jpg"]
    assert (emulator.counts.uploads, emulator.counts.avatars) == (3, 2)


async def test_failed_look(emulator: Emulator) -> None:
    """A look that fails raises HeyGen's code and message."""
    emulator.fault("heygen_fail", message="The video is blurred")
    async with session_at(emulator) as session:
        with pytest.raises(TaskFailedError, match="blurred") as caught:
            await session.create(**TWIN)
    assert caught.value.code == "video_too_short"


async def test_other_requests(emulator: Emulator) -> None:
    """A provider that is asked directly refuses requests that `check` would refuse."""
    async with session_at(emulator) as session:
        requests = (TaskRequest(model="m"), CharacterRequest(from_task="t"))
        for request in requests:
            with pytest.raises(TypeError):
                await session.providers[0].submit(request, key="k", callback_url=None, on_send=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("fault", ["lost_response", "truncated", "junk_json"])
async def test_lost_responses(emulator: Emulator, fault: str) -> None:
    """10 creates whose responses are lost become 10 characters, found in the list by their names."""
    emulator.fault(fault, on="avatar", times=10)
    async with session_at(emulator) as session:
        requests = [CharacterRequest(**TWIN, key=f"Order {number}") for number in range(10)]
        outcomes = await session.create_all(requests)
    assert [outcome.state for outcome in outcomes] == [EntryState.SUCCEEDED] * 10
    assert {outcome.character.id for outcome in outcomes if outcome.character} == set(emulator.heygen.looks)
    assert emulator.counts.avatars == 10


async def test_two_avatars_of_one_key_settle_nothing(emulator: Emulator) -> None:
    """If the list shows two avatars of a key, the outcome stays unknown."""
    async with session_at(emulator) as session:
        await session.create(**TWIN, key="order-17")
    emulator.fault("lost_response", on="avatar")
    async with session_at(emulator) as session:
        with pytest.raises(SubmissionUnknownError, match="heygen shows 2 avatars of this key"):
            await session.create(**TWIN, key="order-17", timeout=1.5)
        with pytest.raises(NoAnswerError):
            await session.providers[0].lookup("order-17")
        assert await session.providers[0].lookup("order-18") is None


async def test_list_of_looks(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list that holds looks in place of groups is read, too."""
    monkeypatch.setattr("sora_chars.providers.heygen_codec.AVATARS_PATH", "/v3/avatars/looks")
    async with session_at(emulator) as session:
        monkeypatch.undo()
        made = await session.create(**TWIN, key="order-17")
        monkeypatch.setattr("sora_chars.providers.heygen_codec.AVATARS_PATH", "/v3/avatars/looks")
        found = await session.providers[0].lookup("order-17")
    assert found is not None
    assert found.task_id == made.id


async def test_long_list(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """All pages of the list are read."""
    monkeypatch.setattr("sora_chars.providers.heygen_codec.PAGE_SIZE", 2)
    async with session_at(emulator) as session:
        made = [await session.create(**TWIN, key=f"order-{number}") for number in range(5)]
        provider = provider_of(session)
        assert [one.task_id for one in await provider.avatars()] == [one.id for one in reversed(made)]
        found = await provider.lookup("order-0")
        assert found is not None
        assert found.task_id == made[0].id
        monkeypatch.setattr("sora_chars.providers.heygen._MAX_PAGES", 2)
        assert len(await provider.avatars()) == 4


async def test_delete(emulator: Emulator) -> None:
    """A deleted avatar is gone from the list; deleting it twice has no effect."""
    async with session_at(emulator) as session:
        made = await session.create(**TWIN)
        provider = provider_of(session)
        await session.delete(made)
        await provider.delete(made.id)
        assert await provider.avatars() == []
        with pytest.raises(TaskNotFoundError):
            await provider.fetch(made.id)


@pytest.mark.parametrize(
    ("code", "error"),
    [("quota_exceeded", InsufficientCreditsError), ("invalid_parameter", RequestRejectedError)],
)
async def test_rejections(emulator: Emulator, code: str, error: type[Exception]) -> None:
    """A rejection is sent once; money pauses nothing, although it comes with status 429."""
    emulator.fault("heygen_error", on="avatar", code=code)
    async with session_at(emulator) as session:
        with pytest.raises(error):
            await session.create(**TWIN)
        assert (await session.create(**TWIN)).id
    assert emulator.request_counts["POST", "/v3/avatars"] == 2


@pytest.mark.parametrize("code", ["rate_limit_exceeded", "resource_not_ready"])
async def test_harmless_errors_are_repeated(emulator: Emulator, code: str) -> None:
    """A create that did nothing is sent again, after the pause that HeyGen states."""
    emulator.fault("heygen_error", on="avatar", code=code, retry_after="1")
    async with session_at(emulator) as session:
        await session.create(**TWIN)
    assert (emulator.counts.avatars, emulator.request_counts["POST", "/v3/avatars"]) == (1, 2)


async def test_server_error(emulator: Emulator) -> None:
    """After a server's error the list is searched; a missing avatar proves nothing, and nothing is sent again."""
    emulator.fault("heygen_error", on="avatar", code="gateway_timeout")
    async with session_at(emulator) as session:
        with pytest.raises(SubmissionUnknownError, match="it shows no task of this key"):
            await session.create(**TWIN, timeout=1.5)
    assert emulator.request_counts["POST", "/v3/avatars"] == 1


async def test_wrong_key(emulator: Emulator) -> None:
    """A wrong key is rejected once, and no message shows it."""
    async with session_at(emulator, "another-0123456789abcdef") as session:
        with pytest.raises(AuthenticationError) as caught:
            await session.create(**TWIN)
    assert "another-" not in str(caught.value)
