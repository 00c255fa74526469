"""Traces of a key, a task id and a callback body through the package, function by function.

`python benchmarks/traces.py` prints five counts beside their goals, and the traces as Markdown tables;
`--json` prints JSON. It runs real code: a `CharacterSession` with `Kie` sends requests to the emulator
over a socket and records them in an SQLite file, and the emulator posts a callback to a
`CallbackReceiver` in an aiohttp application.

A trace lists functions of `sora_chars`, each once. Those of `sora_chars.testing`, of other libraries and
generated ones do not count. Where a function starts an asyncio task, the trace continues inside that
task: first the frames of the code that starts it, then the frames of the task itself.

The counts:

files
    Files of `sora_chars` with a function that is called between the call of `create()` and its return, in
    the asyncio tasks of that create: the caller's own, and those that it starts, directly or not. The store
    counts as one file; the files that it calls are listed apart, and its threads are not traced. Imports do
    not count: all modules are loaded before.
path
    Files of the functions on the five paths of that create, from `create()` to its result: the files that
    a reader opens to follow the key and the task id.
request
    Functions from `create()` to the HTTP request: the frames on the stack when aiohttp begins the POST.
answer
    Functions from the response to that POST to the store's `replace`. The first is the function that called
    the provider's method, and so receives the snapshot. From there the trace goes up, through the functions
    that return the snapshot, to the one that leads to `replace`, and down to `replace`, which counts too.
end
    The same for the response to the last GET, which shows the end of the task.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import inspect
import itertools
import json
import socket
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import aiohttp
import attrs
from aiohttp import web

import sora_chars
from sora_chars import CallbackReceiver, CharacterSession, Kie, open_ledger
from sora_chars.testing import Emulator

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable
    from types import CodeType, FrameType

PACKAGE = Path(sora_chars.__file__).parent
GOALS = {"files": 16, "path": 16, "request": 8, "answer": 4, "end": 5}
LABELS = {
    "files": "files that one create() enters",
    "path": "files on the paths of one create()",
    "request": "functions from create() to its HTTP request",
    "answer": "functions from the answer to the store",
    "end": "functions from the last poll to the store",
}
TITLES = {
    "key": "A key, from `create()` to the ledger",
    "request": "A key, from `create()` to the HTTP request",
    "answer": "A task id, from the answer to the store",
    "end": "A task id, from the last poll to the store",
    "result": "A task id, from the store to the result of `create()`",
    "callback": "A callback body, to the poll that it causes",
}
SOURCE = "a" * 32  # the id of a finished video
FIELDS: dict[str, Any] = {"from_task": SOURCE, "clip": "1,3", "prompt": "A friendly dog"}
SHORT = (0.05, 0.1)  # seconds that a task takes
LONG = (3600.0, 3600.0)  # a task that only a callback ends


# ---- Frames and functions


def home(kind: type) -> str:
    """Return the file of a class of the package, relative to the package."""
    return Path(inspect.getfile(kind)).relative_to(PACKAGE).as_posix()


def own(code: CodeType) -> str | None:
    """Return the file of a function of the package, relative to the package; None for all other code."""
    path = Path(code.co_filename)
    if not (code.co_flags & inspect.CO_OPTIMIZED and path.is_relative_to(PACKAGE)):
        return None  # of other libraries, or the body of a module or a class
    file = path.relative_to(PACKAGE)
    return None if file.parts[0] == "testing" else file.as_posix()


def name(code: CodeType) -> str:
    """Return `file:function`. A function that is defined inside another counts as that function."""
    return f"{own(code)}:{code.co_qualname.partition('.<locals>')[0]}"


def stack() -> tuple[FrameType, ...]:
    """Return the package's running frames, the outermost first."""
    found: list[FrameType] = []
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 # the only fast way to get frames
    while frame:
        if own(frame.f_code):
            found.append(frame)
        frame = frame.f_back
    return tuple(found[::-1])


