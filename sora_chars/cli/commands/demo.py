"""`sora-chars demo`: creates three characters through an emulator, which runs in its own process."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
import sys
import tempfile
import time
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import getproxies_environment

import aiohttp
import attrs
import click
from rich.text import Text

from sora_chars import media
from sora_chars.cli.callback_server import serve_callbacks
from sora_chars.cli.options import output_options
from sora_chars.cli.render import character_json, one_line
from sora_chars.cli.runner import run
from sora_chars.errors import ConfigurationError, SoraCharsError, printable
from sora_chars.models import CharacterRequest, Clip, MediaRule
from sora_chars.polling.strategies import FixedInterval
from sora_chars.providers.base import EMULATOR_VARIABLE
from sora_chars.providers.kie import Kie
from sora_chars.providers.kling import Kling
from sora_chars.providers.kling_codec import ACCEPTS as KLING
from sora_chars.providers.vidu import Vidu
from sora_chars.session.session import CharacterSession

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping

    from sora_chars.cli.context import CommandContext
    from sora_chars.models import Character
    from sora_chars.polling.handle import TaskHandle

_START_TIMEOUT = 20.0  # seconds
_TASK_OPTIONS = ("--speed", "10", "--durations", "5,10", "--strict-limits")  # tasks of 0.5 to 1 s
_INTERVAL = 0.25  # seconds between polls of tasks that take 0.5 to 1 s
_REQUEST = CharacterRequest(from_task="0" * 32, clip=Clip(1, 3), prompt="A friendly cartoon dog")
_CLIP = Path(__file__).parents[1] / "demo.mp4"  # 6 s of a moving square
_IMAGE = "https://example.com/rex.jpg"  # the emulator opens no URL
_COUNTERS = {
    "uploads": "upload",
    "elements": "create",
    "subjects": "call",
    "creates": "create",
    "polls": "poll",
    "callbacks_sent": "callback",
}


@attrs.frozen(kw_only=True)
class Target:
    """The emulator: its address, and the key that signs its callbacks."""

    url: str
    hmac_key: str = attrs.field(repr=False)

    def kie(self, callback_url: str | None = None) -> Kie:
        """Return the provider kie.ai, as emulated."""
        return Kie("demo", base_url=self.url, upload_url=self.url, callback_url=callback_url)


@attrs.frozen(kw_only=True)
class Scenario:
    """One way to create a character.

    Attributes:
        name: The name that is shown.
        create: Creates the character and returns its finished handle.
        woken_by: What must end the wait: "poll" or "callback".
        requests: How many requests the emulator must have counted, by counter.
    """

    name: str
    create: Callable[[Target], Awaitable[TaskHandle[Character]]]
    woken_by: str
    requests: Mapping[str, int]


@attrs.frozen(kw_only=True)
class ScenarioResult:
    """The result of one scenario; `requests` is what the emulator counted."""

    name: str
    seconds: float
    requests: Mapping[str, int]
    character: Character | None = None
    problem: str | None = None

    def row(self) -> Text:
        """Return the result as a line of a table."""
        mark = Text("ok  ", style="bold green") if self.problem is None else Text("FAIL", style="bold red")
        created = self.character and printable(self.character.mention or self.character.id, limit=20)
        counts = [f"{count} {_COUNTERS[name]}{'s' * (count > 1)}" for name, count in self.requests.items() if count]
        cells = f"  {self.name:<15}  {self.seconds:.1f} s  {', '.join(counts):<28}  {one_line(self.problem or created)}"
        return mark.append(cells, style="not bold default")

    def json(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {
            "name": self.name,
            "ok": self.problem is None,
            "seconds": round(self.seconds, 3),
            "requests": dict(self.requests),
            "character": self.character and character_json(self.character, key=None)["character"],
            "problem": self.problem,
        }


@click.command()
@output_options
@click.pass_obj
def demo(context: CommandContext, /) -> int:
    """Create three characters locally; no account is needed.

    The demo starts the emulator on this machine. It creates one character with
    Kling from a clip, one with Vidu from an image, and one with kie by a signed
    callback, and checks each against the requests that the emulator counted. With
    the extra "media" the clip is cut here first, as Kling requires it.
    """
    results = run(context, _run_scenarios(context))
    ok = all(result.problem is None for result in results)
    if context.output.as_json:
        context.output.show_json({"ok": ok, "scenarios": [result.json() for result in results]})
    elif ok:
        _print(context, Text("\nAll three characters were created. Next: sora-chars create --help"))
    else:
        _print(context, Text("\nNot every scenario ended as expected."))
    return 0 if ok else 1


async def _run_scenarios(context: CommandContext) -> list[ScenarioResult]:
    hmac_key = secrets.token_urlsafe(16)
    results: list[ScenarioResult] = []
    async with AsyncExitStack() as stack:
        stack.enter_context(_no_proxy("127.0.0.1"))
        stack.enter_context(_own_emulator())
        with context.output.status_line() as line:
            line.update("Starting the emulator")
            url = await stack.enter_async_context(_emulator(hmac_key))
        _print(context, Text(f"Emulator at {url}: no account is needed, nothing is paid.\n"))
        _print(context, Text(f"      {'scenario':<15}  {'time':<5}  {'requests':<28}  character", style="dim"))
        for scenario in SCENARIOS:
            with context.output.status_line() as line:
                line.update(scenario.name)
                result = await _run_scenario(scenario, Target(url=url, hmac_key=hmac_key))
            results.append(result)
            _print(context, result.row())
    return results


@contextmanager
def _no_proxy(host: str) -> Generator[None]:
    """Except a host from the proxy of the environment, which could not reach it."""
    before = os.environ.get("no_proxy")
    excepted = getproxies_environment().get("no", "")
    os.environ["no_proxy"] = excepted if excepted == "*" else f"{excepted},{host}"
    try:
        yield
    finally:
        del os.environ["no_proxy"]
        if before is not None:
            os.environ["no_proxy"] = before


@contextmanager
def _own_emulator() -> Generator[None]:
    """Ignore SORA_CHARS_EMULATOR: the demo counts what its own emulator receives."""
    before = os.environ.pop(EMULATOR_VARIABLE, None)
    try:
        yield
    finally:
        if before is not None:
            os.environ[EMULATOR_VARIABLE] = before


def _print(context: CommandContext, text: Text) -> None:
    if not context.output.as_json:
        context.output.out.print(text, soft_wrap=True)


async def _run_scenario(scenario: Scenario, target: Target) -> ScenarioResult:
    """Run a scenario, and compare its end and its requests with what is expected."""
    before = await _counts(target.url)
    began = time.monotonic()
    character: Character | None = None
    problem: str | None = None
    try:
        handle = await scenario.create(target)
        character = await handle
        if handle.woken_by != scenario.woken_by:
            problem = f"the wait was ended by a {handle.woken_by}, expected a {scenario.woken_by}"
    except SoraCharsError as error:
        problem = str(error)
    seconds = time.monotonic() - began
    after = await _counts(target.url)
    requests = {name: after[name] - before[name] for name in _COUNTERS}
    counted = {name: requests[name] for name in scenario.requests}
    if problem is None and counted != scenario.requests:
        problem = f"expected the requests {dict(scenario.requests)}"
    return ScenarioResult(name=scenario.name, seconds=seconds, requests=requests, character=character, problem=problem)


async def _from_clip(target: Target) -> TaskHandle[Character]:
    """Cut the clip where PyAV is installed, make it public by kie's uploads, and create an element of Kling."""
    with tempfile.TemporaryDirectory() as folder:
        clip = _CLIP
        if media.is_installed():
            clip = await media.cut(_CLIP, Path(folder, "clip.mp4"), clip=Clip(1, 5), rule=KLING.video or MediaRule())
        async with target.kie() as kie:
            url = await kie.upload(clip)
    async with CharacterSession(Kling("demo", base_url=target.url), polling=FixedInterval(_INTERVAL)) as session:
        return await _finished(await session.submit(video=url, name="Rex", prompt="A friendly cartoon dog"))


