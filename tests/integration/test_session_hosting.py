"""Local files of a session whose provider takes URLs only: cut, uploaded to another provider, and sent as URLs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from sora_chars import (
    AuthenticationError,
    CharacterSession,
    EntryState,
    FixedInterval,
    Kie,
    Kling,
    SeedanceAssets,
    ServiceUnavailableError,
    Wavespeed,
)
from sora_chars.testing import Emulator
from tests.support.kling_account import KEY, only_task
from tests.support.raw_server import http, responds, serving_raw

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

TEXTS: dict[str, Any] = {"name": "Rex", "prompt": "A friendly dog"}


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    """Start an emulator whose tasks take some milliseconds."""
    async with Emulator(durations=(0.02, 0.04), kling_key=KEY) as running:
        yield running


def uploads(emulator: Emulator) -> int:
    """Return how many files were uploaded."""
    return sum("upload" in request.path or "presign" in request.path for request in emulator.requests)


@pytest.mark.parametrize("name", ["kie", "wavespeed", "seedance"])
async def test_uploads_of_other_providers(emulator: Emulator, make_clip: Callable[..., Path], name: str) -> None:
    """The upload of a provider that is no part of the session hosts the file, and the same file is hosted once."""
    hosts: dict[str, Any] = {
        "kie": lambda: Kie("key", base_url=emulator.url, upload_url=emulator.url),
        "wavespeed": lambda: Wavespeed("key", base_url=emulator.url),
        "seedance": lambda: SeedanceAssets("key", base_url=emulator.url),
    }
    clip = make_clip(5.0)
    provider = Kling(KEY, base_url=emulator.url, hosting=hosts[name]().upload)
    async with CharacterSession(provider, polling=FixedInterval(0.005)) as session:
        await session.create(video=clip, **TEXTS)
        assert '"video_url": "http' in json.dumps(only_task(emulator).body)
        await session.create(video=clip, **TEXTS)
    assert uploads(emulator) == 1


async def test_a_failed_upload_sends_nothing(make_clip: Callable[..., Path]) -> None:
    """An upload that the other provider rejects leaves the key unsent; the same key is uploaded and sent later."""
    async with Emulator(durations=(0.02, 0.04), kling_key=KEY, kie_key="right") as emulator:
        clip = make_clip(5.0)
        async with at(emulator, Kie("wrong", upload_url=emulator.url)) as session:
            with pytest.raises(AuthenticationError):
                await session.create(video=clip, key="order-17", **TEXTS)
            entry = await session.entry("order-17")
            assert entry
            assert (entry.state, emulator.kling.tasks) == (EntryState.REJECTED, {})
        async with at(emulator, Kie("right", upload_url=emulator.url)) as session:
            await session.create(video=clip, key="order-17", **TEXTS)


async def test_an_upload_that_fails_costs_nothing(emulator: Emulator, make_clip: Callable[..., Path]) -> None:
    """A server error of an upload is that of a free request: nothing was sent, and nothing may have been charged."""
    failure = responds(http(b'{"code": 500, "msg": "boom"}', status="500 Failure"))
    async with serving_raw(failure) as raw, at(emulator, Kie("key", upload_url=raw.url)) as session:
        with pytest.raises(ServiceUnavailableError) as caught:
            await session.create(video=make_clip(5.0), **TEXTS)
    assert (caught.value.charged, emulator.kling.tasks) == ("no", {})


def at(emulator: Emulator, kie: Kie) -> CharacterSession:
    """Return a session with Kling whose files are uploaded to kie.ai."""
    provider = Kling(KEY, base_url=emulator.url, hosting=kie.upload)
    return CharacterSession(provider, polling=FixedInterval(0.005))
