"""The provider Kling against the emulator."""

from __future__ import annotations

import base64
import logging
from typing import TYPE_CHECKING, Any

import pytest

from sora_chars import (
    AuthenticationError,
    CharacterRequest,
    CharacterSession,
    ConfigurationError,
    EntryState,
    FixedInterval,
    InsufficientCreditsError,
    InvalidRequestError,
    Kling,
    MissingCharacterError,
    ModelUnavailableError,
    PermissionDeniedError,
    RequestRejectedError,
    SoraCharsError,
    SubmissionUnknownError,
    TaskFailedError,
    TaskNotFoundError,
    TaskRequest,
)
from sora_chars.testing import Emulator
from tests.support.images import jpeg, png
from tests.support.kling_account import IMAGES, KEY, SECRET_KEY, VIDEO, only_task, session_at

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    """Start an emulator whose tasks take some milliseconds."""
    async with Emulator(durations=(0.02, 0.04), kling_key=KEY, kling_secret_key=SECRET_KEY) as running:
        yield running


def local_video(make_clip: Callable[..., Path]) -> dict[str, Any]:
    """Return a request for a local video of five seconds."""
    return {**VIDEO, "video": make_clip(5.0)}


async def test_character_from_a_video(emulator: Emulator) -> None:
    """A clip becomes a character whose id has every digit, under the client's own id."""
    async with session_at(emulator) as session:
        character = await session.create(**VIDEO, key="order-17", voice="v1")
    task = only_task(emulator)
    assert (character.id, character.name, character.provider) == (str(task.element_id), "Rex", "kling")
    assert float(character.id) != int(character.id)
    assert (task.external_id, task.body["element_voice_id"], character.task_id) == ("order-17", "v1", task.task_id)


async def test_character_from_images(emulator: Emulator, tmp_path: Path) -> None:
    """Local images are sent as base64 without a prefix, in their order; links are sent as they are."""
    front, side = tmp_path / "front.png", tmp_path / "side.jpg"
    front.write_bytes(png(300, 400, size=2_000_000))
    side.write_bytes(jpeg(400, 300))
    async with session_at(emulator) as session:
        await session.create(images=[front, IMAGES[1], side], name="Rex", prompt="A friendly dog")
    assert only_task(emulator).body["element_image_list"] == {
        "frontal_image": base64.b64encode(png(300, 400, size=2_000_000)).decode(),
        "refer_images": [{"image_url": IMAGES[1]}, {"image_url": base64.b64encode(jpeg(400, 300)).decode()}],
    }


async def test_hosting(emulator: Emulator, make_clip: Callable[..., Path]) -> None:
    """A local video goes to the caller's storage before anything is sent."""
    clip = make_clip(5.0)
    hosted: list[Path] = []

    async def host(path: Path) -> str:
        hosted.append(path)
        return f"https://files.example/{path.name}"

    async with session_at(emulator, hosting=host) as session:
        await session.create(video=clip, name="Rex", prompt="A friendly dog")
    assert hosted == [clip]
    videos = only_task(emulator).body["element_video_list"]
    assert videos == {"refer_videos": [{"video_url": "https://files.example/clip.mp4"}]}


@pytest.mark.parametrize("url", ["clip.mp4", None])
async def test_hosting_returns_a_url(emulator: Emulator, make_clip: Callable[..., Path], url: Any) -> None:
    """Storage that returns no URL is an error, and nothing is sent."""

    async def host(path: Path) -> Any:
        del path
        return url

    async with session_at(emulator, hosting=host) as session:
        with pytest.raises(ConfigurationError, match="hosting must return"):
            await session.create(**local_video(make_clip))
    assert not emulator.requests


async def test_local_video_without_hosting(emulator: Emulator, make_clip: Callable[..., Path]) -> None:
    """A local video is refused before anything is sent; a provider that is asked directly refuses it too."""
    async with session_at(emulator) as session:
        with pytest.raises(InvalidRequestError, match="pass hosting="):
            await session.create(**local_video(make_clip))
        requests = (CharacterRequest(**local_video(make_clip)), TaskRequest(model="m"))
        for request in requests:
            with pytest.raises(TypeError):
                await session.providers[0].submit(request, key="k", callback_url=None, on_send=None)  # type: ignore[arg-type]
    assert not emulator.requests


async def test_access_and_secret_key(emulator: Emulator, caplog: pytest.LogCaptureFixture) -> None:
    """A pair of keys signs each request with a token of its own, which no log shows."""
    caplog.set_level(logging.DEBUG)
    provider = Kling(access_key="access-0123456789abcdef", secret_key=SECRET_KEY, base_url=emulator.url)
    async with CharacterSession(provider, polling=FixedInterval(0.005)) as session:
        assert (await session.create(**VIDEO)).name == "Rex"
    shown = str([vars(entry) for entry in caplog.records])
    assert "exchange" in shown
    assert "eyJ" not in shown
    assert SECRET_KEY not in shown