async def _from_image(target: Target) -> TaskHandle[Character]:
    async with CharacterSession(Vidu("demo", base_url=target.url)) as session:
        return await session.submit(images=[_IMAGE], name="Rex")


async def _by_callback(target: Target) -> TaskHandle[Character]:
    listener = socket.create_server(("127.0.0.1", 0))
    provider = target.kie(f"http://127.0.0.1:{listener.getsockname()[1]}/hooks/kie")
    async with CharacterSession(provider) as session, serve_callbacks(session, listener, target.hmac_key):
        return await _finished(await session.submit(_REQUEST))


async def _finished(handle: TaskHandle[Character]) -> TaskHandle[Character]:
    await handle
    return handle


SCENARIOS = (
    Scenario(
        name="kling, cut clip" if media.is_installed() else "kling, a clip",
        create=_from_clip,
        woken_by="poll",
        requests={"uploads": 1, "elements": 1, "creates": 0},
    ),
    Scenario(
        name="vidu, an image",
        create=_from_image,
        woken_by="poll",
        requests={"subjects": 1, "creates": 0, "polls": 0},
    ),
    Scenario(
        name="kie by callback",
        create=_by_callback,
        woken_by="callback",
        requests={"creates": 1, "callbacks_sent": 1},
    ),
)


async def _counts(url: str) -> dict[str, int]:
    async with aiohttp.ClientSession() as http, http.get(f"{url}/_emulator/counts") as response:
        counts: dict[str, int] = await response.json()
        return counts


@asynccontextmanager
async def _emulator(hmac_key: str) -> AsyncGenerator[str]:
    """Run `sora-chars emulate` on a free port while the block runs, and give its URL.

    Raises:
        ConfigurationError: The emulator did not start.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sora_chars", "emulate", "--json", "--port", "0", "--hmac-key", hmac_key),
        *_TASK_OPTIONS,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C reaches this process only, which then ends the emulator
    )
    try:
        yield await _read_url(process.stdout)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _read_url(stdout: asyncio.StreamReader | None) -> str:
    try:
        async with asyncio.timeout(_START_TIMEOUT):
            ready = json.loads(await stdout.readline() if stdout else b"")
        return str(ready["url"])
    except (TimeoutError, ValueError, KeyError) as error:
        hint = "Run `sora-chars emulate` to see why."
        raise ConfigurationError("The emulator did not start.", hint=hint) from error
