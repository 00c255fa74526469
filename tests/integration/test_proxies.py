"""HTTP proxies: of an option, of the environment, and none for the hosts of NO_PROXY."""

from __future__ import annotations

import logging
import ssl
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import trustme
from aiohttp import web

from sora_chars import CharacterSession, ConfigurationError, FixedInterval, Kie, Kkiai, NoAnswerError
from sora_chars.testing import Emulator
from tests.support.forward_proxy import ForwardProxy

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from pathlib import Path

PASSWORD = "proxy-CANARY-0123456789"
FROM_TASK: dict[str, Any] = {"from_task": "a" * 32, "clip": "1,3"}
VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY")


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the proxies and their exceptions from the environment."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
async def proxy() -> AsyncGenerator[ForwardProxy]:
    """A proxy that tunnels to loopback whatever the host."""
    async with ForwardProxy() as running:
        yield running


@pytest.fixture
async def emulator() -> AsyncGenerator[Emulator]:
    """An emulator whose tasks end at once."""
    async with Emulator(durations=(0.01, 0.02)) as running:
        yield running


def port(url: str) -> str:
    """Return the port of a URL."""
    return url.rpartition(":")[2]


def with_password(url: str) -> str:
    """Return the URL of a proxy with a user."""
    return url.replace("://", f"://user:{PASSWORD}@")


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy"])
async def test_creates_and_polls_use_the_proxy_of_the_environment(
    emulator: Emulator, proxy: ForwardProxy, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """Creates and polls go through HTTP_PROXY, to a host that only the proxy resolves."""
    monkeypatch.setenv(variable, with_password(proxy.url))
    host = f"http://api.kie.invalid:{port(emulator.url)}"
    async with CharacterSession(Kie("key", base_url=host), polling=FixedInterval(0.01)) as session:
        await session.create(**FROM_TASK, prompt="A dog")
    assert proxy.lines[0] == f"POST {host}/api/v1/jobs/createTask"
    assert any(line.startswith(f"GET {host}/api/v1/jobs/recordInfo?taskId=") for line in proxy.lines)
    assert all("\r\nProxy-Authorization: Basic " in head for head in proxy.heads)


async def test_tls_is_tunnelled(proxy: ForwardProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """With HTTPS_PROXY a paid request is sent inside a tunnel, and the proxy sees neither key nor body."""
    monkeypatch.setenv("HTTPS_PROXY", with_password(proxy.url))
    authority = trustme.CA()
    server_tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("gateway.invalid").configure_cert(server_tls)
    client_tls = ssl.create_default_context()
    authority.configure_trust(client_tls)
    keys: list[str] = []

    async def respond(request: web.Request) -> web.Response:
        keys.append(request.headers["Authorization"])
        return web.json_response({"id": "ch_1", "username": "rex"})

    app = web.Application()
    app.router.add_post("/sora/v1/characters", respond)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=server_tls).start()
    host = f"gateway.invalid:{runner.addresses[0][1]}"
    try:
        async with CharacterSession(Kkiai("secret-key", base_url=f"https://{host}", ssl=client_tls)) as session:
            assert [(await session.create(**FROM_TASK)).id for _ in range(2)] == ["ch_1", "ch_1"]
    finally:
        await runner.cleanup()
    assert keys == ["Bearer secret-key"] * 2
    assert proxy.lines == [f"CONNECT {host}"] * 2
    assert all("\r\nProxy-Authorization: Basic " in head for head in proxy.heads)
    assert "secret-key" not in "".join(proxy.heads)


async def test_rejected_tunnel_was_not_paid(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that rejects the tunnel leaves the key unsent, and the error does not show the password."""
    async with ForwardProxy("407 Proxy Authentication Required") as proxy:
        monkeypatch.setenv("HTTPS_PROXY", with_password(proxy.url))
        async with CharacterSession(Kkiai("key", base_url="https://gateway.invalid", timeout=1.0)) as session:
            with pytest.raises(NoAnswerError) as caught:
                await session.create(**FROM_TASK, key="k")
            entry = await session.entry("k")
    assert entry
    assert entry.state == "pending"
    assert (caught.value.harmless, caught.value.transient) == (True, False)
    assert "Check the proxy" in caught.value.hint
    assert len(proxy.heads) == 1
    assert PASSWORD not in f"{caught.value} {caught.value!r} {vars(caught.value)}"


async def test_rejected_tunnel_ends_no_wait() -> None:
    """A poll that the proxy rejects may be repeated, because the task still runs."""
    async with ForwardProxy("403 Forbidden") as proxy, Kie("key", base_url="https://k.invalid", proxy=proxy.url) as kie:
        with pytest.raises(NoAnswerError) as caught:
            await kie.fetch("t")
    assert (caught.value.harmless, caught.value.transient) == (True, True)


@pytest.mark.parametrize("exception", ["127.0.0.1", "*", "127.0.0.1:{port}", "a.invalid, 127.0.0.1"])
async def test_hosts_of_no_proxy_are_direct(
    emulator: Emulator, proxy: ForwardProxy, monkeypatch: pytest.MonkeyPatch, exception: str
) -> None:
    """A host in NO_PROXY, with or without its port, is connected to directly."""
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    monkeypatch.setenv("NO_PROXY", exception.format(port=port(emulator.url)))
    async with Kie("key", base_url=emulator.url) as kie:
        await kie.credit()
    assert proxy.heads == []


async def test_loopback_is_no_exception(
    emulator: Emulator, proxy: ForwardProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without NO_PROXY, requests to loopback go through the proxy too, as with curl and aiohttp."""
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    async with Kie("key", base_url=emulator.url) as kie:
        await kie.credit()
    assert proxy.lines == [f"GET {emulator.url}/api/v1/chat/credit"]


async def test_option_overrides_the_environment(
    emulator: Emulator, proxy: ForwardProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`proxy=` replaces the proxy of the environment, and ignores NO_PROXY."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "*")
    async with Kie("key", base_url=emulator.url, proxy=proxy.url) as kie:
        await kie.credit()
    assert len(proxy.heads) == 1


@pytest.mark.parametrize("trust_env", [False, True])
async def test_session_of_the_caller_decides(
    emulator: Emulator, proxy: ForwardProxy, monkeypatch: pytest.MonkeyPatch, *, trust_env: bool
) -> None:
    """With `http=` the environment counts only if that session has `trust_env`."""
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    async with aiohttp.ClientSession(trust_env=trust_env) as http, Kie("k", base_url=emulator.url, http=http) as kie:
        await kie.credit()
    assert len(proxy.heads) == trust_env


async def test_netrc_does_not_replace_the_api_key(
    emulator: Emulator, proxy: ForwardProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A netrc file, which aiohttp reads with `trust_env`, has no effect on the API key."""
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login user password other\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    async with Kie("the-key", base_url=emulator.url) as kie:
        await kie.credit()
    assert "\r\nAuthorization: Bearer the-key\r\n" in proxy.heads[0]


async def test_proxy_of_the_environment_is_logged_once(
    emulator: Emulator,
    proxy: ForwardProxy,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    make_clip: Callable[..., Path],
) -> None:
    """The log states at level INFO that a proxy of the environment is used, once and without its password."""
    caplog.set_level(logging.INFO, "sora_chars")
    monkeypatch.setenv("HTTP_PROXY", with_password(proxy.url))
    async with Kie("key", base_url=emulator.url, upload_url=emulator.url.replace("127.0.0.1", "localhost")) as kie:
        await kie.credit()
        await kie.upload(make_clip())
    assert len(proxy.heads) == 2
    (record,) = [record for record in caplog.records if vars(record).get("event") == "proxy.of_environment"]
    facts: dict[str, Any] = vars(record)
    assert (facts["provider"], facts["variable"]) == ("kie", "HTTP_PROXY")
    assert facts["proxy"] == proxy.url.replace("://", "://***@")


@pytest.mark.parametrize("url", ["socks5://user:{}@a.invalid:1080", "http://user:{}@:99999", "ftp://x:{}@a", "http://"])
async def test_rejects_other_proxies(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy of another kind is rejected before anything is sent, and its password is not shown."""
    url = url.format(PASSWORD)
    with pytest.raises(ConfigurationError, match="proxy must be the URL of an HTTP proxy") as caught:
        Kie("key", proxy=url)
    assert PASSWORD not in str(caught.value)
    monkeypatch.setenv("HTTPS_PROXY", url)
    with pytest.raises(ConfigurationError, match="The environment variable HTTPS_PROXY must be") as caught:
        async with CharacterSession(Kie("key")):
            pytest.fail("the session was opened")
    assert PASSWORD not in str(caught.value)


async def test_proxy_without_a_scheme(emulator: Emulator, proxy: ForwardProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """HOST:PORT in the environment is an HTTP proxy, as for curl."""
    monkeypatch.setenv("HTTP_PROXY", proxy.url.removeprefix("http://"))
    async with Kie("key", base_url=emulator.url) as kie:
        await kie.credit()
    assert len(proxy.heads) == 1