def suspended(task: asyncio.Task[Any]) -> tuple[FrameType, ...]:
    """Return the package's frames of a waiting asyncio task, the outermost first."""
    found: list[FrameType] = []
    awaited: Any = task.get_coro()
    while inspect.iscoroutine(awaited):
        if awaited.cr_frame and own(awaited.cr_code):
            found.append(awaited.cr_frame)
        awaited = awaited.cr_await
    return tuple(found)


def names(frames: Iterable[FrameType], last: CodeType | None = None) -> list[str]:
    """Return the functions of these frames, each once, and `last`."""
    codes = [frame.f_code for frame in frames]
    return list(dict.fromkeys(map(name, [*codes, last] if last else codes)))


@attrs.frozen(eq=False, kw_only=True)
class Mark:
    """An event in an asyncio task.

    Attributes:
        kind: "insert" or "replace" of the store, the method of an HTTP request, or "" for a start or a wake-up.
        creator: The package's frames that led to the start of the asyncio task.
        local: The package's frames of the asyncio task, the outermost first.
        waiting: At a wake-up, the package's frames of the asyncio task that is woken.
        cause: The event that last made the asyncio task run.
        code: The function of the store that is about to run.
    """

    kind: str
    creator: tuple[FrameType, ...]
    local: tuple[FrameType, ...]
    waiting: tuple[FrameType, ...]
    cause: Mark | None
    code: CodeType | None

    @property
    def frames(self) -> tuple[FrameType, ...]:
        """All frames, across asyncio tasks."""
        return self.creator + self.local


class TracingLoop(asyncio.SelectorEventLoop):
    """An event loop that records which code starts and wakes each asyncio task."""

    def __init__(self) -> None:
        super().__init__()
        self.marks: list[Mark] = []
        self.started: dict[asyncio.Task[Any], Mark] = {}
        self.woken: dict[asyncio.Task[Any], Mark] = {}
        self.family: set[asyncio.Task[Any]] = set()  # the asyncio tasks of the create that is traced

    def mark(self, kind: str = "", *, code: CodeType | None = None, target: asyncio.Task[Any] | None = None) -> Mark:
        """Return what runs now. `target` is the asyncio task that it wakes."""
        task = asyncio.current_task(self)
        start = self.started.get(task) if task else None
        return Mark(
            kind=kind,
            creator=start.frames if start else (),
            local=stack(),
            waiting=suspended(target) if target else (),
            cause=self.woken.get(task) if task else None,
            code=code,
        )

    def create_task(self, coro: Coroutine[Any, Any, Any], **options: Any) -> asyncio.Task[Any]:
        """Start an asyncio task, and record which code starts it."""
        task = super().create_task(coro, **options)
        self.started[task] = self.mark()
        if asyncio.current_task(self) in self.family:
            self.family.add(task)
        return task

    def call_soon(self, callback: Callable[..., object], *arguments: Any, context: Any = None) -> asyncio.Handle:
        """Schedule a callback; if it resumes another asyncio task, record which code wakes that task."""
        target = getattr(callback, "__self__", None)
        if isinstance(target, asyncio.Task) and target is not asyncio.current_task(self):
            self.woken[target] = self.mark(target=target)
        return super().call_soon(callback, *arguments, context=context)


# ---- Running the package


@attrs.frozen
class Bench:
    """An open session, its emulator, and the class of its store."""

    emulator: Emulator
    session: CharacterSession
    store: type


