"""The pytest plugin, in separate pytest runs."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import aiohttp
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from sora_chars.testing import Emulator

pytest_plugins = ["pytester"]

SYNC_TEST = """
    import json, urllib.request

    def credit(emulator):
        request = urllib.request.Request(emulator.url + "/api/v1/chat/credit", headers={"Authorization": "Bearer k"})
        return json.load(urllib.request.urlopen(request))["data"]

    def test_one(sora_emulator):
        assert credit(sora_emulator) == 1000.0

    def test_two(sora_emulator_factory):
        rich, poor = sora_emulator_factory(credits=5.0), sora_emulator_factory(credits=0.5)
        assert (credit(rich), credit(poor)) == (5.0, 0.5)
"""
ASYNC_TEST = """
    import aiohttp, pytest

    @pytest.mark.asyncio
    async def test_async(sora_emulator):
        sora_emulator.fault("http_429", on="other")
        async with aiohttp.ClientSession(headers={"Authorization": "Bearer k"}) as http:
            async with http.get(sora_emulator.url + "/api/v1/models") as response:
                assert response.status == 429
        await sora_emulator.until(lambda: sora_emulator.requests)
"""


def test_sync_tests(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fixtures work in synchronous tests without any other plugin and without warnings."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile(SYNC_TEST)
    result = pytester.runpytest_subprocess("-W", "error", "-p", "sora_chars.testing.plugin")
    result.assert_outcomes(passed=2)


@pytest.mark.parametrize("exceptions", ["", "a.invalid", "*"])
def test_proxy_of_the_environment(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, exceptions: str) -> None:
    """Where the environment names a proxy, requests to an emulator are direct all the same."""
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, exceptions)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile(SYNC_TEST)
    pytester.runpytest_subprocess("-W", "error", "-p", "sora_chars.testing.plugin").assert_outcomes(passed=2)


@pytest.mark.parametrize("mode", ["auto", "strict"])
def test_async_tests(pytester: pytest.Pytester, mode: str) -> None:
    """The fixtures work in asynchronous tests in both modes of pytest-asyncio."""
    pytester.makepyfile(ASYNC_TEST)
    options = ("-o", f"asyncio_mode={mode}", "-o", "asyncio_default_fixture_loop_scope=function")
    pytester.runpytest_subprocess(*options).assert_outcomes(passed=1)


def test_failed_start(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """A taken port raises OSError in the test that started the emulator."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile("""
        import pytest

        def test_taken(sora_emulator, sora_emulator_factory):
            with pytest.raises(OSError):
                sora_emulator_factory(port=int(sora_emulator.url.rpartition(":")[2]))
    """)
    pytester.runpytest_subprocess("-W", "error", "-p", "sora_chars.testing.plugin").assert_outcomes(passed=1)


def test_plugin_does_not_import_the_server() -> None:
    """Importing the plugin, as every pytest run does, does not import the server."""
    code = "import sys, sora_chars.testing.plugin; sys.exit('sora_chars.testing.emulator.server' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


async def test_emulators_run_in_threads(
    sora_emulator: Emulator, sora_emulator_factory: Callable[..., Emulator]
) -> None:
    """Each emulator runs in its own thread; a test can end tasks from its thread."""
    other = sora_emulator_factory(durations=(1e6, 1e6))
    assert other.url != sora_emulator.url
    assert [thread.name for thread in threading.enumerate()].count("sora-emulator") == 2
    async with aiohttp.ClientSession(other.url, headers={"Authorization": "Bearer k"}) as http:
        await http.post(
            "/api/v1/jobs/createTask", json={"model": "wan/2-7-image", "input": {}, "callBackUrl": f"{other.url}/"}
        )
        (task,) = other.tasks.values()
        assert task.state == "waiting"
        other.finish(task.task_id)
        await other.until(lambda: task.deliveries)
    assert task.state == "success"


def test_public_names() -> None:
    """The public names load on demand, and other names raise AttributeError."""
    from sora_chars import testing  # noqa: PLC0415 - the subject

    for name in testing.__all__:
        assert getattr(testing, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'Nonsense'"):
        _ = testing.Nonsense
