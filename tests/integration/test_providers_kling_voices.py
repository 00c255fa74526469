"""Kling's custom voices against the emulator: recorded, settled and resumed as any other paid request."""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from sora_chars import (
    CharacterRequest,
    CharacterSession,
    FixedInterval,
    InvalidRequestError,
    Kie,
    Kkiai,
    Kling,
    MissingCharacterError,
    RequestRejectedError,
    SubmissionUnknownError,
    TaskFailedError,
    TaskNotFoundError,
)
from sora_chars.ledger import EntryState
from sora_chars.models import VoiceRequest
from tests.support.kling_account import KEY, VIDEO, session_at

if TYPE_CHECKING:
    from pathlib import Path

    from sora_chars.testing import Emulator

SOURCE = "https://voices.example/rex.wav"


@pytest.fixture
def emulator(sora_emulator: Emulator) -> Emulator:
    """Return the emulator."""
    return sora_emulator


def session_on(ledger: Path, emulator: Emulator) -> CharacterSession:
    """Return a session with a ledger."""
    return CharacterSession(Kling(KEY, base_url=emulator.url), polling=FixedInterval(0.005), ledger=ledger)


async def test_voice_of_a_character(emulator: Emulator) -> None:
    """A voice is created, and a character takes its id."""
    async with session_at(emulator) as session:
        voice = await session.create_voice(SOURCE, "Rex", key="voice-1")
        character = await session.create(**VIDEO, voice=voice.id)
        entry = await session.entry("voice-1")
        assert await session.create_voice(SOURCE, "Rex", key="voice-1") == voice
        assert [saved.character.id async for saved in session.characters()] == [character.id]
    voice_task, element_task = emulator.kling.tasks.values()
    assert (voice.id, voice.name, voice.task_id) == (str(voice_task.element_id), "Rex", voice_task.task_id)
    assert element_task.body["element_voice_id"] == voice.id
    assert voice_task.body == {"voice_name": "Rex", "voice_url": SOURCE, "external_task_id": "voice-1"}
    assert entry is not None
    assert (entry.kind, entry.state, entry.credits) == ("voice", EntryState.SUCCEEDED, 0.05)
    assert entry.outcome() == voice
    assert (emulator.counts.voices, emulator.counts.elements) == (1, 1)


@pytest.mark.parametrize("fault", ["lost_response", "truncated"])
async def test_lost_response_is_settled(emulator: Emulator, fault: str) -> None:
    """A voice whose response was lost is found by its key; nothing is sent twice."""
    emulator.fault(fault, on="voice")
    async with session_at(emulator) as session:
        assert (await session.create_voice(SOURCE, "Rex", key="voice-1")).name == "Rex"
    assert emulator.counts.voices == 1


async def test_another_session_goes_on(emulator: Emulator, tmp_path: Path) -> None:
    """A voice that was sent, and one whose outcome is unknown, are recovered from the ledger."""
    ledger = tmp_path / "ledger.db"
    silence = emulator.fault("http_500", on="voice_poll", times=None)
    emulator.fault("lost_response", on="voice", times=1)
    async with CharacterSession(
        Kling(KEY, base_url=emulator.url), polling=FixedInterval(0.005), ledger=ledger
    ) as session:
        with pytest.raises(SubmissionUnknownError):
            await session.create_voice(SOURCE, "Lost", key="lost", timeout=0.5)
        await session.submit(VoiceRequest(source=SOURCE, name="Rex", key="sent"))
    silence.remove()
    async with CharacterSession(
        Kling(KEY, base_url=emulator.url), polling=FixedInterval(0.005), ledger=ledger
    ) as session:
        assert [await handle async for handle in session.recover()]
        found = [await session.create_voice(SOURCE, name, key=key) for name, key in (("Lost", "lost"), ("Rex", "sent"))]
    assert [voice.name for voice in found] == ["Lost", "Rex"]
    assert emulator.counts.voices == 2


async def test_callback_of_a_voice(emulator: Emulator) -> None:
    """The body of a voice's callback is read, and names its task."""
    async with session_at(emulator) as session:
        voice = await session.create_voice(SOURCE, "Rex")
        (task,) = emulator.kling.tasks.values()
        provider = session.providers[0]
        assert isinstance(provider, Kling)
        event = provider.read_callback({}, json.dumps(task.record()).encode(), now=0.0, tolerance=300.0)
    assert event.task_id == voice.task_id


