"""Requests, results and errors as JSON, and how each is read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from sora_chars.errors import KeyConflictError, ProviderError, RateLimitedError, RequestRejectedError
from sora_chars.ids import token_digest
from sora_chars.ledger import EntryState, open_ledger
from sora_chars.ledger.serialize import (
    echoes_other_token,
    rejection,
    to_error,
    to_record,
    to_request,
    to_result,
    to_snapshot,
)
from sora_chars.ledger.transitions import end_state
from sora_chars.models import Character, CharacterRequest, Clip, TaskFailure, TaskSnapshot
from tests.support.recorded_requests import REQUESTS, record_request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sora_chars.ledger import Entry, Ledger
    from sora_chars.models import Request


@pytest.fixture
async def ledger() -> AsyncIterator[Ledger]:
    """Return an empty ledger."""
    async with open_ledger("memory:") as opened:
        yield opened


async def record_end(ledger: Ledger, snapshot: TaskSnapshot) -> Entry:
    """Record a task that ended with this snapshot."""
    state, facts = end_state(snapshot, "character")
    return await record_request(ledger, "k-1", EntryState.SENDING, state, **facts)


@pytest.mark.parametrize("request_", REQUESTS)
async def test_requests_round_trip(ledger: Ledger, request_: Request) -> None:
    """Every kind of request is read back unchanged, with the key of its entry."""
    entry = await record_request(ledger, "k-1", request=request_)
    assert to_request(entry) == attrs.evolve(request_, key="k-1")


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (CharacterRequest(video="dogs/rex.mp4", clip=Clip(0, 2)), "video"),
        (CharacterRequest(video=Path("dogs/rex.mp4")), "video"),
    ],
)
def test_local_paths_become_absolute(request_: Request, field: str, tmp_path: Path, monkeypatch: Any) -> None:
    """A path is recorded as absolute, because another process may have another working directory."""
    monkeypatch.chdir(tmp_path)
    _, record = to_record(request_)
    assert record[field] == str(tmp_path / getattr(request_, field))


def test_local_images_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The paths among the images are recorded as absolute, and the URLs as they are."""
    monkeypatch.chdir(tmp_path)
    _, record = to_record(CharacterRequest(images=["https://a.invalid/a.png", "b.png"]))
    assert record == {"images": ["https://a.invalid/a.png", str(tmp_path / "b.png")]}


OMNI: dict[str, Any] = {
    "image": "https://a.invalid/dog.png",
    "descriptions": "a dog",
    "name": "rex",
    "audio_ids": ["a1", "a2"],
}


async def test_reads_requests_of_kind_omni(ledger: Ledger) -> None:
    """An entry of kind "omni", which earlier versions recorded, is a request with one image."""
    entry = await ledger.register(key="k-1", provider="kie", kind="omni", request=OMNI)
    current = CharacterRequest(images=[OMNI["image"]], prompt="a dog", name="rex", voice="a1,a2", key="k-1")
    assert to_request(entry) == current
    kind, record = to_record(current)
    assert await ledger.register(key="k-1", provider="kie", kind=kind, request=record) == entry
    with pytest.raises(KeyConflictError):
        await ledger.register(key="k-1", provider="kie", kind=kind, request=record | {"prompt": "a cat"})


async def test_reads_omni_requests_without_options(ledger: Ledger) -> None:
    """The name and the audio ids of such an entry are optional."""
    request = {"image": "https://a.invalid/dog.png", "descriptions": "a dog", "audio_ids": []}
    entry = await ledger.register(key="k-1", provider="kie", kind="omni", request=request)
    assert to_request(entry) == CharacterRequest(images=[OMNI["image"]], prompt="a dog", key="k-1")


def test_record_omits_the_key_and_unset_fields() -> None:
    """A record is plain JSON of the fields that are set, without the key."""
    kind, record = to_record(CharacterRequest(from_task="t0", clip=Clip(0.5, 2), key="k-1"))
    assert (kind, json.loads(json.dumps(record))) == ("character", {"from_task": "t0", "clip": "0.5,2"})


