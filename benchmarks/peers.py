"""How each peer creates one task and waits for its end, at its defaults or polling once a second.

Each peer is a context manager that gives a function `one(number)`; imports and opening are
not measured. The peers are used as their documentation describes, without tuning.
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
    """The minimum: one asyncio task per task and a GET every second, without ledger, limits or retries."""
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
    """Takes the place of `one` in a peer that creates all tasks with one call."""

    session: CharacterSession

    async def many(self, tasks: int) -> AsyncGenerator[Exception | None, None]:
        """Create `tasks` tasks, and yield the error of each, or None, when it ends."""
        requests = (_request(number) for number in range(tasks))
        async with self.session.create_many(requests, concurrency=tasks) as outcomes:
            async for outcome in outcomes:
                yield outcome.error


def _request(number: int) -> TaskRequest:
    from sora_chars import TaskRequest  # noqa: PLC0415 # imports are measured separately

    return TaskRequest(**BODY, key=f"key-{number}")


def ours(seconds: float | None, *, creates: tuple[int, float] = (10**6, 10.0), batch: bool = False) -> Peer:
    """This project with a ledger on disk and rate limits, which by default never delay a request."""

    @asynccontextmanager
    async def opened(url: str) -> AsyncGenerator[One | Batch, None]:
        from sora_chars import CharacterSession, FixedInterval, Kie, Limits  # noqa: PLC0415 # imports are measured separately

        polling: PollingStrategy | None = None if seconds is None else FixedInterval(seconds)
        limits = Limits(creates=creates, polls=(10**6, 1.0))
        with tempfile.TemporaryDirectory() as folder:
            kie = Kie(KEY, base_url=url, limits=limits)
            async with CharacterSession(kie, ledger=Path(folder) / "characters.db", polling=polling) as session:
                yield Batch(session) if batch else lambda number: session.create(_request(number))

    return opened


def rarely_collected(peer: Peer) -> Peer:
    """The same peer with rarer runs of Python's garbage collector."""

    @asynccontextmanager
    async def opened(url: str) -> AsyncGenerator[One | Batch, None]:
        gc.set_threshold(5_000, 200, 100)
        async with peer(url) as one:
            yield one

    return opened


def openai(*, by_aiohttp: bool) -> Peer:
    """Polls once a second unless the server specifies an interval."""

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
    """Polls ten times a second by default."""

    @asynccontextmanager
    async def opened(url: str) -> AsyncGenerator[One, None]:
        import fal_client.client  # noqa: PLC0415 # as above

        fal_client.client.QUEUE_URL_FORMAT = f"{url}/fal/"
        client = fal_client.AsyncClient(key=KEY)
        options = {} if seconds is None else {"interval": seconds}
        yield lambda _number: client.subscribe("o/a", {"prompt": "x"}, **options)

    return opened


def replicate(seconds: float | None) -> Peer:
    """Polls twice a second by default."""

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
    """Polls every 4.5 to 7.5 seconds, without an option."""
    from runwayml import AsyncRunwayML  # noqa: PLC0415 # as above

    async with AsyncRunwayML(api_key=KEY, base_url=url) as client:

        async def one(_number: int) -> None:
            task = await client.text_to_image.create(model="gen4_image", prompt_text="x", ratio="1024:1024")
            _check((await task.wait_for_task_output()).status, "SUCCEEDED")

        yield one


def azure(seconds: float | None) -> Peer:
    """Polls every 30 seconds unless the user or the server specifies an interval."""

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
                await AsyncLROPoller(client, response, lambda result: result, polling).result()

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
"""The peers by their names in the tables; those with an option run at their default and at 1 s."""
WAITING = tuple(peer for peer in PEERS if peer != OURS_LIMITED)
"""The peers of part A."""