@pytest.mark.parametrize(
    ("fault", "settings", "error"),
    [("kling_fail", {"message": "two voices"}, TaskFailedError), ("kling_empty", {}, MissingCharacterError)],
)
async def test_voice_that_fails(
    emulator: Emulator, fault: str, settings: dict[str, Any], error: type[Exception]
) -> None:
    """A failed task raises the provider's reason, and a success without an id is an error of its own."""
    emulator.fault(fault, on="voice", **settings)
    async with session_at(emulator) as session:
        with pytest.raises(error, match=r"two voices|no voice id"):
            await session.create_voice(SOURCE, "Rex", key="voice-1")
        entry = await session.entry("voice-1")
    assert entry is not None
    assert entry.state is EntryState.FAILED


async def test_rejected_voice(emulator: Emulator) -> None:
    """An error of Kling's rejects the request."""
    emulator.fault("kling_error", on="voice", code=1301)
    async with session_at(emulator) as session:
        with pytest.raises(RequestRejectedError, match="1301"):
            await session.create_voice(SOURCE, "Rex")
        with pytest.raises(TaskNotFoundError):
            await session.providers[0].fetch("856528333369769993")


async def test_local_recordings(emulator: Emulator, tmp_path: Path) -> None:
    """A local recording needs hosting=, and is checked as far as its header tells."""
    recording = tmp_path / "rex.wav"
    recording.write_bytes(b"RIFF")

    async def hosting(path: Path) -> str:
        return f"https://files.example/{path.name}"

    async with session_at(emulator) as session:
        with pytest.raises(InvalidRequestError, match=r"source must be a URL, .* or pass hosting="):
            await session.create_voice(recording, "Rex")
    async with session_at(emulator, hosting=hosting) as session:
        await session.create_voice(recording, "Rex")
        for path, problem in (
            (tmp_path / "rex.ogg", "source must be a file of type mp3, wav, mp4, mov, got"),
            (tmp_path / "none.mp3", "source must be an http\\(s\\) URL or an existing file, got"),
            (tmp_path / "none.mp4", "source must be an http\\(s\\) URL or an existing file, got"),
        ):
            with pytest.raises(InvalidRequestError, match=problem):
                await session.create_voice(path, "Rex")
    (task,) = emulator.kling.tasks.values()
    assert task.body["voice_url"] == "https://files.example/rex.wav"


@pytest.mark.parametrize(
    ("source", "name", "problem"),
    [
        ("", "Rex", "source must not be empty"),
        (SOURCE, " ", "name must be text and not empty, got ' '"),
        (SOURCE, 5, "name must be text and not empty, got 5"),
        (SOURCE, "x" * 21, "name must have 1 to 20 characters, got 21"),
    ],
)
async def test_invalid_requests(emulator: Emulator, source: Any, name: Any, problem: str) -> None:
    """The limits are checked before anything is sent."""
    async with session_at(emulator) as session:
        with pytest.raises(InvalidRequestError, match=problem):
            await session.create_voice(source, name)
    assert not emulator.requests


async def test_providers_without_voices(emulator: Emulator) -> None:
    """Only a provider with a route is chosen; the error names each that has none."""
    others = (Kkiai(KEY, base_url=emulator.url), Kie(KEY, base_url=emulator.url))
    async with CharacterSession(*others, polling=FixedInterval(0.01)) as session:
        with pytest.raises(InvalidRequestError, match=r"kkiai: request must not be for a voice.*kie: request must not"):
            await session.create_voice(SOURCE, "Rex")
    kling = Kling(KEY, base_url=emulator.url)
    async with CharacterSession(*others, kling, polling=FixedInterval(0.01)) as session:
        assert (await session.create_voice(SOURCE, "Rex")).provider == "kling"
    assert not others[0].check(CharacterRequest(video="https://a.example/v.mp4", clip="1,3"))
    voice = VoiceRequest(source=SOURCE, name="Rex")
    for provider in others:
        assert provider.check(voice)
        with pytest.raises(TypeError, match="VoiceRequest"):
            await provider.submit(voice, key="k", callback_url=None, on_send=nullcontext)


@pytest.mark.parametrize(
    "body",
    [{}, {"voice_name": "a"}, {"voice_name": "a", "voice_url": "b"}, {"voice_name": "a", "voice_url": SOURCE, "x": 1}],
)
async def test_emulator_is_strict(emulator: Emulator, body: dict[str, object]) -> None:
    """The emulator rejects what the contract does not allow, with 1201, and knows the route's methods."""
    headers = {"Authorization": "Bearer any"}
    async with httpx.AsyncClient(base_url=emulator.url, headers=headers) as http:
        assert (await http.post("/v1/general/custom-voices", json=body)).json()["code"] == 1201
        assert (await http.put("/v1/general/custom-voices", json=body)).json()["code"] == 1202
        assert (await http.get("/v1/general/custom-voices/1")).json()["code"] == 1203
