"""Recorded traffic of kie.ai, replayed byte for byte by a server that accepts only the recorded requests."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest
from aiohttp import BodyPartReader, web

from sora_chars import (
    CharacterSession,
    FixedInterval,
    Kie,
    RequestRejectedError,
    TaskNotFoundError,
    TaskRequest,
    TaskSnapshot,
)
from sora_chars.providers import kie_account, kie_envelope
from sora_chars.providers import kie_codec as codec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

RECORDINGS = Path(__file__).parent.parent / "recordings" / "kie"
CREATE, POLL, UPLOAD = "/api/v1/jobs/createTask", "/api/v1/jobs/recordInfo", "/api/file-stream-upload"
HOSTS = {"api.kie.ai": "127.0.0.1", "kieai.redpandaai.co": "localhost"}


@attrs.define(eq=False)
class Replay:
    """The server. `left` holds the recorded exchanges that are still to come, `wrong` describes unexpected requests."""

    left: list[dict[str, Any]] = attrs.field(factory=list)
    wrong: list[str] = attrs.field(factory=list)
    port: int = 0

    def load(self, name: str) -> list[dict[str, Any]]:
        """Load the exchanges of a recording, in order."""
        self.left = json.loads((RECORDINGS / f"{name}.json").read_text())
        return list(self.left)

    def host(self, recorded: str) -> str:
        """Return the local host and port that replace a recorded host."""
        return f"{HOSTS[recorded]}:{self.port}"

    async def serve(self, request: web.Request) -> web.Response:
        """Respond with the recorded bytes; note a request that differs from the recorded one."""
        if not self.left:
            self.wrong.append(f"unexpected: {request.method} {request.path}")
            return web.Response(status=500)
        exchange = self.left.pop(0)
        received = (request.method, request.host, request.path, dict(request.query))
        expected = (exchange["method"], self.host(exchange["host"]), exchange["path"], exchange["query"])
        if received != expected or not await _same_body(request, exchange["request"]):
            self.wrong.append(
                f"{received} with {await request.text()} instead of {expected} with {exchange['request']}"
            )
        headers = {"Content-Type": exchange["content_type"]}
        return web.Response(status=exchange["status"], headers=headers, body=exchange["response"].encode())


async def _same_body(request: web.Request, recorded: str | None) -> bool:
    if request.path == UPLOAD:
        return await _same_upload(request, json.loads(recorded) if recorded else {})
    body = await request.read()
    if recorded is None:
        return not body
    return request.content_type == "application/json" and json.loads(body) == json.loads(recorded)


async def _same_upload(request: web.Request, recorded: dict[str, Any]) -> bool:
    """Compare the size of the file, which is all that was recorded; folder and name may differ."""
    fields: dict[str, int] = {}
    async for part in await request.multipart():
        assert isinstance(part, BodyPartReader)
        fields[part.name or ""] = len(await part.read())
    size = recorded["file"]["size"] if recorded else fields["file"]
    return fields.keys() == {"file", "uploadPath", "fileName"} and fields["file"] == size > 0


@pytest.fixture
async def replay() -> AsyncIterator[Replay]:
    """Start the server; at the end all exchanges must be used, and no request may differ."""
    server = Replay()
    app = web.Application(client_max_size=10 * 1024 * 1024)
    app.router.add_route("*", "/{path:.*}", server.serve)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.port = runner.addresses[0][1]
    yield server
    await runner.cleanup()
    assert server.wrong == []
    assert server.left == []


@pytest.fixture
def kie(replay: Replay) -> Kie:
    """Return a provider for the replaying server."""
    return Kie(
        "sk-test-4f81",
        base_url=f"http://{replay.host('api.kie.ai')}",
        upload_url=f"http://{replay.host('kieai.redpandaai.co')}",
        limits=None,
    )


def recorded_snapshots(exchanges: list[dict[str, Any]]) -> list[TaskSnapshot]:
    """Read the recorded polls without the codec; equal polls in a row count once."""
    snapshots: list[TaskSnapshot] = []
    for exchange in exchanges:
        if exchange["path"] != POLL:
            continue
        data = json.loads(exchange["response"])["data"]
        completed = data["completeTime"]
        snapshot = TaskSnapshot(
            task_id=data["taskId"],
            provider="kie",
            state=data["state"],
            model=data["model"],
            result=json.loads(data["resultJson"]) if data["resultJson"] else None,
            created_at=data["createTime"] / 1000,
            completed_at=completed / 1000 if completed else None,
            raw=data,
        )
        if snapshots[-1:] != [snapshot]:
            snapshots.append(snapshot)
    return snapshots


JOBS = [
    "gpt-image-to-image",
    "grok-text-to-image",
    "happyhorse-image-to-video",
    "kling-video",
    "seedream-text-to-image",
    "wan-image",
]


@pytest.mark.parametrize("name", JOBS)
async def test_job(name: str, replay: Replay, kie: Kie, tmp_path: Path) -> None:
    """Uploads, createTask and all polls are as recorded, and give the right snapshots in the right order."""
    exchanges = replay.load(name)
    created = json.loads(next(exchange["request"] for exchange in exchanges if exchange["path"] == CREATE))
    async with CharacterSession(kie, polling=FixedInterval(0.001)) as session:
        for exchange in exchanges:
            if exchange["path"] == "/api/v1/chat/credit":
                assert await session.credit() == 5916.25
            elif exchange["path"] == UPLOAD:
                file = json.loads(exchange["request"])["file"]
                path = tmp_path / file["filename"]
                path.write_bytes(bytes(file["size"]))
                assert await kie.upload(path) in json.dumps(created), "the task uses what was uploaded"
        handle = await session.submit(TaskRequest(model=created["model"], input=created["input"]))
        seen = [snapshot async for snapshot in handle.updates()]
        finished = await handle
    first, *polled = seen
    assert (first.task_id, first.state, first.model) == (finished.task_id, "waiting", created["model"])
    assert polled == recorded_snapshots(exchanges)
    assert finished == polled[-1]
    assert finished.raw == polled[-1].raw == json.loads(exchanges[-1]["response"])["data"]
    assert finished.result["resultUrls"]
    assert json.loads(json.loads(finished.raw["param"])["input"]) == created["input"], "what the record repeats is kept"
    assert finished.duration == pytest.approx(finished.raw["costTime"], abs=2), "costTime is in seconds"


async def test_credit(replay: Replay, kie: Kie) -> None:
    """The credit is a float."""
    replay.load("credit")
    async with CharacterSession(kie) as session:
        assert await session.credit() == 5916.25


async def test_stream_upload(replay: Replay, kie: Kie, tmp_path: Path) -> None:
    """An upload returns the recorded downloadUrl."""
    replay.load("upload-stream")
    path = tmp_path / "pixel.png"
    path.write_bytes(bytes(70))
    async with kie:
        url = await kie.upload(path)
    assert url == "https://tempfile.redpandaai.co/kieai/136592/images/test-uploads/1776323952044-dtzo7rcrpdj.png"


async def test_base64_upload(replay: Replay, kie: Kie) -> None:
    """The response of the other upload route has the same shape."""
    (exchange,) = replay.load("upload-base64")
    url = f"http://{replay.host(exchange['host'])}{exchange['path']}"
    body = json.loads(exchange["request"])
    async with kie:
        stored = await kie._transport.request("POST", url, kie_account.read_upload, json=body)
    assert stored == "https://tempfile.redpandaai.co/kieai/136592/documents/test-uploads/test.txt"


async def test_rejection_in_status_200(replay: Replay, kie: Kie) -> None:
    """Code 422 inside HTTP 200 is a rejection."""
    (exchange,) = replay.load("download-url")
    url = kie._api("common/download-url")
    body = json.loads(exchange["request"])
    async with kie:
        with pytest.raises(RequestRejectedError, match="url is wrong") as caught:
            await kie._transport.request("POST", url, kie_envelope.read_data, json=body)
    assert (caught.value.status, caught.value.code) == (200, 422)


async def test_unknown_task(replay: Replay, kie: Kie) -> None:
    """Code 200 with data null means that there is no such task."""
    (exchange,) = replay.load("record-info-not-found")
    task_id = exchange["query"]["taskId"]
    read = partial(codec.read_record, task_id=task_id, provider="kie")
    async with kie:
        with pytest.raises(TaskNotFoundError, match=task_id):
            await kie._transport.request("GET", kie._api("generate/record-info"), read, params={"taskId": task_id})


def test_all_recordings_are_used() -> None:
    """Every recording is part of a test."""
    others = {"credit", "upload-stream", "upload-base64", "download-url", "record-info-not-found"}
    assert {path.stem for path in RECORDINGS.glob("*.json")} == {*JOBS, *others}
