from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from sora_chars.errors import InvalidRequestError, ProviderError, RateLimitedError, RequestRejectedError
from sora_chars.ids import token_digest
from sora_chars.ledger import EntryState, Ledger, open_ledger
from sora_chars.ledger.queries import SavedCharacter, characters, find
from sora_chars.ledger.serialize import (
    echoes_other_token,
    rejection,
    to_error,
    to_record,
    to_request,
    to_result,
    to_snapshot,
)
from sora_chars.ledger.stores.memory import MemoryStore
from sora_chars.ledger.transitions import end_state, mark_orphaned, resolve
from sora_chars.models import (
    Character,
    CharacterRequest,
    Clip,
    OmniCharacterRequest,
    TaskFailure,
    TaskRequest,
    TaskSnapshot,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sora_chars.ledger import Entry
    from sora_chars.models import Request

URL = "https://a.invalid/dog.mp4"
REQUESTS: list[Request] = [
    CharacterRequest(from_task="t0", clip=Clip(1, 3), name="rex", prompt="a dog", safety="none"),
    CharacterRequest(video=URL),
    TaskRequest(model="m", input={"prompt": "a dog", "frames": [1, None]}),
    OmniCharacterRequest(image="HTTPS://a.invalid/dog.png", descriptions="a dog", audio_ids=("a1", "a2")),
]


@pytest.fixture
async def ledger() -> AsyncIterator[Ledger]:
    """Give an empty ledger."""
    async with open_ledger("memory:") as opened:
        yield opened


async def put(ledger: Ledger, key: str, *ways: EntryState, request: Request | None = None, **facts: Any) -> Entry:
    """Ask under a key and move it through states; the facts go with the last."""
    kind, record = to_record(request or REQUESTS[0])
    entry = await ledger.register(key=key, provider="kie", kind=kind, request=record)
    for number, to in enumerate(ways, 1):
        entry = await ledger.transition(entry, to, **facts if number == len(ways) else {})
    return entry


async def end(ledger: Ledger, key: str, request: Request, character: Character | None, **facts: Any) -> Entry:
    """Put a wish that has succeeded on record."""
    snapshot = TaskSnapshot(task_id=f"t-{key}", provider="kie", state="success", character=character, **facts)
    kind, _ = to_record(request)
    to, ended = end_state(snapshot, kind)
    return await put(ledger, key, EntryState.SENDING, to, request=request, **ended)


@pytest.mark.parametrize("request_", REQUESTS)
async def test_a_request_comes_back_as_it_was(ledger: Ledger, request_: Request) -> None:
    """Every kind of request is read back whole, with the key of its entry."""
    entry = await put(ledger, "k-1", request=request_)
    assert to_request(entry) == attrs.evolve(request_, key="k-1")


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (CharacterRequest(video="dogs/rex.mp4", clip=Clip(0, 2)), "video"),
        (CharacterRequest(video=Path("dogs/rex.mp4")), "video"),
        (OmniCharacterRequest(image=Path("dogs/rex.png"), descriptions="a dog"), "image"),
    ],
)
def test_a_local_path_is_made_absolute(request_: Request, field: str, tmp_path: Path, monkeypatch: Any) -> None:
    """A path is recorded so that another process finds the file from wherever it works."""
    monkeypatch.chdir(tmp_path)
    _, record = to_record(request_)
    assert record[field] == str(tmp_path / getattr(request_, field))


def test_a_record_is_json_without_the_key_and_without_what_was_left_out() -> None:
    """Only what was asked for is recorded, in plain JSON."""
    kind, record = to_record(CharacterRequest(from_task="t0", clip=Clip(0.5, 2), key="k-1"))
    assert (kind, json.loads(json.dumps(record))) == ("character", {"from_task": "t0", "clip": "0.5,2"})


async def put_end(ledger: Ledger, snapshot: TaskSnapshot) -> Entry:
    """Put a task that ended as `snapshot` shows on record."""
    to, facts = end_state(snapshot, "character")
    return await put(ledger, "k-1", EntryState.SENDING, to, **facts)


@pytest.mark.parametrize(
    "facts",
    [
        {"state": "success", "character": Character(id="ch_1", provider="kie", raw={"id": "ch_1", "more": None})},
        {"state": "fail", "failure": TaskFailure("501", "no face was found")},
        {"state": "fail", "failure": TaskFailure(None, "no face was found")},
        {"state": "fail", "created_at": 1.5, "completed_at": 2.5, "credits": 7.5, "progress": 100.0},
    ],
)
async def test_a_result_comes_back_as_it_was(ledger: Ledger, facts: dict[str, Any]) -> None:
    """A finished snapshot is read back whole."""
    snapshot = TaskSnapshot(task_id="t1", provider="kie", result={"a": None}, raw={"b": [1]}, **facts)
    entry = await put_end(ledger, snapshot)
    assert to_snapshot(entry) == snapshot
    assert (to_snapshot(entry).raw, entry.credits) == ({"b": [1]}, facts.get("credits"))


