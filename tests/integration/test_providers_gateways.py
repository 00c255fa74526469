"""The providers Wavespeed and Evolink against the emulator: what both of them do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from sora_chars import (
    AuthenticationError,
    CharacterRequest,
    CharacterSession,
    ConfigurationError,
    EntryState,
    InsufficientCreditsError,
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
from tests.support.gateway_accounts import (
    CLASSES,
    CREATES,
    ELEMENTS,
    IMAGES,
    KEYS,
    VIDEO,
    account,
    only_task,
    quick_emulator,
    session_at,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sora_chars.testing import Emulator

NAMES = ("wavespeed", "evolink")
pytestmark = pytest.mark.parametrize("name", NAMES)


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    """Start an emulator whose tasks take some milliseconds."""
    async with quick_emulator() as running:
        yield running


async def test_character_from_a_video(emulator: Emulator, name: str) -> None:
    """A clip becomes a character whose id has every digit."""
    async with session_at(emulator, name) as session:
        character = await session.create(**VIDEO, key="order-17")
        entry = await session.entry("order-17")
    task = only_task(emulator, name)
    assert (character.id, character.name, character.provider) == (str(task.element_id), "Rex", name)
    assert float(character.id) != int(character.id)
    assert character.task_id == task.task_id
    assert task.body["element_video_list"] == {"refer_videos": [{"video_url": VIDEO["video"]}]}
    assert entry is not None
    assert entry.state is EntryState.SUCCEEDED


async def test_character_from_images(emulator: Emulator, name: str) -> None:
    """The first image is the frontal one."""
    async with session_at(emulator, name) as session:
        assert (await session.create(**ELEMENTS)).name == "Bello"
    assert only_task(emulator, name).body["element_image_list"] == {
        "frontal_image": IMAGES[0],
        "refer_images": [{"image_url": IMAGES[1]}],
    }


async def test_other_forms_of_the_result(emulator: Emulator, name: str) -> None:
    """An element as JSON text, or in a list, is read too."""
    emulator.fault("gateway_text", on=CREATES[name])
    async with session_at(emulator, name) as session:
        character = await session.create(**VIDEO)
    assert character.id == str(only_task(emulator, name).element_id)


async def test_wrong_key(emulator: Emulator, name: str) -> None:
    """A wrong key is rejected once, and no message shows it."""
    async with CharacterSession(CLASSES[name]("another-0123456789abcdef", base_url=emulator.url)) as session:
        with pytest.raises(AuthenticationError) as caught:
            await session.create(**VIDEO)
    assert "another" not in str(caught.value)
    assert len(emulator.requests) == 1


async def test_other_requests(emulator: Emulator, name: str) -> None:
    """A provider that is asked directly refuses requests for other models."""
    async with session_at(emulator, name) as session:
        with pytest.raises(TypeError):
            await session.providers[0].submit(TaskRequest(model="m"), key="k", callback_url=None, on_send=None)  # type: ignore[arg-type]
    assert not emulator.requests


ROWS: list[tuple[int, type[SoraCharsError], EntryState]] = [
    (400, RequestRejectedError, EntryState.REJECTED),
    (401, AuthenticationError, EntryState.REJECTED),
    (402, InsufficientCreditsError, EntryState.REJECTED),
    (403, PermissionDeniedError, EntryState.REJECTED),
    (404, ModelUnavailableError, EntryState.REJECTED),
    (413, RequestRejectedError, EntryState.REJECTED),
    (500, SubmissionUnknownError, EntryState.UNKNOWN),
    (502, SubmissionUnknownError, EntryState.UNKNOWN),
    (503, SubmissionUnknownError, EntryState.UNKNOWN),
]


@pytest.mark.parametrize(("status", "error", "state"), ROWS)
async def test_every_error_of_a_create(
    emulator: Emulator, name: str, status: int, error: type[SoraCharsError], state: EntryState
) -> None:
    """Each row of the table of errors is sent once and recorded as what it is; money pauses nothing."""
    emulator.fault(f"{name}_error", status=status, times=None)
    async with session_at(emulator, name) as session:
        with pytest.raises(error):
            await session.create(**VIDEO, key="order-17", timeout=1.5)
        entry = await session.entry("order-17")
        limits = session.providers[0].account
        assert limits is not None
        assert limits.cooldown.until == 0
    assert len(emulator.requests) == 1
    assert entry is not None
    assert entry.state is state


async def test_rate_limits_are_waited_for(emulator: Emulator, name: str) -> None:
    """Nothing was made after a 429, so the create is sent again."""
    emulator.fault(f"{name}_error", status=429)
    async with session_at(emulator, name) as session:
        await session.create(**VIDEO)
    assert emulator.counts.gateway_elements == 1


async def test_failed_task(emulator: Emulator, name: str) -> None:
    """A failed task raises its reason and its code."""
    emulator.fault("gateway_fail", on=CREATES[name], code=1402)
    async with session_at(emulator, name) as session:
        with pytest.raises(TaskFailedError, match="The video contains no person") as caught:
            await session.create(**VIDEO)
    assert caught.value.code == "1402"


async def test_cancelled_task(emulator: Emulator, name: str) -> None:
    """A cancelled task has failed."""
    emulator.fault("gateway_cancel", on=CREATES[name])
    async with session_at(emulator, name) as session:
        with pytest.raises(TaskFailedError, match="cancelled"):
            await session.create(**VIDEO)


async def test_success_without_an_element(emulator: Emulator, name: str) -> None:
    """A success without an element id is an error that shows the result."""
    emulator.fault("gateway_empty", on=CREATES[name])
    async with session_at(emulator, name) as session:
        with pytest.raises(MissingCharacterError):
            await session.create(**VIDEO)


@pytest.mark.parametrize("status", [404, 429, 500, 502, 503])
async def test_faults_of_a_poll_end_no_wait(emulator: Emulator, name: str, status: int) -> None:
    """A poll that fails for a time, or does not show the new task yet, is repeated."""
    emulator.fault(f"{name}_error", on=f"{CREATES[name]}_poll", status=status, times=2)
    async with session_at(emulator, name) as session:
        assert (await session.create(**VIDEO)).name == "Rex"
    assert emulator.counts.gateway_elements == 1


async def test_task_of_another_account(emulator: Emulator, name: str) -> None:
    """A task that the gateway does not know is not found."""
    async with session_at(emulator, name) as session:
        for task_id in ("e6832d4abffb4d79bfbca19783fca133", "a/b?c"):
            with pytest.raises(TaskNotFoundError):
                await session.providers[0].fetch(task_id)


@pytest.mark.parametrize("fault", ["lost_response", "truncated", "junk_json"])
async def test_lost_responses_stay_unknown(emulator: Emulator, name: str, fault: str) -> None:
    """A gateway cannot be asked for the task of a key: the outcome stays unknown, and nothing is sent again."""
    emulator.fault(fault, on=CREATES[name], times=3)
    async with session_at(emulator, name) as session:
        requests = [CharacterRequest(**VIDEO, key=f"order-{number}") for number in range(3)]
        outcomes = await session.create_all(requests)
        assert [outcome.state for outcome in outcomes] == [EntryState.UNKNOWN] * 3
        with pytest.raises(SubmissionUnknownError):
            await session.create(**VIDEO, key="order-0")
        provider = session.providers[0]
        assert provider.settles is None
        with pytest.raises(ConfigurationError):
            await provider.lookup("order-0")
    assert emulator.counts.gateway_elements == 3


async def test_running_task_is_resumed(emulator: Emulator, name: str) -> None:
    """A stuck task is still running, and is found by its id from another session."""
    emulator.fault("gateway_stuck", on=CREATES[name])
    async with session_at(emulator, name) as session:
        handle = await session.submit(**VIDEO)
        assert not (await handle.refresh()).finished
    account(emulator, name).tasks[handle.task_id].ends_at = 0
    async with session_at(emulator, name) as session:
        assert (await session.resume(handle.task_id)).name == "Rex"


async def test_credit(emulator: Emulator, name: str) -> None:
    """The account's credits are reported."""
    async with session_at(emulator, name) as session:
        assert await session.credit() == 1000.0