@contextlib.asynccontextmanager
async def bench(
    loop: TracingLoop, durations: tuple[float, float], callback_url: str | None = None
) -> AsyncGenerator[Bench, None]:
    """Open a session with an emulator. Record each write to the store and each HTTP request."""

    async def begins(_session: object, _context: object, request: aiohttp.TraceRequestStartParams) -> None:
        loop.marks.append(loop.mark(request.method))

    tracing = aiohttp.TraceConfig()
    tracing.on_request_start.append(begins)
    async with contextlib.AsyncExitStack() as opened:
        folder = opened.enter_context(tempfile.TemporaryDirectory())
        ledger = open_ledger(Path(folder) / "characters.db")
        store = store_of(ledger)
        opened.enter_context(marked(loop, store))
        emulator = await opened.enter_async_context(Emulator(durations=durations))
        emulator.add_origin(SOURCE)
        http = await opened.enter_async_context(aiohttp.ClientSession(trace_configs=[tracing]))
        provider = Kie("key", base_url=emulator.url, http=http, callback_url=callback_url)
        session = await opened.enter_async_context(CharacterSession(provider, ledger=ledger))
        yield Bench(emulator, session, store)


def store_of(ledger: object) -> type:
    """Return the class of the store inside a ledger, whatever the name of the attribute."""
    members = (getattr(ledger, member, None) for member in dir(ledger))
    return next(type(member) for member in members if hasattr(member, "insert") and hasattr(member, "replace"))


@contextlib.contextmanager
def marked(loop: TracingLoop, store: type) -> Generator[None]:
    """Record each call of the store's `insert` and `replace`."""

    def marking(method: str, original: Callable[..., Any]) -> Callable[..., Any]:
        async def call(self: object, *arguments: Any, **options: Any) -> Any:
            loop.marks.append(loop.mark(method, code=inspect.unwrap(original).__code__))
            return await original(self, *arguments, **options)

        return call

    with contextlib.ExitStack() as patched:
        for method in ("insert", "replace"):
            patched.enter_context(mock.patch.object(store, method, marking(method, getattr(store, method))))
        yield


@contextlib.asynccontextmanager
async def receiving(session: CharacterSession, listener: socket.socket) -> AsyncGenerator[None, None]:
    """Receive callbacks under /hooks/."""
    app = web.Application()
    app.add_subapp("/hooks/", CallbackReceiver(session).aiohttp_app())
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.SockSite(runner, listener).start()
    try:
        yield
    finally:
        await runner.cleanup()


@attrs.define
class Files:
    """The functions that run during a create, by file; `inside` are those that the store calls."""

    loop: TracingLoop
    store: str
    entered: dict[str, list[str]] = attrs.field(factory=dict)
    inside: dict[str, list[str]] = attrs.field(factory=dict)

    def profile(self, frame: FrameType, event: str, _: object) -> None:
        """Record a call, as `sys.setprofile` reports it."""
        file = own(frame.f_code) if event == "call" else None
        if file is None or asyncio.current_task(self.loop) not in self.loop.family:
            return
        inside = file != self.store and self._is_called_by_store(frame)
        functions = (self.inside if inside else self.entered).setdefault(file, [])
        function = name(frame.f_code).partition(":")[2]
        if function not in functions:
            functions.append(function)

    def _is_called_by_store(self, frame: FrameType) -> bool:
        caller = frame.f_back
        while caller and own(caller.f_code) != self.store:
            caller = caller.f_back
        return caller is not None


async def trace_create(loop: TracingLoop) -> tuple[Files, dict[str, list[str]]]:
    """Trace the first create of a session."""
    task = asyncio.current_task()
    assert task
    async with bench(loop, SHORT) as running:
        files = Files(loop, home(running.store))
        loop.marks.clear()
        loop.family = {task}
        sys.setprofile(files.profile)
        try:
            await running.session.create(**FIELDS, key="traced")
        finally:
            sys.setprofile(None)
            loop.family = set()
        woken, marks = loop.woken[task], list(loop.marks)
    kinds = [mark.kind for mark in marks]
    sent, polled = kinds.index("POST"), len(kinds) - kinds[::-1].index("GET") - 1
    inserted, answered, ended = (
        marks[kinds.index(kind, start)] for kind, start in (("insert", 0), ("replace", sent), ("replace", polled))
    )
    return files, {
        "key": names(inserted.frames, inserted.code),
        "request": names(marks[sent].frames),
        "answer": path_to_store(marks[sent], answered),
        "end": path_to_store(marks[polled], ended),
        "result": names([*woken.local, *woken.waiting[::-1]]),
    }


