"""The page about providers: its table, and its provider, which is run as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from sora_chars import CharacterSession, FixedInterval, InvalidRequestError, RequestRejectedError, TaskFailedError
from sora_chars.providers import (
    evolink_codec,
    heygen_codec,
    kie_codec,
    kkiai,
    kling_codec,
    seedance_codec,
    vidu_codec,
    wavespeed_codec,
)

if TYPE_CHECKING:
    from sora_chars.models import Accepts

PAGE = (Path(__file__).parents[2] / "docs/providers.md").read_text()
VIDEO: dict[str, Any] = {"video": "https://clips.example/rex.mp4", "prompt": "A dog"}


@pytest.mark.parametrize(
    ("name", "accepts"),
    [
        ("kling", kling_codec.ACCEPTS),
        ("wavespeed", wavespeed_codec.ACCEPTS),
        ("evolink", evolink_codec.ACCEPTS),
        ("vidu", vidu_codec.ACCEPTS),
        ("seedance", seedance_codec.ACCEPTS),
        ("kie", kie_codec.ACCEPTS),
        ("kkiai", kkiai.ACCEPTS),
        ("heygen", heygen_codec.ACCEPTS),
    ],
)
def test_tables_of_limits(name: str, accepts: Accepts) -> None:
    """Each table holds what the checks use."""
    (table,) = re.findall(rf"<!-- accepts: {name} -->(.*?)<!-- /accepts -->", PAGE, re.DOTALL)
    assert re.findall(r"^\| `(\w+)` \| (.*) \|$", table, re.MULTILINE) == list(accepts.rows())


class StudioServer:
    """The API of the page's studio. It can lose responses, as a proxy's page."""

    def __init__(self) -> None:
        self.tasks: dict[str, dict[str, Any]] = {}
        self.keys: dict[str, str] = {}
        self.lose = 0
        self.creates = 0

    async def create(self, request: web.Request) -> web.Response:
        """Make a task."""
        body = await request.json()
        if "cat" in body["prompt"]:
            return web.Response(status=422, text="no cats")
        self.creates += 1
        task_id = f"t{self.creates}"
        state = "broken" if "ghost" in body["prompt"] else "done"
        self.tasks[task_id] = {"id": task_id, "state": state, "character": f"c{self.creates}"}
        self.keys[body["key"]] = task_id
        if self.lose:
            self.lose -= 1
            return web.Response(status=502, text="<html>Bad gateway</html>")
        return web.json_response({"id": task_id, "state": "waiting"})

    async def show(self, request: web.Request) -> web.Response:
        """Return a task by its id or its key."""
        name = request.match_info["name"]
        task = self.tasks.get(self.keys.get(name, name))
        return web.json_response(task) if task else web.Response(status=404)


@pytest.fixture
def studio_class() -> Any:
    """The class of the page's example."""
    (source,) = re.findall(r'```python\n("""A provider for the HTTP API.*?)```', PAGE, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(source, "docs/providers.md", "exec"), names)  # our own page
    return names["Studio"]


async def test_the_example_works(studio_class: Any) -> None:
    """The provider of the page makes characters, reports rejections and failures, and settles lost responses."""
    server = StudioServer()
    app = web.Application()
    app.router.add_post("/characters", server.create)
    app.router.add_get("/characters/{name}", server.show)
    app.router.add_get("/keys/{name}", server.show)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    studio = studio_class("a-key", f"http://127.0.0.1:{runner.addresses[0][1]}")
    async with CharacterSession(studio, polling=FixedInterval(0.01), timeout=10) as session:
        assert (await session.create(**VIDEO)).id == "c1"
        with pytest.raises(InvalidRequestError, match="prompt must have 1 to 200"):
            await session.create(video=VIDEO["video"], prompt="x" * 201)
        with pytest.raises(RequestRejectedError, match="no cats"):
            await session.create(video=VIDEO["video"], prompt="a cat")
        with pytest.raises(TaskFailedError):
            await session.create(video=VIDEO["video"], prompt="a ghost")
        server.lose = 1
        assert (await session.create(**VIDEO, key="order-17")).id == "c3"
        assert await studio.lookup("order-18") is None
    await runner.cleanup()
    assert server.creates == 3