def test_a_digest_is_not_kept() -> None:
    """What tells two answers apart means nothing in another process."""
    assert "digest" not in to_result(TaskSnapshot(task_id="t1", provider="kie", state="success", digest=7))


async def test_a_result_holds_no_token(ledger: Ledger) -> None:
    """The callback URL that a record repeats is hidden, in JSON and in JSON inside JSON."""
    url = "https://me.invalid/hook/secret"
    raw = {"callBackUrl": url, "param": json.dumps({"callBackUrl": url, "input": json.dumps({"callBackUrl": url})})}
    entry = await put_end(ledger, TaskSnapshot(task_id="t1", provider="kie", state="fail", raw=raw))
    assert "secret" not in str(entry.result_json)
    assert json.loads(to_snapshot(entry).raw["param"])["callBackUrl"] == "***"


@pytest.mark.parametrize("url", [None, "", 5, {}, "none"])
def test_a_record_without_a_callback_url_stays_as_it_is(url: object) -> None:
    """A callback URL that is none neither spoils the record nor makes it another's."""
    raw = {"callBackUrl": url, "param": json.dumps({"callBackUrl": url, "a": 1}), "prompt": "callBackUrl", "b": 2}
    snapshot = TaskSnapshot(task_id="t1", provider="kie", state="success", raw=raw)
    assert to_result(snapshot)["raw"] == raw
    assert not echoes_other_token(snapshot, token_digest("mine"))


@pytest.mark.parametrize(("token", "another"), [("mine", False), ("other", True)])
def test_a_callback_url_says_whose_a_record_is(token: str, another: bool) -> None:  # noqa: FBT001 # a parameter
    """A record that repeats a URL with another token belongs to another wish."""
    raw = {"param": json.dumps({"callBackUrl": f"https://me.invalid/hook/{token}"}).replace("/", "\\/")}
    snapshot = TaskSnapshot(task_id="t1", provider="kie", state="success", raw=raw)
    assert echoes_other_token(snapshot, token_digest("mine")) is another


@pytest.mark.parametrize(
    ("kind", "facts", "state", "error"),
    [
        ("task", {"state": "success"}, EntryState.SUCCEEDED, None),
        ("omni", {"state": "success"}, EntryState.FAILED, {"code": None, "message": "it holds no character"}),
        ("task", {"state": "fail"}, EntryState.FAILED, {"code": None, "message": ""}),
        (
            "task",
            {"state": "fail", "failure": TaskFailure("1", "no\nface")},
            EntryState.FAILED,
            {"code": "1", "message": "no face"},
        ),
    ],
)
def test_how_a_task_ends_on_record(kind: str, facts: dict[str, Any], state: EntryState, error: object) -> None:
    """Success needs a character, but for a task of any other model."""
    to, ended = end_state(TaskSnapshot(task_id="t1", provider="kie", **facts), kind)
    assert (to, ended.get("error"), ended["task_id"]) == (state, error, "t1")


@attrs.define(eq=False, slots=False, kw_only=True)
class HouseRulesError(ProviderError):
    """An error of somebody else's provider."""

    rule: str = ""


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RequestRejectedError("no face", hint="look", provider="kie", status=200, code=422), RequestRejectedError),
        (RateLimitedError("too many", retry_after=2.5), RateLimitedError),
        (HouseRulesError("no dogs", rule="7", code="dogs"), ProviderError),
        (ProviderError(""), ProviderError),
    ],
)
async def test_a_refusal_comes_back_as_an_error(ledger: Ledger, error: ProviderError, kind: type) -> None:
    """The error is of the type that it was, or for a foreign one a plain `ProviderError`, with its facts."""
    entry = await put(ledger, "k-1", EntryState.REJECTED, error=to_error(error))
    again = rejection(entry)
    assert type(again) is kind
    names = [field.name for field in attrs.fields(ProviderError)]
    assert [getattr(again, name) for name in names] == [getattr(error, name) for name in names]


async def test_characters_come_newest_first(ledger: Ledger) -> None:
    """All that was made is listed, with what it was made from; other tasks and failures are not."""
    made = Character(id="ch_1", provider="kie", task_id="t-old")
    old = await end(ledger, "old", REQUESTS[0], made, credits=7.5)
    await end(ledger, "task", REQUESTS[2], None)
    await end(ledger, "bad", REQUESTS[1], None)
    await end(ledger, "video", REQUESTS[1], attrs.evolve(made, name="bello"))
    await end(ledger, "omni", REQUESTS[3], made)
    omni, video, first = [saved async for saved in characters(ledger)]
    assert first == SavedCharacter(
        character=attrs.evolve(made, name="rex"),
        source="t0",
        clip=Clip(1, 3),
        prompt="a dog",
        key="old",
        credits=7.5,
        created_at=old.created_at,
    )
    assert (video.source, video.clip, video.prompt, video.character.name) == (URL, None, None, "bello")
    assert (omni.source, omni.prompt) == ("HTTPS://a.invalid/dog.png", "a dog")


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        ({"limit": 2}, ["k-3", "k-2"]),
        ({"limit": 0}, []),
        ({"limit": 9}, ["k-3", "k-2", "k-1"]),
        ({"query": "REX"}, ["k-3", "k-1"]),
        ({"query": "rex", "limit": 1}, ["k-3"]),
    ],
)
async def test_characters_are_searched(ledger: Ledger, options: dict[str, Any], keys: list[str]) -> None:
    """A word in any case and a limit narrow the list; what is no character does not count."""
    made = Character(id="ch_1", provider="kie")
    for key, request in (("k-1", REQUESTS[0]), ("k-2", REQUESTS[1]), ("k-3", REQUESTS[0])):
        await end(ledger, key, request, made)
    await end(ledger, "task rex", REQUESTS[2], None)
    assert [saved.key async for saved in characters(ledger, **options)] == keys


