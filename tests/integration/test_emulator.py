"""The emulator over real sockets: both contracts without faults."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import aiohttp
import pytest

from sora_chars.testing import Emulator
from sora_chars.testing.emulator.kie import MODEL_GONE, MODELS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

RECORDINGS = Path(__file__).parents[1] / "recordings" / "kie"
PRO = {"origin_task_id": "7" * 32, "timestamps": "3.55,5.55", "character_prompt": "A cook"}
CREATE, RECORD = "/api/v1/jobs/createTask", "/api/v1/jobs/recordInfo"
CHARACTER = {"url": "https://example.com/clip.mp4", "timestamps": "1,3"}


class Response(NamedTuple):
    """A response."""

    status: int
    content_type: str
    text: str

    @property
    def json(self) -> dict[str, object]:
        """The body as a JSON object."""
        return cast("dict[str, object]", json.loads(self.text))

    @property
    def data(self) -> dict[str, object]:
        """The member `data` of the body."""
        return cast("dict[str, object]", self.json["data"])


class Client:
    """A minimal HTTP client of one emulator."""

    def __init__(self, emulator: Emulator, http: aiohttp.ClientSession) -> None:
        self.emulator = emulator
        self.http = http

    async def send(self, method: str, path: str, body: object = None, **headers: str) -> Response:
        """Send a request with a JSON body or without a body."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.http.request(method, self.emulator.url + path, json=body, headers=named) as response:
            return Response(response.status, response.headers["Content-Type"], await response.text())

    async def create(self, model: str = "sora-2-characters-pro", inputs: object = PRO) -> Response:
        """Start a task."""
        return await self.send("POST", CREATE, {"model": model, "input": inputs})

    async def record(self, task_id: object) -> Response:
        """Poll a task."""
        return await self.send("GET", f"{RECORD}?taskId={task_id}")


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    """An emulator whose tasks end at once."""
    async with Emulator(durations=(0.0, 0.0)) as running:
        yield running


@pytest.fixture
async def client(emulator: Emulator) -> AsyncIterator[Client]:
    """A client with an API key."""
    async with aiohttp.ClientSession(headers={"Authorization": "Bearer key"}) as http:
        yield Client(emulator, http)


def recorded(name: str, path: str) -> list[dict[str, str]]:
    """Return the recorded exchanges of one route."""
    exchanges = cast("list[dict[str, str]]", json.loads((RECORDINGS / f"{name}.json").read_text()))
    return [exchange for exchange in exchanges if exchange["path"] == path]


def shape(value: object) -> object:
    """Return a JSON value with its leaves replaced by their types, keys in order."""
    if isinstance(value, dict):
        return [(key, shape(item)) for key, item in cast("dict[str, object]", value).items()]
    return type(value).__name__


async def test_create_and_record_match_recordings(client: Client) -> None:
    """A create and a finished record have the recorded keys, types and encodings."""
    create, record = (recorded("wan-image", path) for path in (CREATE, RECORD))
    request = cast("dict[str, object]", json.loads(create[0]["request"]))
    response = await client.send("POST", CREATE, request)
    assert response.content_type == create[0]["content_type"]
    assert shape(response.json) == shape(json.loads(create[0]["response"]))
    done = await client.record(response.data["taskId"])
    model = cast("dict[str, dict[str, object]]", json.loads(record[-1]["response"]))["data"]
    assert shape({key: value for key, value in done.data.items() if key != "creditsConsumed"}) == shape(model)
    assert list(json.loads(str(done.data["resultJson"]))) == ["resultUrls"]
    param, other = (cast("dict[str, str]", json.loads(str(data["param"]))) for data in (done.data, model))
    assert (list(param), json.loads(param["input"])) == (list(other), json.loads(other["input"]))


@pytest.mark.parametrize(
    ("name", "method", "path", "body"),
    [
        ("credit", "GET", "/api/v1/chat/credit", None),
        ("download-url", "POST", "/api/v1/common/download-url", {"url": "https://cdn.kie.ai/files/a.mp4"}),
        ("upload-base64", "POST", "/api/file-base64-upload",
         {"base64Data": "SGVsbG8gV29ybGQ=", "uploadPath": "documents/test-uploads", "fileName": "test.txt"}),
    ],
)  # fmt: skip
async def test_other_routes_match_recordings(client: Client, name: str, method: str, path: str, body: object) -> None:
    """Every other recorded route responds with the recorded keys, types, status and content type."""
    exchange = recorded(name, path)[0]
    response = await client.send(method, path, body)
    assert (str(response.status), response.content_type) == (str(exchange["status"]), exchange["content_type"])
    assert shape(response.json) == shape(json.loads(exchange["response"]))


