"""The emulator's server: kie.ai, its upload host and the other providers under one root URL."""

from __future__ import annotations

import asyncio
import random
from http import HTTPStatus
from typing import TYPE_CHECKING, Self

from aiohttp import web

from . import assets, control, dashboard, evolink, kie, transmission, wavespeed
from .callbacks import CallbackSender
from .counters import Counts
from .faults import BUSY, KINDS, FaultRegistry, invalid_fault, parse_header
from .gateway_tasks import GatewayAccount
from .heygen_looks import LookStore
from .kling_callbacks import KlingCallbacks
from .kling_tasks import KlingStore
from .responses import Rejection, Reply
from .responses import kie as kie_reply
from .routes import ROUTES, Route, admit, template, unknown_route
from .seedance_assets import AssetStore
from .state import EmulatorState, LoggedRequest
from .tasks import TaskStore
from .validation import SlidingWindow

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from .faults import Fault

MAX_BODY_BYTES = 256 * 1024 * 1024
UNTIL_INTERVAL = 0.005  # real seconds between two checks of `Emulator.until`


class Emulator(EmulatorState):
    """A local server that behaves as the providers are documented to.

    The emulator keeps tasks, credits and files, sends callbacks, and fails on demand:

        async with Emulator(durations=(0.1, 0.2)) as emulator:
            emulator.fault("http_500", on="poll", times=3)
            kie = Kie("any-key", base_url=emulator.url, upload_url=emulator.url)
            async with CharacterSession(kie) as session:
                await session.create(video="rex.mp4", prompt="A friendly dog")
            assert emulator.counts.creates == 1

    Args:
        host: The address that the emulator listens on.
        port: The port that it listens on; 0 takes a free one, which `url` names.
        seed: Seeds the ids, the durations, and which requests a fault with a rate hits.
        speed: Emulated seconds per real second. It divides durations, the windows of
            `strict_limits` and the delays between a callback's retries. The seconds of a
            fault are real.
        durations: The bounds of a task's duration in emulated seconds; durations are
            uniformly distributed.
        kie_key: The API key that kie.ai's routes accept; None accepts any.
        kkiai_key: The API key that kkiai.com's route accepts; None accepts any.
        kkiai_model: The `model` that `/sora/v1/characters` requires; None forbids one.
        kling_key: The API key that Kling's routes accept; None accepts any.
        kling_secret_key: The secret key of the pair whose JWTs Kling's routes accept;
            None accepts none.
        kling_parallel: The tasks that may run at once on the Kling account; None for no limit.
        vidu_key: The API key that Vidu's routes accept; None accepts any.
        wavespeed_key: The API key that Wavespeed's routes accept; None accepts any.
        evolink_key: The API key that Evolink's routes accept; None accepts any.
        icover_key: The API key that icover's routes accept; None accepts any.
        ark_access_key: The access key that Ark accepts, with `ark_secret_key`; None
            accepts any pair.
        ark_secret_key: The secret key with which requests to Ark must be signed.
        heygen_key: The API key that HeyGen's routes accept; None accepts any.
        hmac_key: Signs kie.ai's callbacks; None sends them unsigned.
        strict_limits: Reject requests beyond 20 creates in 10 seconds or 10 polls in 1
            second, in sliding windows.
        models: The models that exist, and what each makes: "character" or anything else.
        credits: What the account holds.
        price: What a task costs. A failed task costs nothing.

    Attributes:
        url: The root URL of all routes and of the dashboard.
        counts: What the emulator received, as `Counts`.
        tasks: Every task by its id, oldest first, as `EmulatedTask`.
        requests: The latest 1,000 requests, oldest first.
        request_counts: The number of requests by method and path.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        seed: int = 0,
        speed: float = 1.0,
        durations: tuple[float, float] = (5.0, 20.0),
        kie_key: str | None = None,
        kkiai_key: str | None = None,
        kkiai_model: str | None = None,
        kling_key: str | None = None,
        kling_secret_key: str | None = None,
        kling_parallel: int | None = None,
        vidu_key: str | None = None,
        wavespeed_key: str | None = None,
        evolink_key: str | None = None,
        icover_key: str | None = None,
        ark_access_key: str | None = None,
        ark_secret_key: str | None = None,
        heygen_key: str | None = None,
        hmac_key: str | None = None,
        strict_limits: bool = False,
        models: Mapping[str, str] | None = None,
        credits: float = 1000.0,  # noqa: A002 - kie.ai's word
        price: float = 0.0625,
    ) -> None:
        counts = Counts()
        faults = FaultRegistry(random.Random(f"{seed} faults"))  # noqa: S311 - repeatable, not secret
        task_store = TaskStore(speed, durations, price, credits, random.Random(seed))  # noqa: S311
        super().__init__(
            models=kie.MODELS if models is None else models,
            kkiai_model=kkiai_model,
            task_store=task_store,
            kling=KlingStore(task_store.clock, task_store.draw_duration, kling_parallel),
            kling_callbacks=KlingCallbacks(counts),
            wavespeed=GatewayAccount(
                task_store.clock, task_store.draw_duration, wavespeed.WavespeedCallbacks(counts), wavespeed.new_id
            ),
            evolink=GatewayAccount(
                task_store.clock, task_store.draw_duration, evolink.EvolinkCallbacks.at(counts, speed), evolink.new_id
            ),
            seedance=AssetStore(task_store.clock, task_store.draw_duration),
            heygen=LookStore(task_store.clock, task_store.draw_duration),
            ark_keys=(ark_access_key, ark_secret_key or "") if ark_access_key else None,
            faults=faults,
            callback_sender=CallbackSender(faults, counts, speed, hmac_key),
            counts=counts,
        )
        self._host = host
        self._port = port
        self._keys = {"kie": kie_key, "kkiai": kkiai_key, "kling": kling_key, "vidu": vidu_key}
        self._keys |= {"wavespeed": wavespeed_key, "evolink": evolink_key, "icover": icover_key, "heygen": heygen_key}
        self._keys |= dict.fromkeys(assets.UNSIGNED)
        self._kling_secret_key = kling_secret_key
        self._windows = _documented_limits(speed) if strict_limits else {}
        self._runner: web.AppRunner | None = None

    def __repr__(self) -> str:
        return f"<Emulator {self.url or 'not started'}, {len(self.task_store.tasks)} tasks>"

    async def start(self) -> None:
        """Start to listen. The emulator then belongs to the running event loop.

        Raises:
            OSError: The port is taken.
        """
        self._loop = asyncio.get_running_loop()
        for store in (self.task_store, self.kling, self.wavespeed, self.evolink, self.seedance, self.heygen):
            store.clock = self._loop.time
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, self._host, self._port).start()
        port = self._runner.addresses[0][1]
        self.url = f"http://{self._host}:{port}"
        self.files.root = f"{self.url}/files/"

    async def aclose(self) -> None:
        """Stop: disconnect running requests, and drop the callbacks that are not delivered."""
        if self._runner is not None:
            await self._runner.cleanup()
        await self.callback_sender.aclose()
        await self.kling_callbacks.aclose()
        await self.wavespeed.callbacks.aclose()
        await self.evolink.callbacks.aclose()

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except OSError:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        await self.aclose()

    def add_origin(self, task_id: str, *, seconds: float | None = None) -> str:
        """Declare an id to be a finished video of either provider, and return the id.

        An undeclared id is accepted as a video of unknown length if it has the form of a
        real one (`validation.KIE_ID`, `kkiai.TASK_ID`). Any other id does not exist.

        Args:
            task_id: The id of the task that made the video.
            seconds: The length of the video, if it is to be checked.
        """
        self.task_store.origins[task_id] = seconds
        return task_id

    def finish(self, task_id: str, **result_override: object) -> None:
        """End a running task now, with success. Can be called from any thread.

        Args:
            task_id: The task.
            result_override: The members of `resultJson`; by default the result of the
                task's model.

        Raises:
            KeyError: The task does not exist.
            ValueError: The task has ended already.
        """
        task = self.task_store.finish(task_id, result_override)
        self._loop.call_soon_threadsafe(self.callback_sender.schedule, task)

    def fail(self, task_id: str, code: str = "501", message: str = "generation failed") -> None:
        """End a running task now, with a failure. Can be called from any thread.

        Raises:
            KeyError: The task does not exist.
            ValueError: The task has ended already.
        """
        task = self.task_store.fail(task_id, code=code, message=message)
        self._loop.call_soon_threadsafe(self.callback_sender.schedule, task)

    async def until(self, predicate: Callable[[], object], *, timeout: float = 10.0) -> None:
        """Wait until the predicate is true. Can be called from any event loop.

        Raises:
            TimeoutError: The predicate is still false after `timeout` real seconds.
        """
        async with asyncio.timeout(timeout):
            while not predicate():  # noqa: ASYNC110 - the predicate may depend on time alone
                await asyncio.sleep(UNTIL_INTERVAL)

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        path = template(request)
        route = ROUTES.get((request.method, path))
        if route is None:
            reply, fault = await self._handle_other(request), None
        else:
            self.request_counts[request.method, path] += 1
            self.counts.polls += route.endpoint == "poll"
            reply, fault = await self._handle(route, request)
        self._record(request, route, reply, fault)
        if fault is not None and (send := KINDS[fault.kind].send) is not None:
            return await send(request, reply, fault)
        return await transmission.send(request, reply)

    def _record(self, request: web.Request, route: Route | None, reply: Reply, fault: Fault | None) -> None:
        if reply.status == HTTPStatus.TOO_MANY_REQUESTS or reply.body.startswith(b'{"code":429,'):
            self.counts.rate_limited[route.endpoint if route else "other"] += 1
        if route or reply.status >= HTTPStatus.BAD_REQUEST:  # omit the dashboard, which reloads itself
            kind = fault.kind if fault else None
            self.requests.append(LoggedRequest(request.method, request.path_qs, reply.status, kind))

    async def _handle(self, route: Route, request: web.Request) -> tuple[Reply, Fault | None]:
        try:
            fault = self._find_fault(route, request)
        except ValueError as error:
            return invalid_fault(error), None
        if fault is not None and (respond := KINDS[fault.kind].respond) is not None:
            return respond(fault, route.endpoint), fault
        try:
            self._admit(route, request)
            return await route.handler(self, request), fault
        except Rejection as rejection:
            self.counts.rejected += 1
            return rejection.reply, fault

    def _find_fault(self, route: Route, request: web.Request) -> Fault | None:
        """Return the fault of the request's header, or the first active fault that hits."""
        header = request.headers.get("X-Emulator-Fault")
        if header is not None:
            fault = parse_header(header)
            kind = KINDS[fault.kind]
            return fault if kind.respond or (kind.send and fault.on != "callback") else None
        if not self.faults.active:
            return None
        return self.faults.pick(route.endpoint, self.tasks.get(request.query.get("taskId", "")))

    def _admit(self, route: Route, request: web.Request) -> None:
        """Check the API key and the rate limit.

        Raises:
            Rejection: The key is wrong, or the limit is reached.
        """
        if rejected := admit(route, request, self._keys[route.provider], self._kling_secret_key):
            raise Rejection(rejected)
        window = self._windows.get(route.endpoint)
        if window is not None and not window.admit(self.task_store.clock()):
            raise Rejection(kie_reply(429, BUSY))
        if route.endpoint == "other":
            self.counts.other += 1

    async def _handle_other(self, request: web.Request) -> Reply:
        """Respond to what is no provider's route: control API, dashboard, files, unknown paths."""
        handler = control.ROUTES.get((request.method, request.path))
        if handler is not None:
            return await handler(self, request)
        if request.method == "GET" and request.path == "/":
            return dashboard.render(self, ROUTES)
        file = self.files.find(f"{self.url}{request.rel_url.raw_path}")
        if file is not None and request.method == "GET":
            return Reply(HTTPStatus.OK, file.content, file.mime)
        return unknown_route(request)


def _documented_limits(speed: float) -> dict[str, SlidingWindow]:
    creates = SlidingWindow(20, 10.0 / speed)
    return {"create": creates, "omni": creates, "poll": SlidingWindow(10, 1.0 / speed)}
