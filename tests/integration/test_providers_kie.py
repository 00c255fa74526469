"""The provider kie.ai against the emulator."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from sora_chars import (
    AuthenticationError,
    CharacterRequest,
    CharacterSession,
    FixedInterval,
    InsufficientCreditsError,
    InvalidRequestError,
    Kie,
    MissingCharacterError,
    ModelInfo,
    ModelUnavailableError,
    ServiceUnavailableError,
    SoraCharsError,
    SubmissionUnknownError,
    TaskFailedError,
    TaskRequest,
    UploadProgress,
    UsageCapError,
)
from sora_chars.testing import Emulator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from sora_chars.testing.emulator.files import File

KEY = "sk-test-4f81-0123456789"
ORIGIN = "7118f712a5b0c9d8e7f60123456789ab"
FROM_TASK: dict[str, Any] = {"from_task": ORIGIN, "clip": "3.55,5.55", "prompt": "A friendly cartoon dog"}


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    """Start an emulator whose tasks take some milliseconds."""
    async with Emulator(durations=(0.01, 0.03), kie_key=KEY) as running:
        running.add_origin(ORIGIN, seconds=10)
        yield running


def provider(emulator: Emulator, key: str = KEY, **options: Any) -> Kie:
    """Return a provider for the emulator, without rate limits."""
    return Kie(key, base_url=f"{emulator.url}/", upload_url=emulator.url, limits=None, **options)


def uploaded(emulator: Emulator, task_id: str) -> File:
    """Return the file that the task was created from."""
    urls = emulator.tasks[task_id].input["character_file_url"]
    assert isinstance(urls, list)
    file = emulator.files.find(urls[0])
    assert file is not None
    return file


@pytest.fixture
async def session(emulator: Emulator) -> AsyncIterator[CharacterSession]:
    """Open a session that polls every few milliseconds."""
    async with CharacterSession(provider(emulator), polling=FixedInterval(0.005)) as opened:
        yield opened


async def test_from_finished_task(emulator: Emulator, session: CharacterSession) -> None:
    """A character of a finished task is created once, by the documented request."""
    handle = await session.submit(**FROM_TASK, name="rex", safety="No blood")
    character = await handle
    task = emulator.tasks[handle.task_id]
    assert task.model == "sora-2-characters-pro"
    assert task.input == {
        "origin_task_id": ORIGIN,
        "timestamps": "3.55,5.55",
        "character_prompt": FROM_TASK["prompt"],
        "character_user_name": "rex",
        "safety_instruction": "No blood",
    }
    assert task.callback_url is None
    assert re.fullmatch(r"ch_[0-9a-f]{32}", character.id)
    assert (character.provider, character.task_id, character.name) == ("kie", handle.task_id, "rex")
    assert emulator.counts.creates == 1


async def test_resumed_task_has_name(emulator: Emulator, session: CharacterSession) -> None:
    """A task that is resumed by its id alone gives the character with the requested name."""
    task_id = (await session.submit(**FROM_TASK, name="rex")).task_id
    async with CharacterSession(provider(emulator), polling=FixedInterval(0.005)) as other:
        assert (await other.resume(task_id)).name == "rex"
    assert emulator.counts.creates == 1


async def test_from_video_url(emulator: Emulator, session: CharacterSession) -> None:
    """A video with a URL is not uploaded: its URL is sent."""
    handle = await session.submit(video="https://videos.example/dog.mp4")
    await handle
    task = emulator.tasks[handle.task_id]
    assert task.model == "sora-2-characters"
    assert task.input == {"character_file_url": ["https://videos.example/dog.mp4"]}
    assert emulator.counts.uploads == 0


async def test_from_local_video(emulator: Emulator, make_clip: Callable[..., Path]) -> None:
    """A local video is uploaded unchanged, its progress is reported, and its new URL is sent."""
    clip = make_clip(size=300_000, name="DOG.MP4")
    reported: list[UploadProgress] = []
    kie = provider(emulator, on_upload=reported.append)
    async with CharacterSession(kie, polling=FixedInterval(0.005)) as session:
        handle = await session.submit(video=clip, prompt="A dog")
        await handle
    file = uploaded(emulator, handle.task_id)
    assert (file.content, file.mime) == (clip.read_bytes(), "video/mp4")
    assert [progress.sent for progress in reported] == sorted({progress.sent for progress in reported})
    assert reported[-1] == UploadProgress(clip, 300_000, 300_000)
    assert {(progress.path, progress.total) for progress in reported} == {(clip, 300_000)}


async def test_upload_warns_of_its_lifetime(
    emulator: Emulator, session: CharacterSession, make_clip: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    """A character from a local file may end with the upload: a warning names key, file and times; a URL gives none."""
    clip = make_clip()
    await session.submit(video="https://videos.example/dog.mp4", key="k-1")
    await session.submit(video=clip, key="k-2")
    (record,) = [record for record in caplog.records if vars(record).get("event") == "upload.temporary"]
    facts: dict[str, Any] = vars(record)
    assert (record.levelname, facts["key"], facts["file"]) == ("WARNING", "k-2", str(clip))
    assert "24 hours, 3 days or 14 days" in facts["why"]
    assert emulator.counts.uploads == 1


async def test_upload_names_are_unique(
    emulator: Emulator, session: CharacterSession, make_clip: Callable[..., Path]
) -> None:
    """The same file uploaded twice has two URLs, since a repeated name would overwrite it behind a cache."""
    clip = make_clip()
    handles = [await session.submit(video=clip) for _ in range(2)]
    urls = {str(emulator.tasks[handle.task_id].input["character_file_url"]) for handle in handles}
    assert len(urls) == 2
    assert all(url.endswith(".mp4']") for url in urls)


@pytest.mark.parametrize("kind", ["http_500", "html", "lost_response"])
async def test_upload_is_retried(
    kind: str, emulator: Emulator, session: CharacterSession, make_clip: Callable[..., Path]
) -> None:
    """An upload costs nothing: after a transient fault it is repeated in full, and one create follows."""
    emulator.fault(kind, on="upload")
    clip = make_clip(size=100_000)
    handle = await session.submit(video=clip)
    file = uploaded(emulator, handle.task_id)
    assert file.content == clip.read_bytes()
    assert emulator.request_counts["POST", "/api/file-stream-upload"] == 2
    assert emulator.counts.creates == 1


async def test_invalid_request_is_not_sent(
    emulator: Emulator, session: CharacterSession, make_clip: Callable[..., Path]
) -> None:
    """A file that is too large and too long is rejected with both reasons, and nothing is sent."""
    with pytest.raises(InvalidRequestError, match="10 MB") as caught:
        await session.create(video=make_clip(9, size=10 * 1024 * 1024 + 1), prompt="x" * 5001)
    assert [line.removeprefix("kie: ").partition(" must ")[0] for line in caught.value.problems] == ["prompt", "video"]
    assert not emulator.requests


async def test_omni_character(emulator: Emulator, session: CharacterSession, tmp_path: Path) -> None:
    """The omni route creates a character from images, local or not, and is finished at once."""
    image = tmp_path / "face.png"
    image.write_bytes(b"\x89PNG\r\n\x1a\n")
    elsewhere = CharacterRequest(images=["https://images.example/face.png"], prompt="A dog")
    local = CharacterRequest(images=[image, image], prompt="A dog", name="rex", voice="a1")
    for request in (elsewhere, local):
        handle = await session.submit(request)
        assert handle.done()
        character = await handle
        assert character.id.startswith("character_")
        assert (character.name, handle.task_id) == (request.name, character.id)
    assert (emulator.counts.omni, emulator.counts.uploads, emulator.counts.polls) == (2, 2, 0)


async def test_other_model(emulator: Emulator, session: CharacterSession) -> None:
    """A task of another model ends with its finished snapshot and the decoded result."""
    request = TaskRequest(model="sora-2-text-to-video", input={"prompt": "A dog", "n_frames": "10"})
    finished = await session.create(request)
    assert (finished.model, finished.state, finished.character) == (request.model, "success", None)
    assert finished.result["resultUrls"][0].startswith(emulator.url)
    assert emulator.tasks[finished.task_id].input == request.input
    assert finished.credits == 0.0625


async def test_callback_url_has_token(emulator: Emulator) -> None:
    """With a callback URL, each task gets its own URL below it."""
    kie = provider(emulator, callback_url="http://127.0.0.1:9/hooks/")
    async with CharacterSession(kie, polling=FixedInterval(0.005)) as session:
        urls = [emulator.tasks[(await session.submit(**FROM_TASK)).task_id].callback_url for _ in range(2)]
    assert all(re.fullmatch(r"http://127\.0\.0\.1:9/hooks/[\w-]{32}", str(url)) for url in urls)
    assert len(set(urls)) == 2


async def test_credit_and_models(emulator: Emulator, session: CharacterSession) -> None:
    """Credit and models can be queried before anything is charged."""
    assert await session.credit() == 1000.0
    models = await session.models()
    assert [model.model for model in models] == list(emulator.models)
    assert isinstance(models[0], ModelInfo)
    assert models[0].task_type == "character"
    assert emulator.counts.creates == 0


async def test_unavailable_model(emulator: Emulator, session: CharacterSession) -> None:
    """A model that kie.ai no longer serves raises an error whose hint names the command that lists models."""
    with pytest.raises(ModelUnavailableError, match="sora-chars models"):
        await session.create(TaskRequest(model="sora-1"))
    assert emulator.counts.creates == 0


@pytest.mark.parametrize(
    "shape", ["character_id", "resultObject", "character_id_list", "character_id_list_str", "characterId"]
)
async def test_result_shapes(shape: str, emulator: Emulator, session: CharacterSession) -> None:
    """The id is found in every known shape of the result."""
    emulator.fault("result_shape", shape=shape)
    assert (await session.create(**FROM_TASK)).id.startswith("ch_")


@pytest.mark.parametrize("shape", ["resultUrls", "empty_id", "none", "array", "empty", "null", "junk"])
async def test_success_without_character(shape: str, emulator: Emulator, session: CharacterSession) -> None:
    """A task that succeeded without an id raises an error with the task's id."""
    emulator.fault("result_shape", shape=shape)
    handle = await session.submit(**FROM_TASK)
    with pytest.raises(MissingCharacterError) as caught:
        await handle
    assert caught.value.task_id == handle.task_id