async def test_finished_task_has_a_character(client: Client) -> None:
    """The result of a character model has a character id, and a finished task can be an origin."""
    response = await client.create()
    task_id = response.data["taskId"]
    assert re.fullmatch("[0-9a-f]{32}", str(task_id))
    record = await client.record(task_id)
    assert record.data["state"] == "success"
    assert list(json.loads(str(record.data["resultJson"]))) == ["character_id"]
    assert (await client.create(inputs=PRO | {"origin_task_id": task_id})).json["code"] == 200


async def test_task_runs_until_it_is_ended() -> None:
    """`finish` and `fail` end a running task at once; an ended task cannot be ended again."""
    async with Emulator() as emulator, aiohttp.ClientSession(headers={"Authorization": "Bearer k"}) as http:
        client = Client(emulator, http)
        good, bad = [str((await client.create()).data["taskId"]) for _ in range(2)]
        assert (await client.record(good)).data["state"] == "waiting"
        rejected = await client.create(inputs=PRO | {"origin_task_id": good})
        assert rejected.json == {"code": 422, "msg": "origin_task_id must be a finished task", "data": None}
        emulator.finish(good, character_id="ch_mine")
        emulator.fail(bad, "400", "no face")
        assert (await client.record(good)).data["resultJson"] == '{"character_id":"ch_mine"}'
        data = (await client.record(bad)).data
        assert (data["state"], data["failCode"], data["failMsg"]) == ("fail", "400", "no face")
        with pytest.raises(ValueError, match="has ended already"):
            emulator.fail(good)
        with pytest.raises(KeyError):
            emulator.finish("unknown")


@pytest.mark.parametrize(
    ("origin", "timestamps", "message"),
    [
        ("nonsense", "1,3", "origin_task_id does not exist"),
        ("short", "2,4.5", "timestamps must lie inside the video of 4 seconds"),
        ("short", "1,4", None),
        ("video", "8,10.01", "timestamps must lie inside the video of 10 seconds"),
        ("video", "8,10", None),
        ("endless", "900,903", None),
    ],
)
async def test_checks_the_origin(client: Client, origin: str, timestamps: str, message: str | None) -> None:
    """An origin must be a known task or have the form of an id; a clip must lie inside it."""
    client.emulator.add_origin("short", seconds=4.0)
    client.emulator.add_origin("endless")
    if origin == "video":
        video = await client.create("sora-2-text-to-video", {"prompt": "A cook", "n_frames": "10"})
        origin = str(video.data["taskId"])
    response = await client.create(inputs=PRO | {"origin_task_id": origin, "timestamps": timestamps})
    assert (response.status, response.json["msg"]) == (200, message or "success")


async def test_checks_uploaded_clips(client: Client) -> None:
    """An uploaded clip is checked for its type and size; a clip from elsewhere is accepted."""
    wrong = {"base64Data": "AAAA", "uploadPath": "x", "fileName": "a.txt"}
    url = (await client.send("POST", "/api/file-base64-upload", wrong)).data["downloadUrl"]
    response = await client.create("sora-2-characters", {"character_file_url": [url]})
    assert response.json["msg"] == "character_file_url must be an mp4, mov, webm or avi video"
    for size, code in ((10 * 1024 * 1024, 200), (10 * 1024 * 1024 + 1, 422)):
        form = aiohttp.FormData({"uploadPath": "x"})
        form.add_field("file", io.BytesIO(b"\0" * size), filename="clip.mp4")
        async with client.http.post(client.emulator.url + "/api/file-stream-upload", data=form) as upload:
            url = (await upload.json())["data"]["downloadUrl"]
        assert (await client.create("sora-2-characters", {"character_file_url": [url]})).json["code"] == code
    assert (await client.create("sora-2-characters", {"character_file_url": ["http://x/a"]})).json["code"] == 200


async def test_rejects_invalid_creates(client: Client) -> None:
    """A rejected create has HTTP 200 and a code, creates nothing and is counted as rejected."""

    async def code(body: object) -> tuple[object, object]:
        response = await client.send("POST", CREATE, body)
        assert (response.status, response.json["data"]) == (200, None)
        return response.json["code"], response.json["msg"]

    assert await code({"input": PRO}) == (500, "model is required")
    assert await code({"model": "sora-3", "input": {}}) == (422, MODEL_GONE)
    assert await code({"model": "sora-2-characters", "input": {}}) == (500, "character_file_url is required")
    assert await code([]) == (422, "Request body must be a JSON object")
    assert await code(None) == (400, "Content type 'application/octet-stream' not supported")
    for body in (b"{", b"\xff", b"[" * 100_000):
        headers = {"Content-Type": "application/json"}
        async with client.http.post(client.emulator.url + CREATE, data=body, headers=headers) as response:
            assert await response.json() == {"code": 400, "msg": "Request body is not valid JSON", "data": None}
    assert (client.emulator.counts.creates, client.emulator.counts.rejected) == (0, 8)