@pytest.mark.parametrize(
    "keys", [{"api_key": "another-0123456789abcdef"}, {"access_key": "access", "secret_key": "another-secret"}]
)
async def test_wrong_keys(emulator: Emulator, keys: dict[str, Any]) -> None:
    """A wrong key is rejected once."""
    async with CharacterSession(Kling(**keys, base_url=emulator.url)) as session:
        with pytest.raises(AuthenticationError):
            await session.create(**VIDEO)
    assert len(emulator.requests) == 1


@pytest.mark.parametrize(
    ("code", "error", "state"),
    [
        *((code, AuthenticationError, EntryState.REJECTED) for code in (1000, 1001, 1002, 1003, 1004)),
        *((code, InsufficientCreditsError, EntryState.REJECTED) for code in (1100, 1101, 1102)),
        (1103, PermissionDeniedError, EntryState.REJECTED),
        *((code, RequestRejectedError, EntryState.REJECTED) for code in (1200, 1201, 1300, 1301)),
        *((code, ModelUnavailableError, EntryState.REJECTED) for code in (1202, 1203)),
        (1304, PermissionDeniedError, EntryState.REJECTED),
        *((code, SubmissionUnknownError, EntryState.UNKNOWN) for code in (5000, 5001, 5002)),
    ],
)
async def test_every_error_of_a_create(
    emulator: Emulator, code: int, error: type[SoraCharsError], state: EntryState
) -> None:
    """Each row of the table of errors is sent once and recorded as what it is; money pauses nothing."""
    emulator.fault("kling_error", on="element", code=code, times=None)
    async with session_at(emulator) as session:
        with pytest.raises(error):
            await session.create(**VIDEO, key="order-17", timeout=1.5)
        entry = await session.entry("order-17")
        account = session.providers[0].account
        assert account is not None
        assert account.cooldown.until == 0
    creates = [request for request in emulator.requests if request.method == "POST"]
    assert len(creates) == 1
    assert entry is not None
    assert entry.state is state


@pytest.mark.parametrize("code", [1302, 1303])
async def test_rate_limits_are_waited_for(emulator: Emulator, code: int) -> None:
    """Nothing was made after 1302 and 1303, so the create is sent again; after 1303 polls were not paused."""
    emulator.fault("kling_error", on="element", code=code)
    async with session_at(emulator) as session:
        await session.create(**VIDEO)
        account = session.providers[0].account
    assert emulator.counts.elements == 1
    assert account is not None
    assert (account.cooldown.until > 0, account.windows["create"].own_cooldown.until > 0) == (
        code == 1302,
        code == 1303,
    )


async def test_parallel_tasks(emulator: Emulator) -> None:
    """A full account takes the next task as soon as one has ended."""
    emulator.kling.parallel = 1
    async with session_at(emulator) as session:
        outcomes = await session.create_all([CharacterRequest(**VIDEO, key=f"order-{number}") for number in range(2)])
    assert {outcome.state for outcome in outcomes} == {EntryState.SUCCEEDED}
    assert emulator.counts.elements == 2


async def test_failed_task(emulator: Emulator) -> None:
    """A failed task raises its reason."""
    emulator.fault("kling_fail")
    async with session_at(emulator) as session:
        with pytest.raises(TaskFailedError, match="The video contains no person"):
            await session.create(**VIDEO)


async def test_success_without_an_element(emulator: Emulator) -> None:
    """A success without an element is an error that shows the result."""
    emulator.fault("kling_empty")
    async with session_at(emulator) as session:
        with pytest.raises(MissingCharacterError):
            await session.create(**VIDEO)


@pytest.mark.parametrize("code", [1203, 1302, 5000, 5001, 5002])
async def test_faults_of_a_poll_end_no_wait(emulator: Emulator, code: int) -> None:
    """A poll that fails for a time, or does not show the new task yet, is repeated."""
    emulator.fault("kling_error", on="element_poll", code=code, times=2)
    async with session_at(emulator) as session:
        assert (await session.create(**VIDEO)).name == "Rex"
    assert emulator.counts.elements == 1


async def test_used_key(emulator: Emulator) -> None:
    """A create whose key Kling has seen returns the task of that key, and makes nothing."""
    async with session_at(emulator) as session:
        first = await session.create(**VIDEO, key="order-17")
    async with session_at(emulator) as session:  # an empty ledger: the memory of the first one is gone
        assert await session.create(**VIDEO, key="order-17") == first
    assert emulator.counts.elements == 1