def path_to_store(sent: Mark, written: Mark) -> list[str]:
    """Return the functions from the provider's caller up to the one that both events share, and down to the store."""
    pairs = zip(sent.frames, written.frames, strict=False)
    shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] is pair[1], pairs))
    if not shared:
        raise SystemExit("The write to the store does not follow from the request.")
    provider = {home(kind) for kind in Kie.__mro__ if kind.__module__.startswith("sora_chars.")}
    entry = next(index for index, frame in enumerate(sent.frames) if own(frame.f_code) in provider)
    return names([*sent.frames[shared:entry][::-1], *written.frames[shared - 1 :]], written.code)


async def trace_callback(loop: TracingLoop) -> list[str]:
    """Trace the callback of a task that takes an hour, so no poll detects its end first."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/hooks"
        async with bench(loop, LONG, url) as running, receiving(running.session, listener):
            handle = await running.session.submit(**FIELDS, key="called back")
            loop.marks.clear()
            running.emulator.finish(handle.task_id)
            await handle.result()
            polled = next(mark for mark in loop.marks if mark.kind == "GET")
    return caused_by(polled, home(CallbackReceiver))


def caused_by(mark: Mark, file: str) -> list[str]:
    """Return the functions from the asyncio task that runs code of `file` to this event, across wake-ups."""
    frames = mark.local
    while not any(own(frame.f_code) == file for frame in frames):
        if mark.cause is None:
            raise SystemExit(f"The poll does not follow from {file}.")
        mark = mark.cause
        frames = mark.local + frames
    return names(frames)


async def trace() -> dict[str, Any]:
    """Return the counts, the goals, the traces and the files."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, TracingLoop)
    callback = await trace_callback(loop)  # first, since it loads all modules
    files, traces = await trace_create(loop)
    path = {function.partition(":")[0] for steps in traces.values() for function in steps}
    counts = {"files": len(files.entered), "path": len(path)} | {
        kind: len(traces[kind]) for kind in ("request", "answer", "end")
    }
    facts = {"counts": counts, "goals": GOALS, "traces": traces | {"callback": callback}}
    return facts | {"files": files.entered, "files_of_the_store": files.inside}


def report(found: dict[str, Any]) -> str:
    """Return the counts and the traces as Markdown."""
    lines = ["| count | measured | goal (at most) |", "|---|---:|---:|"]
    lines += [f"| {label} | {found['counts'][kind]} | {GOALS[kind]} |" for kind, label in LABELS.items()]
    for kind, title in TITLES.items():
        lines += ["", f"### {title}", "", "| | function |", "|---:|---|"]
        lines += [f"| {number} | `{function}` |" for number, function in enumerate(found["traces"][kind], 1)]
    lines += ["", "### Files that one `create()` enters", "", "| | file | functions | first |", "|---:|---|---:|---|"]
    lines += [
        f"| {number} | `{file}` | {len(functions)} | `{functions[0]}` |"
        for number, (file, functions) in enumerate(found["files"].items(), 1)
    ]
    inside = ", ".join(f"`{file}`" for file in found["files_of_the_store"])
    return "\n".join([*lines, "", f"What the store calls is not counted: {inside}."])


def main() -> None:
    """Print the report, or all facts as JSON."""
    parser = argparse.ArgumentParser(description="Trace a key, a task id and a callback body through the package.")
    parser.add_argument("--json", action="store_true", help="print JSON instead of Markdown tables")
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=TracingLoop) as runner:
        found = runner.run(trace())
    print(json.dumps(found, indent=2) if options.json else report(found))


if __name__ == "__main__":
    main()