UNKNOWN = (EntryState.SENDING, EntryState.UNKNOWN)


async def test_a_person_names_the_task(ledger: Ledger) -> None:
    """The task that an unknown wish became runs from then on, and nobody holds it yet."""
    await put(ledger, "k-1", *UNKNOWN)
    entry = await resolve(ledger, "k-1", task_id="t1")
    assert (entry.state, entry.task_id, entry.owner) == (EntryState.RUNNING, "t1", None)


async def test_a_person_says_that_nothing_was_sent(ledger: Ledger) -> None:
    """An unknown wish may then be sent again."""
    await put(ledger, "k-1", *UNKNOWN)
    assert (await resolve(ledger, "k-1", never_sent=True)).state is EntryState.PENDING


@pytest.mark.parametrize(("ways", "task_id"), [(UNKNOWN, None), ((EntryState.SENDING, EntryState.RUNNING), "t1")])
async def test_a_person_gives_up(ledger: Ledger, ways: tuple[EntryState, ...], task_id: str | None) -> None:
    """A wish given up has failed for good, and says why to whoever asks again."""
    await put(ledger, "k-1", *ways, task_id=task_id)
    entry = await resolve(ledger, "k-1", give_up=True)
    assert (entry.state, entry.task_id, entry.error["code"]) == (EntryState.FAILED, task_id, "given_up")
    assert to_snapshot(entry).failure == TaskFailure("given_up", "a person gave it up")


async def test_a_person_resolves_what_a_dead_process_was_send_state() -> None:
    """What was being sent by a process that has ended is unknown, and can be resolved."""
    store = MemoryStore()
    async with Ledger(store) as dead:
        await put(dead, "k-1", EntryState.SENDING)
    async with Ledger(store) as ledger:
        assert (await resolve(ledger, "k-1", never_sent=True)).state is EntryState.PENDING


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "exactly one"),
        ({"task_id": "t1", "never_sent": True}, "exactly one"),
        ({"never_sent": True, "give_up": True}, "exactly one"),
        ({"task_id": ""}, "must be the id"),
        ({"task_id": "t\n1"}, "must be the id"),
        ({"task_id": "taken"}, "is the task of key running already"),
        ({"never_sent": True, "key": "none"}, "no entry 'none'"),
        ({"give_up": True, "key": "sending"}, "living process"),
        ({"never_sent": True, "key": "running"}, "nothing to resolve"),
        ({"task_id": "t1", "key": "asked"}, "nothing to resolve"),
        ({"give_up": True, "key": "asked"}, "nothing to resolve"),
    ],
)
async def test_what_cannot_be_resolved(ledger: Ledger, options: dict[str, Any], match: str) -> None:
    """Each rejection says why, and nothing moves."""
    await put(ledger, "unknown", *UNKNOWN)
    await put(ledger, "asked")
    await put(ledger, "sending", EntryState.SENDING)
    await put(ledger, "running", EntryState.SENDING, EntryState.RUNNING, task_id="taken")
    before = [entry async for entry in ledger.entries()]
    options = {"key": "unknown"} | options
    with pytest.raises(InvalidRequestError, match=match):
        await resolve(ledger, **options)
    assert [entry async for entry in ledger.entries()] == before


async def test_a_living_sender_is_not_lost(ledger: Ledger) -> None:
    """What a living process sends, or nobody sends, stays as it is."""
    for entry in (await put(ledger, "k-1"), await put(ledger, "k-2", EntryState.SENDING)):
        assert await mark_orphaned(ledger, entry) == entry


async def test_whoever_was_faster_than_a_loss_is_heeded() -> None:
    """An answer that was recorded just before the sender ended is what counts."""
    store = MemoryStore()
    async with Ledger(store) as dead:
        sending = await put(dead, "k-1", EntryState.SENDING)
        running = await dead.transition(sending, EntryState.RUNNING, task_id="t1")
    async with Ledger(store) as ledger:
        assert await mark_orphaned(ledger, sending) == running
        assert await find(ledger, "k-1") == running
