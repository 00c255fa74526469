"""How each peer makes one task and waits for its end, each at its own defaults or told to look once a second.

Each is a context manager around `one(number)`; what it imports and opens is not measured. Nothing is tuned: a user
who follows the peer's own manual gets this.
"""

from __future__ import annotations

import asyncio
import gc
import json
import tempfile
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import attrs

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from sora_chars import CharacterSession, PollingStrategy, TaskRequest

    One = Callable[[int], Awaitable[object]]
    Peer = Callable[[str], AbstractAsyncContextManager["One | Batch"]]

KEY = "benchmark-key-of-no-account"
BODY: dict[str, Any] = {"model": "wan/2-7-image", "input": {"prompt": "A lighthouse"}}
HAND, OURS, OURS_1S = "hand-written loop", "sora_chars", "sora_chars, 1 s"
HAND_RARE, OURS_RARE = "hand-written loop, rare GC", "sora_chars, 1 s, rare GC"
OURS_BATCH, OURS_LIMITED = "sora_chars, 1 s, create_many", "sora_chars, limited"


@asynccontextmanager
async def by_hand(url: str) -> AsyncGenerator[One, None]:
    """One asyncio task a task, a GET every second, and nothing else: no record, no limits, no faults. The floor."""
    headers = {"Authorization": f"Bearer {KEY}"}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=100), headers=headers) as http:

        async def one(_number: int) -> None:
            async with http.post(f"{url}/api/v1/jobs/createTask", json=BODY) as response:
                task_id = (await response.json())["data"]["taskId"]
            while True:
                await asyncio.sleep(1)
                async with http.get(f"{url}/api/v1/jobs/recordInfo", params={"taskId": task_id}) as response:
                    data = (await response.json())["data"]
                if data["state"] in {"success", "fail"}:
                    json.loads(data["resultJson"])
                    return

        yield one


@attrs.frozen
class Batch:
    """What stands in the place of `one` where all can be asked for at once."""

    session: CharacterSession

    async def many(self, tasks: int) -> AsyncGenerator[Exception | None, None]:
        """Make so many, and give the error of each as it ends, if it has one."""
        requests = (_request(number) for number in range(tasks))
        async with self.session.create_many(requests, concurrency=tasks) as outcomes:
            async for outcome in outcomes:
                yield outcome.error


def _request(number: int) -> TaskRequest:
    from sora_chars import TaskRequest  # noqa: PLC0415 # measured alone

    return TaskRequest(**BODY, key=f"key-{number}")


def ours(seconds: float | None, *, creates: tuple[int, float] = (10**6, 10.0), batch: bool = False) -> Peer:
    """This project with all its safety: a ledger on disk, keys, limits that count and, unless told, do not bind."""

    @asynccontextmanager
    async def opened(url: str) -> AsyncGenerator[One | Batch, None]:
        from sora_chars import CharacterSession, FixedInterval, Kie, Limits  # noqa: PLC0415 # measured alone

        pace: PollingStrategy | None = None if seconds is None else FixedInterval(seconds)
        limits = Limits(creates=creates, polls=(10**6, 1.0))
        with tempfile.TemporaryDirectory() as folder:
            kie = Kie(KEY, base_url=url, limits=limits)
            async with CharacterSession(kie, ledger=Path(folder) / "characters.db", polling=pace) as session:
                yield Batch(session) if batch else lambda number: session.create(_request(number))

    return opened


def rarely_collected(peer: Peer) -> Peer:
    """The same in a process that has Python's garbage collector go through everything more rarely."""

    @asynccontextmanager
    async def opened(url: str) -> AsyncGenerator[One | Batch, None]:
        gc.set_threshold(5_000, 200, 100)
        async with peer(url) as one:
            yield one

    return opened


def openai(*, by_aiohttp: bool) -> Peer:
    """openai: looks once a second unless the server says otherwise."""

    @asynccontextmanager
    async def opened(url: str) -> AsyncGenerator[One, None]:
        from openai import AsyncOpenAI, DefaultAioHttpClient  # noqa: PLC0415 # as above

        http = DefaultAioHttpClient() if by_aiohttp else None
        async with AsyncOpenAI(api_key=KEY, base_url=f"{url}/v1", http_client=http) as client:

            async def one(_number: int) -> None:
                video = await client.videos.create_and_poll(prompt="x")
                _check(video.status, "completed")

            yield one

    return opened


