"""The Django project of the page about workers, with Django's test clients and under uvicorn."""

from __future__ import annotations

import socket
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from sora_chars.testing import Emulator
from tests.support.recipes import blocks, running

pytest.importorskip("django")

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(180)

FIELDS: dict[str, Any] = {"video": "https://example.com/dog.mp4", "name": "Rex", "prompt": "A friendly dog"}
SETTINGS = """
SECRET_KEY = "of-no-site"
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "urls"
INSTALLED_APPS = ["characters"]
USE_TZ = True
"""
URLS = """
from django.urls import path
from characters import views
urlpatterns = [
    path("orders/<int:number>/character", views.character),
    path("blocking/orders/<int:number>/character", views.blocking_character),
]
"""
CLIENTS = f"""
import asyncio, os
os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
from asgi import session
from django.test import AsyncClient, Client

FIELDS = {FIELDS}
REQUEST = {{"data": FIELDS, "content_type": "application/json"}}

first = Client().put("/blocking/orders/1/character", **REQUEST)
assert first.status_code == 200, first.content
assert Client().get("/blocking/orders/1/character").json() == first.json()
assert Client().put("/blocking/orders/2/character", data="x", content_type="application/json").status_code == 422

async def main():
    async with session:
        again = await AsyncClient().put("/orders/1/character", **REQUEST)
        assert again.json() == first.json()
        assert (await AsyncClient().get("/orders/2/character")).status_code == 422

asyncio.run(main())
"""


def write(folder: Path) -> None:
    """Write the project: the files of the page, and the settings and routes that each project has."""
    (folder / "characters").mkdir()
    (folder / "characters/__init__.py").touch()
    (folder / "settings.py").write_text(SETTINGS)
    (folder / "urls.py").write_text(URLS)
    for block in blocks("Django"):
        name = block.partition("\n")[0].removeprefix("# ")
        (folder / name).write_text(block)


async def test_both_kinds_of_views(tmp_path: Path) -> None:
    """A sync view and an async view return the character of one order, which is paid once."""
    write(tmp_path)
    async with Emulator(durations=(0.1, 0.1)) as emulator:
        environment = {
            "DATABASE_URL": f"sqlite:///{tmp_path}/characters.db",
            "PUBLIC_URL": "http://127.0.0.1:9",
            "SORA_CHARS_EMULATOR": emulator.url,
        }
        async with running(tmp_path, ("-W", "error", "-c", CLIENTS), environment) as program:
            assert await program.wait() == 0
        assert emulator.counts.elements == 1


async def test_callbacks_under_uvicorn(tmp_path: Path) -> None:
    """The ASGI application opens the session, receives callbacks, and ends when the server does."""
    write(tmp_path)
    async with AsyncExitStack() as stack:
        emulator = await stack.enter_async_context(Emulator(durations=(0.5, 0.5)))
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        environment = {
            "DATABASE_URL": f"sqlite:///{tmp_path}/characters.db",
            "PUBLIC_URL": url,
            "SORA_CHARS_EMULATOR": emulator.url,
        }
        command = ("-m", "uvicorn", "asgi:application", "--lifespan", "on", "--fd", str(listening.fileno()))
        server = await stack.enter_async_context(running(tmp_path, command, environment, listening=listening))
        async with httpx.AsyncClient(timeout=60) as client:
            made = await client.put(f"{url}/orders/1/character", json=FIELDS)
            assert made.status_code == 200, made.text
            assert (await client.get(f"{url}/blocking/orders/1/character")).json() == made.json()
        (task,) = emulator.kling.tasks.values()
        await emulator.until(lambda: task.callbacks)
        assert set(task.callbacks) == {200}
        server.terminate()
        await server.wait()