async def test_failed_task(emulator: Emulator, session: CharacterSession) -> None:
    """The error of a failed task has its code and its reason."""
    emulator.fault("fail_task", code="SENSITIVE_WORD_ERROR", message="the prompt is sensitive")
    with pytest.raises(TaskFailedError, match="the prompt is sensitive") as caught:
        await session.create(**FROM_TASK)
    assert caught.value.code == "SENSITIVE_WORD_ERROR"


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("unauthorized", AuthenticationError),
        ("credits", InsufficientCreditsError),
        ("credits_500", InsufficientCreditsError),
        ("cap", UsageCapError),
        ("http_500", ServiceUnavailableError),
        ("body_500", ServiceUnavailableError),
        ("html", SubmissionUnknownError),
        ("lost_response", SubmissionUnknownError),
        ("reset", SubmissionUnknownError),
        ("truncated", SubmissionUnknownError),
        ("junk_json", SubmissionUnknownError),
    ],
)
@pytest.mark.parametrize("on", ["create", "omni"])
async def test_paid_request_is_sent_once(
    kind: str, error: type[SoraCharsError], on: str, emulator: Emulator, session: CharacterSession
) -> None:
    """A paid request is not repeated after any response, except one that proves that nothing was done."""
    emulator.fault(kind, on=on, times=None)
    omni = CharacterRequest(images=["https://a.example/b.png"], prompt="d", key="my-key")
    with pytest.raises(error) as caught:
        await session.create(omni if on == "omni" else CharacterRequest(**FROM_TASK, key="my-key"))
    assert type(caught.value) is error
    assert len(emulator.requests) == 1
    if isinstance(caught.value, SubmissionUnknownError):
        assert (caught.value.key, caught.value.provider) == ("my-key", "kie")


async def test_wrong_key(emulator: Emulator) -> None:
    """A wrong key is rejected once, and no message shows it."""
    async with CharacterSession(provider(emulator, "sk-wrong-77-0123456789"), polling=FixedInterval(0.005)) as session:
        with pytest.raises(AuthenticationError, match="KIE_API_KEY") as caught:
            await session.create(**FROM_TASK)
    assert "sk-wrong-77-0123456789" not in str(caught.value)
    assert len(emulator.requests) == 1