@pytest.mark.parametrize("code", [1203, 5000, 1000])
async def test_used_key_that_is_not_shown(emulator: Emulator, code: int) -> None:
    """If Kling has seen the key but does not show its task, the outcome is unknown, and never "rejected"."""
    async with session_at(emulator) as session:
        await session.create(**VIDEO, key="order-17")
    emulator.fault("kling_error", on="element_poll", code=code, times=None)
    async with session_at(emulator) as session:
        with pytest.raises(SubmissionUnknownError):
            await session.create(**VIDEO, key="order-17", timeout=1.5)
        entry = await session.entry("order-17")
    assert entry is not None
    assert entry.state is EntryState.UNKNOWN


@pytest.mark.parametrize("key", ["order-17", "Bestellung 17/ü"])
async def test_lookup(emulator: Emulator, key: str) -> None:
    """The task of any key is found, and that of another key is not."""
    async with session_at(emulator) as session:
        provider = session.providers[0]
        assert await provider.lookup(key) is None
        handle = await session.submit(**VIDEO, key=key)
        found = await provider.lookup(key)
        assert found is not None
        assert found.task_id == handle.task_id
        assert await provider.lookup(f"{key}0") is None


async def test_delete_and_list(emulator: Emulator) -> None:
    """The account's tasks are listed, and an element is deleted once."""
    async with session_at(emulator) as session:
        provider = session.providers[0]
        assert isinstance(provider, Kling)
        first = await session.create(**VIDEO)
        await session.create(images=IMAGES, name="Bello", prompt="Another dog")
        listed = await provider.tasks()
        assert [task.character.name for task in listed if task.character] == ["Bello", "Rex"]
        for _ in range(2):  # Kling answers 1201 the second time
            await provider.delete(first.id)
        assert [task.deleted for task in emulator.kling.tasks.values()] == [True, False]


async def test_long_list(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """All pages of the list are read."""
    monkeypatch.setattr("sora_chars.providers.kling._MAX_PAGE_SIZE", 2)
    async with session_at(emulator) as session:
        provider = session.providers[0]
        assert isinstance(provider, Kling)
        for number in range(4):
            await session.create(**VIDEO, key=f"order-{number}")
        assert len(await provider.tasks()) == 4
        monkeypatch.setattr("sora_chars.providers.kling._MAX_PAGES", 1)
        assert len(await provider.tasks()) == 2


async def test_task_of_another_account(emulator: Emulator) -> None:
    """A task that Kling does not know is not found."""
    async with session_at(emulator) as session:
        with pytest.raises(TaskNotFoundError):
            await session.providers[0].fetch("856528333369769993")


@pytest.mark.parametrize("fault", ["lost_response", "truncated", "junk_json"])
async def test_lost_responses(emulator: Emulator, fault: str) -> None:
    """10 creates whose responses are lost become 10 characters, without callbacks and without a person."""
    emulator.fault(fault, on="element", times=10)
    async with session_at(emulator) as session:
        requests = [CharacterRequest(**VIDEO, key=f"Order {number}") for number in range(10)]
        outcomes = await session.create_all(requests)
    assert [outcome.state for outcome in outcomes] == [EntryState.SUCCEEDED] * 10
    ids = {outcome.character.id for outcome in outcomes if outcome.character}
    assert ids == {str(task.element_id) for task in emulator.kling.tasks.values()}
    assert emulator.counts.elements == 10


async def test_lost_responses_of_requests_that_never_arrived(emulator: Emulator) -> None:
    """A create that may have arrived and is not shown stays unknown; the same key is settled once it is shown."""
    emulator.fault("lost_response", on="element")
    hidden = emulator.fault("kling_error", on="element_poll", code=1203, times=None)
    async with session_at(emulator) as session:
        with pytest.raises(SubmissionUnknownError, match="it shows no task of this key"):
            await session.create(**VIDEO, key="order-17", timeout=2.5)
        hidden.remove()
        assert (await session.create(**VIDEO, key="order-17")).name == "Rex"
    assert emulator.counts.elements == 1


async def test_failed_task_is_retried(emulator: Emulator) -> None:
    """A new attempt of a failed key is a new task under another id, and a lost response of it is found."""
    emulator.fault("kling_fail")
    async with session_at(emulator) as session:
        with pytest.raises(TaskFailedError):
            await session.create(**VIDEO, key="order-17")
        emulator.fault("lost_response", on="element")
        assert (await (await session.retry("order-17"))).name == "Rex"
    assert emulator.counts.elements == 2
