"""Proxies on the command line: `--proxy`, those of the environment, and the demo behind one."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from tests.support.forward_proxy import ForwardProxy

if TYPE_CHECKING:
    import subprocess
    from collections.abc import AsyncGenerator, Callable

    from sora_chars.testing import Emulator

    Cli = Callable[..., subprocess.CompletedProcess[str]]

PASSWORD = "proxy-CANARY-0123456789"


@pytest.fixture
async def proxy() -> AsyncGenerator[ForwardProxy]:
    """A proxy that tunnels to loopback whatever the host."""
    async with ForwardProxy() as running:
        yield running


@pytest.fixture
def proxied(cli: Cli, cli_environment: dict[str, str]) -> Cli:
    """Return a function that runs `sora-chars` in an environment without NO_PROXY."""
    for name in ("NO_PROXY", "no_proxy"):
        cli_environment.pop(name, None)
    return cli


async def test_proxy_option(proxied: Cli, emulator: Emulator, proxy: ForwardProxy) -> None:
    """`--proxy` selects a proxy. Suggested commands repeat it, and no output shows its password."""
    url = proxy.url.replace("://", f"://user:{PASSWORD}@")
    emulator.fault("stuck")
    create = ("create", "--from-task", "a" * 32, "--clip", "1,3", "--prompt", "A dog", "--timeout", "1", "-v")
    ended = await asyncio.to_thread(proxied, *create, "--base-url", emulator.url, "--proxy", url)
    assert ended.returncode == 5
    assert proxy.lines[0] == f"POST {emulator.url}/api/v1/jobs/createTask"
    assert f"--proxy '{proxy.url.replace('://', '://***@')}'" in ended.stderr
    assert PASSWORD not in ended.stdout + ended.stderr


async def test_proxy_of_the_environment(
    proxied: Cli, cli_environment: dict[str, str], emulator: Emulator, proxy: ForwardProxy
) -> None:
    """The proxy of the environment is used, and `-v` says so without its password."""
    cli_environment["http_proxy"] = proxy.url.replace("://", f"://user:{PASSWORD}@")
    ended = await asyncio.to_thread(proxied, "credit", "--base-url", emulator.url, "-v")
    assert (ended.returncode, len(proxy.heads)) == (0, 1)
    assert ended.stderr.count("(provider=kie, variable=HTTP_PROXY, proxy=http://***@127.0.0.1:") == 1
    assert PASSWORD not in ended.stderr


async def test_invalid_proxy(proxied: Cli) -> None:
    """A proxy that is none ends the command before anything is sent."""
    ended = await asyncio.to_thread(proxied, "credit", "--proxy", f"socks5://user:{PASSWORD}@a.invalid")
    assert ended.returncode == 2
    assert "proxy must be the URL of an HTTP proxy" in ended.stderr
    assert PASSWORD not in ended.stderr


@pytest.mark.parametrize("exceptions", ["", "a.invalid", "*"])
async def test_demo_behind_a_proxy(proxied: Cli, cli_environment: dict[str, str], exceptions: str) -> None:
    """The demo reaches its emulator on this machine although the environment names a proxy that cannot."""
    cli_environment |= {"HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": exceptions}
    ended = await asyncio.to_thread(proxied, "demo", "--json")
    assert ended.returncode == 0
    assert json.loads(ended.stdout)["ok"]