async def test_rejects_unknown_tasks(client: Client) -> None:
    """An unknown task is code 422 "recordInfo is null"; a missing id has its own message."""
    assert (await client.record("0" * 32)).text == '{"code":422,"msg":"recordInfo is null","data":null}'
    assert (await client.record("")).json["msg"] == "taskId is required"
    assert client.emulator.counts.polls == 2


async def test_lone_surrogate(client: Client) -> None:
    """Text that UTF-8 cannot encode is returned as a question mark."""
    task_id = (await client.create("wan/2-7-image", {"prompt": "\ud800"})).data["taskId"]
    assert '\\\\\\"prompt\\\\\\":\\\\\\"?\\\\\\"' in (await client.record(task_id)).text


async def test_models_and_omni(client: Client) -> None:
    """The catalogue has the documented form; an omni character is created at once or rejected."""
    catalogue = (await client.send("GET", "/api/v1/models")).data
    rows = cast("list[dict[str, object]]", catalogue["models"])
    assert (catalogue["total"], [row["model"] for row in rows]) == (len(MODELS), list(MODELS))
    assert list(rows[0]) == ["model", "slug", "title", "provider", "taskType"]
    omni = {"descriptions": "A cook", "image_urls": ["https://example.com/a.png"]}
    response = await client.send("POST", "/api/v1/omni/character/create", omni)
    assert list(response.data) == ["characterId"]
    rejected = await client.send("POST", "/api/v1/omni/character/create", {"descriptions": "A cook"})
    assert rejected.json["msg"] == "image_urls is required"
    assert client.emulator.counts.omni == 1


async def test_only_given_models_exist() -> None:
    """Only the given models are in the catalogue and accepted by createTask."""
    async with Emulator(models={"wan/2-7-image": "text-to-image"}) as emulator, aiohttp.ClientSession() as http:
        http.headers["Authorization"] = "Bearer k"
        client = Client(emulator, http)
        assert (await client.create()).json["msg"] == MODEL_GONE
        assert (await client.send("GET", "/api/v1/models")).data["total"] == 1


async def test_credits() -> None:
    """A task costs its price, a failed one nothing; a create without enough credits is code 402."""
    async with Emulator(credits=1.0, price=0.5) as emulator, aiohttp.ClientSession() as http:
        http.headers["Authorization"] = "Bearer k"
        client = Client(emulator, http)
        first = str((await client.create()).data["taskId"])
        await client.create()
        assert (await client.create()).json["code"] == 402
        emulator.fail(first)
        assert (await client.send("GET", "/api/v1/chat/credit")).text == '{"code":200,"msg":"success","data":0.5}'
        assert (await client.create()).json["code"] == 200


async def test_checks_api_keys() -> None:
    """A wrong key, another scheme and a missing key are 401, in the form of each provider."""
    async with (
        Emulator(kie_key="kie", kkiai_key="kkiai", durations=(0.0, 0.0)) as emulator,
        aiohttp.ClientSession() as http,
    ):
        client = Client(emulator, http)
        for key in ("Bearer kkiai", "Basic kie", "Bearer", "Bearer "):
            response = await client.send("GET", "/api/v1/chat/credit", Authorization=key)
            assert (response.status, response.json["code"]) == (200, 401)
        assert (await client.send("GET", "/api/v1/chat/credit", Authorization="Bearer kie")).json["code"] == 200
        rejected = await client.send("POST", "/sora/v1/characters", CHARACTER)
        assert (rejected.status, list(rejected.json)) == (401, ["error"])
        assert (await client.send("POST", "/sora/v1/characters", CHARACTER, Authorization="Bearer kkiai")).status == 200
        assert "kkiai" not in repr(emulator)


async def test_strict_limits_are_sliding_windows() -> None:
    """The 21st create in 10 emulated seconds is code 429, and so is the 11th poll in 1 second."""
    now = 100.0
    async with (
        Emulator(strict_limits=True, speed=2.0) as emulator,
        aiohttp.ClientSession(headers={"Authorization": "Bearer k"}) as http,
    ):
        emulator.task_store.clock = lambda: now
        client = Client(emulator, http)
        assert [(await client.create()).json["code"] for _ in range(21)] == [200] * 20 + [429]
        assert (await client.send("POST", "/api/v1/omni/character/create", {})).json["code"] == 429
        task_id = next(iter(emulator.tasks))
        assert [(await client.record(task_id)).json["code"] for _ in range(11)] == [200] * 10 + [429]
        assert emulator.counts.rate_limited == {"create": 1, "omni": 1, "poll": 1}
        assert (emulator.counts.creates, emulator.counts.polls) == (20, 11)
        now += 0.5
        assert (await client.record(task_id)).json["code"] == 200
        assert (await client.create()).json["code"] == 429
        now += 4.5
        assert (await client.create()).json["code"] == 200