@pytest.mark.parametrize(
    "facts",
    [
        {"state": "success", "character": Character(id="ch_1", provider="kie", raw={"id": "ch_1", "more": None})},
        {"state": "fail", "failure": TaskFailure("501", "no face was found")},
        {"state": "fail", "failure": TaskFailure(None, "no face was found")},
        {"state": "fail", "created_at": 1.5, "completed_at": 2.5, "credits": 7.5, "progress": 100.0},
    ],
)
async def test_results_round_trip(ledger: Ledger, facts: dict[str, Any]) -> None:
    """A finished snapshot is read back unchanged, with its raw record."""
    snapshot = TaskSnapshot(task_id="t1", provider="kie", result={"a": None}, raw={"b": [1]}, **facts)
    entry = await record_end(ledger, snapshot)
    assert to_snapshot(entry) == snapshot
    assert (to_snapshot(entry).raw, entry.credits) == ({"b": [1]}, facts.get("credits"))


def test_result_omits_the_digest() -> None:
    """The digest of a response has no meaning in another process."""
    assert "digest" not in to_result(TaskSnapshot(task_id="t1", provider="kie", state="success", digest=7))


async def test_result_contains_no_token(ledger: Ledger) -> None:
    """The callback URL that a record repeats is hidden, in JSON and in JSON inside JSON."""
    url = "https://me.invalid/hook/secret"
    raw = {"callBackUrl": url, "param": json.dumps({"callBackUrl": url, "input": json.dumps({"callBackUrl": url})})}
    entry = await record_end(ledger, TaskSnapshot(task_id="t1", provider="kie", state="fail", raw=raw))
    assert "secret" not in str(entry.result_json)
    assert json.loads(to_snapshot(entry).raw["param"])["callBackUrl"] == "***"


@pytest.mark.parametrize("url", [None, "", 5, {}, "none"])
def test_keeps_invalid_callback_urls(url: object) -> None:
    """An invalid callback URL is kept as it is, and does not count as another token."""
    raw = {"callBackUrl": url, "param": json.dumps({"callBackUrl": url, "a": 1}), "prompt": "callBackUrl", "b": 2}
    snapshot = TaskSnapshot(task_id="t1", provider="kie", state="success", raw=raw)
    assert to_result(snapshot)["raw"] == raw
    assert not echoes_other_token(snapshot, token_digest("mine"))


@pytest.mark.parametrize(("token", "is_other"), [("mine", False), ("other", True)])
def test_echoes_other_token(token: str, is_other: bool) -> None:  # noqa: FBT001 # a parameter
    """A record that repeats a callback URL with another token belongs to another request."""
    raw = {"param": json.dumps({"callBackUrl": f"https://me.invalid/hook/{token}"}).replace("/", "\\/")}
    snapshot = TaskSnapshot(task_id="t1", provider="kie", state="success", raw=raw)
    assert echoes_other_token(snapshot, token_digest("mine")) is is_other


@attrs.define(eq=False, slots=False, kw_only=True)
class CustomProviderError(ProviderError):
    """Error of a provider outside the package."""

    rule: str = ""


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RequestRejectedError("no face", hint="look", provider="kie", status=200, code=422), RequestRejectedError),
        (RateLimitedError("too many", retry_after=2.5), RateLimitedError),
        (CustomProviderError("no dogs", rule="7", code="dogs"), ProviderError),
        (ProviderError(""), ProviderError),
    ],
)
async def test_rejections_round_trip(ledger: Ledger, error: ProviderError, kind: type) -> None:
    """An error keeps its type and attributes; a foreign type becomes `ProviderError`."""
    entry = await record_request(ledger, "k-1", EntryState.REJECTED, error=to_error(error))
    restored = rejection(entry)
    assert type(restored) is kind
    names = [field.name for field in attrs.fields(ProviderError)]
    assert [getattr(restored, name) for name in names] == [getattr(error, name) for name in names]


@pytest.mark.parametrize(
    ("recorded", "message"),
    [
        ("boom", "boom"),
        ([1], "[1]"),
        ({"message": 5, "hint": 6}, "5"),
        ({"type": "printable", "message": "a"}, "a"),
        ({"type": "InvalidTransitionError", "message": "a"}, "a"),
    ],
)
async def test_a_rejection_that_another_program_recorded(ledger: Ledger, recorded: Any, message: str) -> None:
    """A recorded error of another form is a `ProviderError` with what was recorded."""
    entry = await record_request(ledger, "k-1", EntryState.REJECTED, error=recorded)
    assert not entry.may_have_been_paid
    restored = rejection(entry)
    assert (type(restored), restored.message) == (ProviderError, message)
