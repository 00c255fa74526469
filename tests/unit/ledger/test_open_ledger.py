"""Opening a ledger by URL or path."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from sora_chars import ConfigurationError, LedgerError, open_ledger
from sora_chars.ledger.stores.memory import MemoryStore
from sora_chars.ledger.stores.postgres import PostgresStore
from sora_chars.ledger.stores.sqlite import SqliteStore


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///a/b.db", Path("a/b.db")),
        ("sqlite:////a/b.db", Path("/a/b.db")),
        ("characters.db", Path("characters.db")),
        (Path("/a/b:c.db"), Path("/a/b:c.db")),
        (Path("b:c.db"), Path("b:c.db")),
        ("c:/b.db", Path("c:/b.db")),
    ],
)
def test_sqlite_by_url_or_path(url: str | Path, path: Path) -> None:
    """A URL with three slashes, a plain path and every `Path` select an SQLite file."""
    store = open_ledger(url)._store
    assert isinstance(store, SqliteStore)
    assert store._path == path.absolute()


def test_scheme_selects_the_store() -> None:
    """`memory:` and `postgresql:` select the other stores."""
    assert isinstance(open_ledger("memory:")._store, MemoryStore)
    assert isinstance(open_ledger("postgresql://someone:secret@db/x")._store, PostgresStore)


@pytest.mark.parametrize(
    "url",
    [
        "redis://me:secret@host/0",
        "memory:secret",
        "sqlite:secret.db",
        "sqlite:///",
        "postgresql://me:secret@[x",
        "postgresql://me:secret@h/x?secret=1",
        "postgresql://me:pass@secret@h/x",
        "postgresql://me:secret\ud800@h/x",
    ],
)
def test_invalid_url_raises_without_password(url: str) -> None:
    """The error for an unsupported or invalid URL shows no password."""
    with pytest.raises(ConfigurationError, match="ledger: ") as caught:
        open_ledger(url)
    assert "secret" not in f"{caught.value} {caught.value.__cause__}"


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("schema=characters", r"options=-csearch_path%3DNAME, or PostgresLedger\(url, schema=NAME\)"),
        ("currentSchema=characters", r"options=-csearch_path"),
        ("ssl_mode=require", r"\?sslmode=require"),
        ("pgbouncer=true", "Remove it"),
    ],
)
def test_options_of_other_libraries(option: str, hint: str) -> None:
    """The error for an option of another library's URL names it, and what takes its place."""
    name = option.partition("=")[0]
    with pytest.raises(ConfigurationError, match=rf"ledger: a postgresql:// URL has no option '{name}'\. .*{hint}"):
        open_ledger(f"postgresql://me:secret@h/x?{option}")


def test_missing_extra_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error for a PostgreSQL URL without psycopg contains the command that installs it."""
    monkeypatch.delitem(sys.modules, "sora_chars.ledger.stores.postgres")
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigurationError, match=r'pip install "sora-chars\[postgres\]"'):
        open_ledger("postgresql://db/x")


def test_missing_module_names_the_alternatives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Python was built without SQLite, the error names the other kinds of ledgers."""
    for name in ("sqlite", "process_lock", "sqlite_thread"):
        monkeypatch.delitem(sys.modules, f"sora_chars.ledger.stores.{name}")
    monkeypatch.setitem(sys.modules, "sqlite3", None)
    with pytest.raises(ConfigurationError, match=r"sqlite3.* Use memory: or postgresql://\.\.\. instead"):
        open_ledger("characters.db")
    assert isinstance(open_ledger("memory:")._store, MemoryStore)


def test_repr_hides_the_password() -> None:
    """The repr of a ledger and of its store contains no password."""
    ledger = open_ledger("postgresql://me:secret@db/x")
    assert "secret" not in f"{ledger!r} {ledger._store!r}"


async def test_opens_after_a_failed_opening(tmp_path: Path) -> None:
    """A ledger that could not be opened can be opened once the fault is gone."""
    ledger = open_ledger(tmp_path / "later" / "characters.db")
    with pytest.raises(LedgerError, match="could not be used"):
        await ledger.open()
    (tmp_path / "later").mkdir()
    async with ledger:
        assert await ledger.get("k-1") is None


def test_the_default_event_loop_of_windows() -> None:
    """Psycopg does not work in it, and the error names the one that works."""

    class ProactorEventLoop(asyncio.SelectorEventLoop):
        pass

    with (
        asyncio.Runner(loop_factory=ProactorEventLoop) as runner,
        pytest.raises(LedgerError, match="SelectorEventLoop"),
    ):
        runner.run(open_ledger("postgresql://db/x").open())
