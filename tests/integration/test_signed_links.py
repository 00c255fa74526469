"""Signed links: sent as they were given, shown nowhere, and kept only while they may still be sent."""

from __future__ import annotations

import json
import logging
import pickle
import sqlite3
import traceback
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from sora_chars import (
    CharacterRequest,
    CharacterSession,
    ConfigurationError,
    EntryState,
    FixedInterval,
    KeyConflictError,
    Kie,
    Kkiai,
    SoraCharsError,
    TaskFailedError,
    TaskRequest,
    open_ledger,
)
from sora_chars.testing import Emulator

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

PASSWORD, SIGNATURE, FRAGMENT = "CANARY-pw-0123456789", "CANARY%2Bsig%2F0123456789%3D", "CANARY-frag-0123456789"
LINK = f"https://user:{PASSWORD}@videos.invalid/dog%2Dclip.mp4?X-Amz-Signature={SIGNATURE}&a=%7E+b#{FRAGMENT}"
SECRETS = (PASSWORD, SIGNATURE, FRAGMENT)
MASKED = "https://***@videos.invalid/dog%2Dclip.mp4?***"
FAULTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("credits", {"on": "create"}),
    ("status", {"on": "create", "code": 400, "message": f"{LINK} cannot be read"}),
    ("lost_response", {"on": "create"}),
    ("fail_task", {"message": f"cannot download {LINK}"}),
    ("result_shape", {"shape": "none"}),
)


def secrets_in(*things: object) -> list[str]:
    """Return the secrets that the texts contain."""
    everything = "\n".join(map(str, things))
    return [secret for secret in SECRETS if secret in everything]


@pytest.fixture
async def emulator() -> AsyncGenerator[Emulator]:
    """An emulator whose tasks end at once."""
    async with Emulator(durations=(0.01, 0.02)) as running:
        yield running