async def test_kkiai_creates_a_character(client: Client) -> None:
    """The route of kkiai responds with the documented members; the picture can be downloaded."""
    for body in (CHARACTER, {"from_task": "video_e50c76ca-21d4-40e9-8485-e4ead2d37133", "timestamps": "0.5,3.5"}):
        response = await client.send("POST", "/sora/v1/characters", body)
        assert (response.status, response.content_type) == (200, "application/json")
        assert list(response.json) == ["id", "username", "permalink", "profile_picture_url"]
        assert re.fullmatch("ch_[0-9a-f]{32}", str(response.json["id"]))
        async with client.http.get(str(response.json["profile_picture_url"])) as picture:
            assert (picture.content_type, (await picture.read())[:3]) == ("image/gif", b"GIF")
    assert client.emulator.counts.characters == 2


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (CHARACTER | {"from_task": "task_" + "A" * 26}, "exactly one of url and from_task is required"),
        ({"timestamps": "1,3"}, "exactly one of url and from_task is required"),
        (CHARACTER | {"url": "clip.mp4"}, "url must be an http or https URL"),
        ({"url": CHARACTER["url"]}, "timestamps is required"),
        (CHARACTER | {"timestamps": "0,3.01"}, "timestamps must span 1 to 3 seconds"),
        (CHARACTER | {"timestamps": "0,0.99"}, "timestamps must span 1 to 3 seconds"),
        (CHARACTER | {"model": "sora-2-character"}, "unknown field model"),
        ([], "the request body must be a JSON object"),
    ],
)
async def test_kkiai_rejects_invalid_requests(client: Client, body: object, message: str) -> None:
    """An invalid request is HTTP 400 with a reason in `error.message`, and creates nothing."""
    response = await client.send("POST", "/sora/v1/characters", body)
    error = cast("dict[str, str]", response.json["error"])
    assert (response.status, error["message"].partition(" (request id: ")[0]) == (400, message)
    assert client.emulator.counts.characters == 0


async def test_kkiai_requires_json(client: Client) -> None:
    """A body with a comment, as one documentation page shows, is HTTP 400."""
    async with client.http.post(client.emulator.url + "/sora/v1/characters", data=b'{// no\n"url": ""}') as response:
        assert response.status == 400


async def test_kkiai_checks_the_form_of_task_ids(client: Client) -> None:
    """A source whose id has no known form does not exist, unless it was declared."""
    body = {"from_task": "sora-2:task_01", "timestamps": "1,3"}
    response = await client.send("POST", "/sora/v1/characters", body)
    assert (response.status, response.json["code"]) == (400, "task_not_exist")
    client.emulator.add_origin("sora-2:task_01")
    assert (await client.send("POST", "/sora/v1/characters", body)).status == 200


async def test_gateway_can_require_a_model() -> None:
    """With `kkiai_model` the request must name that model."""
    async with (
        Emulator(kkiai_model="sora-2-character", durations=(0.0, 0.0)) as emulator,
        aiohttp.ClientSession() as http,
    ):
        http.headers["Authorization"] = "Bearer k"
        client = Client(emulator, http)
        assert (await client.send("POST", "/sora/v1/characters", CHARACTER)).status == 400
        body = CHARACTER | {"model": "sora-2-character"}
        assert (await client.send("POST", "/sora/v1/characters", body)).status == 200


async def test_unknown_paths_and_methods(client: Client) -> None:
    """An unknown path is HTTP 404 `Invalid URL`, as at the gateways; a wrong method is 405."""
    response = await client.send("POST", "/v1/sora/v1/characters")
    assert (response.status, "Invalid URL (POST /v1/sora/v1/characters)" in response.text) == (404, True)
    assert (await client.send("GET", CREATE)).status == 405
    assert [request.status for request in client.emulator.requests] == [404, 405]


async def test_taken_port_is_an_error(emulator: Emulator) -> None:
    """A second emulator on the same port raises OSError and leaves nothing open."""
    port = int(emulator.url.rpartition(":")[2])
    with pytest.raises(OSError, match="address already in use"):
        async with Emulator(port=port):
            pytest.fail("it started")
    await Emulator().aclose()


async def test_until_times_out(emulator: Emulator) -> None:
    """Waiting for a predicate that stays false raises TimeoutError."""
    with pytest.raises(TimeoutError):
        await emulator.until(lambda: False, timeout=0.01)