async def test_durations_are_learned(emulator: Emulator, name: str) -> None:
    """A finished task has a duration and a model, from which the adaptive interval learns."""
    async with session_at(emulator, name) as session:
        handle = await session.submit(**VIDEO)
        await handle
        snapshot = handle.snapshot
    assert snapshot is not None
    assert snapshot.model == {"wavespeed": "kwaivgi/kling-elements-advanced", "evolink": "kling-custom-element"}[name]
    assert snapshot.duration is not None
    assert snapshot.duration < 3


@pytest.mark.parametrize("suffix", ["", "/", "/api/v3", "/v1"])
async def test_base_urls_with_a_path(emulator: Emulator, name: str, suffix: str) -> None:
    """The version in the base URL of each gateway may be given or left out."""
    if suffix == {"wavespeed": "/v1", "evolink": "/api/v3"}[name]:
        return
    provider = CLASSES[name](KEYS[name], base_url=emulator.url + suffix)
    async with CharacterSession(provider) as session:
        assert await session.credit() == 1000.0


def test_keys_from_the_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a key the variable is named; no key stands in the repr."""
    make: Any = CLASSES[name]
    variable = f"{name.upper()}_API_KEY"
    with pytest.raises(ConfigurationError, match=f"Set {variable}"):
        make()
    monkeypatch.setenv(variable, "secret-0123456789")
    assert "secret" not in repr(make()) + repr(make()._transport)
