"""`sora-chars demo`: three ways to a character, against an emulator that runs in a process of its own."""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import sys
import time
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import aiohttp
import attrs
import click
from rich.text import Text

from sora_chars.cli.callback_server import receiving
from sora_chars.cli.context import Job, speaking
from sora_chars.cli.render import character_json, shown
from sora_chars.cli.runner import run
from sora_chars.errors import ConfigurationError, SoraCharsError, printable
from sora_chars.models import CharacterRequest, Clip
from sora_chars.providers.kie import Kie
from sora_chars.providers.kkiai import Kkiai
from sora_chars.session.session import CharacterSession

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

    from sora_chars.models import Character
    from sora_chars.polling.handle import TaskHandle

_START = 20.0  # seconds within which the emulator is up
_TASKS = ("--speed", "10", "--durations", "5,10", "--strict-limits")  # tasks of 0.5 to 1 s
_WISH = CharacterRequest(from_task="0" * 32, clip=Clip(1, 3), prompt="A friendly cartoon dog")
_COUNTED = {"characters": "call", "creates": "create", "polls": "look", "callbacks_sent": "callback"}


@attrs.frozen(kw_only=True)
class Stage:
    """Where the demo plays: the emulator's address, and the key that signs its callbacks."""

    url: str
    hmac_key: str = attrs.field(repr=False)

    def kie(self, callback_url: str | None = None) -> Kie:
        """The emulator as kie.ai."""
        return Kie("demo", base_url=self.url, upload_url=self.url, callback_url=callback_url)


@attrs.frozen(kw_only=True)
class Way:
    """One way to a character: what must lead to the last look, and what it must cost, as the emulator counts."""

    name: str
    make: Callable[[Stage], Awaitable[TaskHandle[Character]]]
    woken_by: str
    cost: Mapping[str, int]


@attrs.frozen(kw_only=True)
class Result:
    """How one way went; `requests` is what the emulator counted meanwhile."""

    name: str
    seconds: float
    requests: Mapping[str, int]
    character: Character | None = None
    problem: str | None = None

    def row(self) -> Text:
        """The result as a line of a table."""
        mark = Text("ok  ", style="bold green") if self.problem is None else Text("BAD ", style="bold red")
        made = self.character and printable(self.character.mention or self.character.id, limit=20)
        words = [f"{count} {_COUNTED[name]}{'s' * (count > 1)}" for name, count in self.requests.items() if count]
        cells = f"{self.name:<15}  {self.seconds:.1f} s  {', '.join(words):<28}  {shown(self.problem or made)}"
        return mark.append(cells, style="not bold default")

    def json(self) -> dict[str, Any]:
        """The result as JSON values."""
        return {
            "name": self.name,
            "ok": self.problem is None,
            "seconds": round(self.seconds, 3),
            "requests": dict(self.requests),
            "character": self.character and character_json(self.character, key=None)["character"],
            "problem": self.problem,
        }


@click.command()
@speaking
@click.pass_obj
def demo(job: Job, /) -> int:
    """Make three characters without an account, against an emulator on this machine."""
    results = run(job, _play(job))
    ok = all(result.problem is None for result in results)
    if job.screen.as_json:
        job.screen.show_json({"ok": ok, "ways": [result.json() for result in results]})
    elif ok:
        _tell(job, Text("\nAll three are right, the signature of the callback too. Next: sora-chars create --help"))
    else:
        _tell(job, Text("\nNot all of them are right."))
    return 0 if ok else 1


async def _play(job: Job) -> list[Result]:
    hmac_key = secrets.token_urlsafe(16)
    results: list[Result] = []
    async with AsyncExitStack() as stack:
        with job.screen.line() as line:
            line.say("Starting the emulator in a process of its own")
            url = await stack.enter_async_context(_emulator(hmac_key))
        _tell(job, Text(f"An emulator plays both providers at {url}: no account, no cost.\n"))
        _tell(job, Text(f"    {'way':<15}  {'time':<5}  {'requests':<28}  character", style="dim"))
        for way in WAYS:
            with job.screen.line() as line:
                line.say(way.name)
                result = await _go(way, Stage(url=url, hmac_key=hmac_key))
            results.append(result)
            _tell(job, result.row())
    return results


def _tell(job: Job, text: Text) -> None:
    if not job.screen.as_json:
        job.screen.out.print(text, soft_wrap=True)


async def _go(way: Way, stage: Stage) -> Result:
    """Go one way, and hold what it gave and cost against what is right."""
    before, began = await _counts(stage.url), time.monotonic()
    character, problem = None, None
    try:
        handle = await way.make(stage)
        character = await handle
        if handle.woken_by != way.woken_by:
            problem = f"its end was seen by {handle.woken_by}, not by {way.woken_by}"
    except SoraCharsError as error:
        problem = str(error)
    seconds, after = time.monotonic() - began, await _counts(stage.url)
    requests = {name: after[name] - before[name] for name in _COUNTED}
    cost = {name: requests[name] for name in way.cost}
    if problem is None and cost != way.cost:
        problem = f"it must cost {dict(way.cost)}"
    return Result(name=way.name, seconds=seconds, requests=requests, character=character, problem=problem)


async def _one_call(stage: Stage) -> TaskHandle[Character]:
    async with CharacterSession(Kkiai("demo", base_url=stage.url)) as session:
        return await session.submit(from_task=f"task_{'0' * 26}", clip="1,3")


async def _by_polling(stage: Stage) -> TaskHandle[Character]:
    async with CharacterSession(stage.kie()) as session:
        return await _ended(await session.submit(_WISH))


async def _by_callback(stage: Stage) -> TaskHandle[Character]:
    server = socket.create_server(("127.0.0.1", 0))
    provider = stage.kie(f"http://127.0.0.1:{server.getsockname()[1]}/hooks/kie")
    async with CharacterSession(provider) as session, receiving(session, server, stage.hmac_key):
        return await _ended(await session.submit(_WISH))


async def _ended(handle: TaskHandle[Character]) -> TaskHandle[Character]:
    await handle
    return handle


WAYS = (
    Way(
        name="kkiai, at once",
        make=_one_call,
        woken_by="poll",
        cost={"characters": 1, "creates": 0, "polls": 0},
    ),
    Way(
        name="kie by polling",
        make=_by_polling,
        woken_by="poll",
        cost={"characters": 0, "creates": 1, "callbacks_sent": 0},
    ),
    Way(
        name="kie by callback",
        make=_by_callback,
        woken_by="callback",
        cost={"characters": 0, "creates": 1, "callbacks_sent": 1},
    ),
)


async def _counts(url: str) -> dict[str, int]:
    async with aiohttp.ClientSession() as http, http.get(f"{url}/_emulator/counts") as answer:
        counts: dict[str, int] = await answer.json()
        return counts


@asynccontextmanager
async def _emulator(hmac_key: str) -> AsyncGenerator[str]:
    """Run `sora-chars emulate` on a free port: its URL. It never outlives the block.

    Raises:
        ConfigurationError: it did not start.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sora_chars", "emulate", "--json", "--port", "0", "--hmac-key", hmac_key, *_TASKS),
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for us; we end it
    )
    try:
        yield await _url(process.stdout)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _url(stdout: asyncio.StreamReader | None) -> str:
    try:
        async with asyncio.timeout(_START):
            ready = json.loads(await stdout.readline() if stdout else b"")
        return str(ready["url"])
    except (TimeoutError, ValueError, KeyError) as error:
        raise ConfigurationError("The emulator did not start.", hint="What does `sora-chars emulate` say?") from error