def fal(seconds: float | None) -> Peer:
    """fal-client: looks ten times a second unless told otherwise."""

    @asynccontextmanager
    async def opened(url: str) -> AsyncGenerator[One, None]:
        import fal_client.client  # noqa: PLC0415 # as above

        fal_client.client.QUEUE_URL_FORMAT = f"{url}/fal/"
        client = fal_client.AsyncClient(key=KEY)
        options = {} if seconds is None else {"interval": seconds}
        yield lambda _number: client.subscribe("o/a", {"prompt": "x"}, **options)

    return opened


def replicate(seconds: float | None) -> Peer:
    """replicate: looks twice a second unless told otherwise."""

    @asynccontextmanager
    async def opened(url: str) -> AsyncGenerator[One, None]:
        import replicate  # noqa: PLC0415 # as above

        client = replicate.Client(api_token=KEY, base_url=url)
        client.poll_interval = client.poll_interval if seconds is None else seconds

        async def one(_number: int) -> None:
            prediction = await client.predictions.async_create(version="v", input={}, timeout=False)
            await prediction.async_wait()
            _check(prediction.status, "succeeded")

        yield one

    return opened


@asynccontextmanager
async def runway(url: str) -> AsyncGenerator[One, None]:
    """runwayml: looks every 4.5 to 7.5 s, without an option."""
    from runwayml import AsyncRunwayML  # noqa: PLC0415 # as above

    async with AsyncRunwayML(api_key=KEY, base_url=url) as client:

        async def one(_number: int) -> None:
            task = await client.text_to_image.create(model="gen4_image", prompt_text="x", ratio="1024:1024")
            _check((await task.wait_for_task_output()).status, "SUCCEEDED")

        yield one


def azure(seconds: float | None) -> Peer:
    """azure-core: looks every 30 s unless told otherwise by its user or the server."""

    @asynccontextmanager
    async def opened(url: str) -> AsyncGenerator[One, None]:
        from azure.core import AsyncPipelineClient  # noqa: PLC0415 # as above
        from azure.core.pipeline.policies import AsyncRetryPolicy, RequestIdPolicy  # noqa: PLC0415 # as above
        from azure.core.polling import AsyncLROPoller  # noqa: PLC0415 # as above
        from azure.core.polling.async_base_polling import AsyncLROBasePolling  # noqa: PLC0415 # as above
        from azure.core.rest import HttpRequest  # noqa: PLC0415 # as above

        async with AsyncPipelineClient(base_url=url, policies=[RequestIdPolicy(), AsyncRetryPolicy()]) as client:
            options = {} if seconds is None else {"timeout": seconds}

            async def one(_number: int) -> None:
                request = HttpRequest("POST", f"{url}/azure/operations", json={"prompt": "x"})
                response = await client.send_request(request, _return_pipeline_response=True)
                response.http_response.raise_for_status()
                polling = AsyncLROBasePolling(**options)
                await AsyncLROPoller(client, response, lambda answer: answer, polling).result()

            yield one

    return opened


def _check(status: str, wanted: str) -> None:
    if status != wanted:
        raise RuntimeError(f"ended as {status}")


PEERS: dict[str, Peer] = {
    HAND: by_hand,
    OURS_LIMITED: ours(1.0, creates=(20, 2.0)),
    OURS_1S: ours(1.0),
    OURS_BATCH: ours(1.0, batch=True),
    OURS: ours(None),
    HAND_RARE: rarely_collected(by_hand),
    OURS_RARE: rarely_collected(ours(1.0)),
    "azure-core, 1 s": azure(1.0),
    "azure-core": azure(None),
    "openai": openai(by_aiohttp=False),
    "openai, aiohttp": openai(by_aiohttp=True),
    "runwayml": runway,
    "replicate, 1 s": replicate(1.0),
    "replicate": replicate(None),
    "fal-client, 1 s": fal(1.0),
    "fal-client": fal(None),
}
"""By their names in the tables. Where one has the option, once at its own default and once at 1 s."""
WAITING = tuple(peer for peer in PEERS if peer != OURS_LIMITED)
"""Those whose waiting is compared."""
