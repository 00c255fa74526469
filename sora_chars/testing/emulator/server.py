"""The emulator itself: one local server that is kie.ai, its upload host and kkiai.com under one root."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, NamedTuple, Self

from aiohttp import web

from . import control, kie, kkiai, uploads
from . import dashboard as page
from . import transmission as wire
from .callbacks import Courier
from .counters import Counts
from .faults import BUSY, KINDS, FaultBox, from_header, wrong_fault
from .responses import Refusal, Reply, encoded, kkiai_error
from .responses import kie as kie_reply
from .state import Seen, World
from .tasks import TaskBook
from .validation import Window

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from types import TracebackType

    from .faults import Fault

LARGEST_BODY = 256 * 1024 * 1024
TOO_MANY, FAILED = 429, 400
TICK = 0.005  # real seconds between two looks of `until`


class Route(NamedTuple):
    """Where a request belongs: what faults call it, whose contract answers it, and its handler."""

    place: str
    provider: str
    handler: Callable[[World, web.Request], Awaitable[Reply]]


ROUTES: dict[tuple[str, str], Route] = {
    ("POST", "/api/v1/jobs/createTask"): Route("create", "kie", kie.create_task),
    ("GET", "/api/v1/jobs/recordInfo"): Route("poll", "kie", kie.record_info),
    ("POST", "/api/v1/omni/character/create"): Route("omni", "kie", kie.create_omni_character),
    ("GET", "/api/v1/chat/credit"): Route("other", "kie", kie.credit),
    ("GET", "/api/v1/models"): Route("other", "kie", kie.models),
    ("POST", "/api/v1/common/download-url"): Route("other", "kie", kie.download_url),
    ("POST", "/api/file-stream-upload"): Route("upload", "kie", uploads.stream_upload),
    ("POST", "/api/file-url-upload"): Route("upload", "kie", uploads.url_upload),
    ("POST", "/api/file-base64-upload"): Route("upload", "kie", uploads.base64_upload),
    ("POST", "/sora/v1/characters"): Route("character", "kkiai", kkiai.create_character),
}


class Emulator(World):
    """A stateful server that answers as kie.ai and kkiai.com are documented to; it goes wrong on demand.

    Args:
        host: Where it listens.
        port: 0 takes a free one; `url` says which.
        seed: Decides ids, durations and which requests a fault with a rate consecutive_429s.
        speed: Emulated seconds per real second. Durations, the windows of `strict_limits` and the pauses
            before a callback's retries are divided by it; seconds given to a fault are real.
        durations: Least and most emulated seconds that a task takes, uniformly drawn.
        kie_key: The one good bearer key for kie.ai's routes; None takes any that is not empty.
        kkiai_key: The same for kkiai.com's.
        kkiai_model: The `model` that `/sora/v1/characters` demands; None forbids one.
        hmac_key: Signs callbacks when given.
        strict_limits: HeapEntry away what exceeds 20 creates per 10 s or 10 polls per second, in sliding windows.
        models: Which models exist, and what each makes ("character" or anything else).
        credits: What the account holds.
        price: What a task costs; a failed one costs nothing.
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
        hmac_key: str | None = None,
        strict_limits: bool = False,
        models: Mapping[str, str] | None = None,
        credits: float = 1000.0,  # noqa: A002 - kie.ai's word
        price: float = 0.0625,
    ) -> None:
        counts = Counts()
        faults = FaultBox(random.Random(f"{seed} faults"))  # noqa: S311 - repeatable, not secret
        super().__init__(
            models=kie.MODELS if models is None else models,
            kkiai_model=kkiai_model,
            book=TaskBook(speed, durations, price, credits, random.Random(seed)),  # noqa: S311
            faults=faults,
            courier=Courier(faults, counts, speed, hmac_key),
            counts=counts,
        )
        self._host, self._port = host, port
        self._keys = {"kie": kie_key, "kkiai": kkiai_key}
        creates, polls = Window(20, 10.0 / speed), Window(10, 1.0 / speed)
        self._windows = {"create": creates, "omni": creates, "poll": polls} if strict_limits else {}
        self._runner: web.AppRunner | None = None

    def __repr__(self) -> str:
        return f"<Emulator {self.url or 'not started'}, {len(self.book.tasks)} tasks>"

    async def start(self) -> None:
        """Listen. From here on the emulator belongs to the running event loop.

        Raises:
            OSError: the port is taken.
        """
        self._loop = asyncio.get_running_loop()
        self.book.clock = self._loop.time
        app = web.Application(client_max_size=LARGEST_BODY)
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, self._host, self._port).start()
        port = self._runner.addresses[0][1]
        self.url = f"http://{self._host}:{port}"
        self.files.root = f"{self.url}/files/"

    async def aclose(self) -> None:
        """Stop: requests under way are cut off, callbacks not delivered yet are dropped."""
        if self._runner is not None:
            await self._runner.cleanup()
        await self.courier.aclose()

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
        """Declare an id to be a finished video of either provider, of a known length or not.

        Without it an id that has the form of a real one (`rules.KIE_ID`, `kkiai.TASK_ID`) is taken for such a video
        too, of unknown length; anything else does not exist.
        """
        self.book.origins[task_id] = seconds
        return task_id

    def finish(self, task_id: str, **result_override: object) -> None:
        """End a running task well, now, with another `resultJson` if one is given. Callable from any thread.

        Raises:
            KeyError: there is no such task.
            ValueError: it has ended already.
        """
        task = self.book.finish(task_id, result_override)
        self._loop.call_soon_threadsafe(self.courier.expect, task)

    def fail(self, task_id: str, code: str = "501", message: str = "generation failed") -> None:
        """End a running task as failed, now; raises as `finish` does. Callable from any thread."""
        task = self.book.fail(task_id, code=code, message=message)
        self._loop.call_soon_threadsafe(self.courier.expect, task)

    async def until(self, predicate: Callable[[], object], *, timeout: float = 10.0) -> None:
        """Wait until the predicate holds; from any event loop.

        Raises:
            TimeoutError: it did not within so many real seconds.
        """
        async with asyncio.timeout(timeout):
            while not predicate():  # noqa: ASYNC110 - time alone can make it true, and no event tells of that
                await asyncio.sleep(TICK)

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        route = ROUTES.get((request.method, request.path))
        if route is None:
            reply, fault = await self._aside(request), None
        else:
            self.seen[request.method, request.path] += 1
            self.counts.polls += route.place == "poll"
            reply, fault = await self._answer(route, request)
        if reply.status == TOO_MANY or reply.body.startswith(b'{"code":429,'):
            self.counts.rejected[route.place if route else "other"] += 1
        if route or reply.status >= FAILED:  # not the page that refreshes itself
            self.requests.append(Seen(request.method, request.path_qs, reply.status, fault.kind if fault else None))
        if fault is not None and (send := KINDS[fault.kind].send) is not None:
            return await send(request, reply, fault)
        return await wire.plainly(request, reply)

    async def _answer(self, route: Route, request: web.Request) -> tuple[Reply, Fault | None]:
        try:
            fault = self._fault_of(route, request)
        except ValueError as error:
            return wrong_fault(error), None
        if fault is not None and (answer := KINDS[fault.kind].answer) is not None:
            return answer(fault, route.place), fault
        try:
            self._admit(route, request)
            return await route.handler(self, request), fault
        except Refusal as refusal:
            self.counts.refused += 1
            return refusal.reply, fault

    def _fault_of(self, route: Route, request: web.Request) -> Fault | None:
        header = request.headers.get("X-Emulator-Fault")
        if header is not None:
            fault = from_header(header)
            kind = KINDS[fault.kind]
            return fault if kind.answer or (kind.send and fault.on != "callback") else None
        if not self.faults.active:
            return None
        return self.faults.pick(route.place, self.book.tasks.get(request.query.get("taskId", "")))

    def _admit(self, route: Route, request: web.Request) -> None:
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        wanted = self._keys[route.provider]
        if scheme != "Bearer" or not key or (wanted is not None and key != wanted):
            raise Refusal(_unauthorized(route))
        window = self._windows.get(route.place)
        if window is not None and not window.admits(self.book.clock()):
            raise Refusal(kie_reply(429, BUSY))
        if route.place == "other":
            self.counts.other += 1

    async def _aside(self, request: web.Request) -> Reply:
        """Everything that is no provider's: the page, the files, the controls, and the unknown."""
        handler = control.ROUTES.get((request.method, request.path))
        if handler is not None:
            return await handler(self, request)
        if request.method == "GET" and request.path == "/":
            return page.render(self, ROUTES)
        file = self.files.at(f"{self.url}{request.rel_url.raw_path}")
        if file is not None and request.method == "GET":
            return Reply(200, file.content, file.mime)
        if any(path == request.path for _, path in ROUTES):
            return Reply(405, encoded({"code": 405, "msg": "Method not allowed", "data": None}))
        text = f"Invalid URL ({request.method} {request.path})"
        return kkiai_error(1, 404, message=text, type="invalid_request_error", code="")


def _unauthorized(route: Route) -> Reply:
    if route.provider == "kie":
        return kie_reply(401, "You do not have access permissions")
    return kkiai_error(1, 401, message="Invalid token", type="new_api_error", code="")