async def test_signed_links_are_shown_nowhere(
    emulator: Emulator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No log, repr, message, traceback and pickled error shows a link's user, query or fragment."""
    caplog.set_level(logging.DEBUG)
    shown: list[object] = []
    kie = Kie("any-key", base_url=emulator.url, timeout=0.3, limits=None)
    async with CharacterSession(kie, ledger=tmp_path / "characters.db", polling=FixedInterval(0.01)) as session:
        for fault, settings in FAULTS:
            emulator.fault(fault, **settings)
            with pytest.raises(SoraCharsError) as caught:
                await session.create(video=LINK, timeout=2.0)
            shown += [*traceback.format_exception(caught.value), repr(caught.value), caught.value.hint]
        rows: Any = [{"video": LINK}, CharacterRequest(video=LINK), {"video": LINK, "x": 1}]
        outcomes = await session.create_all(rows)
        shown += [repr(outcome) for outcome in outcomes]
        shown += [repr(entry) async for entry in session.ledger.entries()]
        shown += [repr(saved) async for saved in session.characters()]
    shown += [f"{record.getMessage()} {vars(record)}" for record in caplog.records if record.name != "aiohttp.access"]
    assert [outcome.state for outcome in outcomes] == ["succeeded", "succeeded", "rejected"]
    assert MASKED in "\n".join(map(str, shown))
    assert secrets_in(*shown) == []


@pytest.mark.parametrize(
    "request_",
    [
        CharacterRequest(video=LINK),
        CharacterRequest(images=[LINK], prompt="A dog"),
        TaskRequest(model="m", input={"image_urls": [LINK], "text": "kept"}),
    ],
    ids=["video", "image", "task"],
)
def test_reprs_of_requests_mask_links(request_: object) -> None:
    """The repr of a request shows host and path of its links, and none of their secret parts."""
    assert MASKED in repr(request_)
    assert secrets_in(repr(request_)) == []


async def test_key_conflict_masks_links(ledger_url: str) -> None:
    """A key that was used with another signature of a link is rejected, and neither signature is shown."""
    async with open_ledger(ledger_url) as ledger:
        facts: dict[str, Any] = {"key": "k", "provider": "kie", "kind": "character"}
        await ledger.register(**facts, request={"video": LINK})
        with pytest.raises(KeyConflictError, match="They differ in a part that is not shown") as caught:
            await ledger.register(**facts, request={"video": LINK.replace("b#", "c#")})
    assert caught.value.first == caught.value.second == {"video": MASKED}
    assert secrets_in(caught.value, repr(vars(caught.value)), pickle.dumps(caught.value)) == []


async def test_success_seals_the_links_of_a_request(ledger_url: str) -> None:
    """An entry keeps its links while they may be sent. After success a digest identifies them."""
    async with open_ledger(ledger_url) as ledger:
        facts: dict[str, Any] = {"key": "k", "provider": "kie", "kind": "character"}
        entry = await ledger.register(**facts, request={"video": LINK})
        for state in (EntryState.SENDING, EntryState.UNKNOWN, EntryState.RUNNING):
            entry = await ledger.transition(entry, state, task_id="t" if state is EntryState.RUNNING else None)
            assert (await ledger.get("k")) == entry
            assert entry.request == {"video": LINK}
        sealed = await ledger.transition(entry, EntryState.SUCCEEDED, result={"id": "c"})
        assert await ledger.get("k") == sealed
        assert sealed.request["video"].startswith("https://videos.invalid/dog%2Dclip.mp4?***")
        assert secrets_in(sealed.request) == []
        assert await ledger.register(**facts, request={"video": LINK}) == sealed
        with pytest.raises(KeyConflictError):
            await ledger.register(**facts, request={"video": LINK.replace("b#", "c#")})


async def test_ledger_file_of_succeeded_requests_holds_no_signature(emulator: Emulator, tmp_path: Path) -> None:
    """Once every request has succeeded, no row of the SQLite file holds a secret part of a link.

    SQLite may leave a copy of a row that it moved between two pages; VACUUM removes it.
    """
    kie = Kie("any-key", base_url=emulator.url, limits=None)
    async with CharacterSession(kie, ledger=tmp_path / "characters.db", polling=FixedInterval(0.01)) as session:
        await session.create_all([{"video": LINK, "key": f"k-{number}"} for number in range(50)])
        states = {entry.state async for entry in session.ledger.entries()}
    assert states == {EntryState.SUCCEEDED}
    with closing(sqlite3.connect(tmp_path / "characters.db", isolation_level=None)) as database:
        assert secrets_in(*database.iterdump()) == []
        database.execute("VACUUM")
    assert secrets_in(*(file.read_bytes().decode("latin-1") for file in tmp_path.iterdir())) == []


async def test_links_are_sent_as_given(emulator: Emulator) -> None:
    """A link in the body of a create is sent unchanged, to kie and to a gateway."""
    kie = Kie("any-key", base_url=emulator.url, limits=None)
    async with CharacterSession(kie, Kkiai("any-key", base_url=emulator.url)) as session:
        handle = await session.submit(video=LINK)
        assert emulator.tasks[handle.task_id].input == {"character_file_url": [LINK]}

    bodies: list[Any] = []

    async def respond(request: web.Request) -> web.Response:
        bodies.append(await request.json())
        return web.json_response({"id": "ch_1", "username": "rex"})

    app = web.Application()
    app.router.add_post("/sora/v1/characters", respond)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        host, port = runner.addresses[0]
        async with CharacterSession(Kkiai("any-key", base_url=f"http://{host}:{port}")) as session:
            await session.create(video=LINK, clip="1,3")
    finally:
        await runner.cleanup()
    assert bodies == [{"timestamps": "1,3", "url": LINK}]


@pytest.mark.parametrize("field", ["base_url", "callback_url", "upload_url"])
def test_rejected_address_shows_no_password(field: str) -> None:
    """An address with a user is rejected, and the message does not repeat its password."""
    options: dict[str, Any] = {field: f"https://user:{PASSWORD}@api.invalid/v1?token={SIGNATURE}"}
    with pytest.raises(ConfigurationError, match=rf"{field}: must be like .*'https://\*\*\*@api.invalid") as caught:
        Kie("any-key", **options)
    assert secrets_in(caught.value) == []


async def test_echo_of_a_request_is_masked_in_the_result(emulator: Emulator) -> None:
    """The request that kie.ai repeats in its record is stored without the secret parts of links."""
    kie = Kie("any-key", base_url=emulator.url, limits=None)
    async with CharacterSession(kie, polling=FixedInterval(0.01)) as session:
        handle = await session.submit(video=LINK, key="k")
        await handle.result()
        entry = await session.entry("k")
    assert entry
    assert handle.snapshot
    assert "videos.invalid" in json.dumps(handle.snapshot.raw["param"])
    assert "videos.invalid" in json.dumps(entry.result["raw"]["param"])
    assert secrets_in(json.dumps(entry.result)) == []


async def test_failure_that_quotes_a_link_is_stored_masked(emulator: Emulator) -> None:
    """The reason of a failed task may quote the link that could not be read; it is stored without its secrets."""
    emulator.fault("fail_task", message=f"cannot download {LINK}")
    kie = Kie("any-key", base_url=emulator.url, limits=None)
    async with CharacterSession(kie, polling=FixedInterval(0.01)) as session:
        with pytest.raises(TaskFailedError, match=r"cannot download https://\*\*\*@videos.invalid"):
            await session.create(video=LINK, key="k")
        entry = await session.entry("k")
    assert entry
    assert entry.result["failure"]["message"] == f"cannot download {MASKED}"
    assert secrets_in(json.dumps(entry.result), entry.error_json) == []


async def test_search_finds_a_link_without_its_secrets(ledger_url: str) -> None:
    """A search finds an entry by its whole link or a part of it, and never by a secret part."""
    async with open_ledger(ledger_url) as ledger:
        await ledger.register(key="k", provider="kie", kind="character", request={"video": LINK})
        for query, found in ((LINK, ["k"]), ("videos.invalid/dog", ["k"]), (SIGNATURE, []), (PASSWORD, [])):
            assert [entry.key async for entry in ledger.entries(query=query)] == found
