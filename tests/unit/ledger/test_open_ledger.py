from __future__ import annotations

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
def test_a_file_is_named_by_url_or_path(url: str | Path, path: Path) -> None:
    """A URL with three slashes and a plain path name an SQLite file; a `Path` is one whatever it holds."""
    store = open_ledger(url)._store
    assert isinstance(store, SqliteStore)
    assert store._path == path.absolute()


def test_other_kinds_have_their_scheme() -> None:
    """`memory:` and `postgresql:` give the other kinds."""
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
    ],
)
def test_a_wrong_url_is_refused_without_showing_it(url: str) -> None:
    """A URL of no known kind, or one that cannot be read, is refused, and no password in it is shown."""
    with pytest.raises(ConfigurationError, match="ledger: ") as caught:
        open_ledger(url)
    assert "secret" not in f"{caught.value} {caught.value.__cause__}"


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """A PostgreSQL URL without psycopg says which command installs it."""
    monkeypatch.delitem(sys.modules, "sora_chars.ledger.stores.postgres")
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigurationError, match=r'pip install "sora-chars\[postgres\]"'):
        open_ledger("postgresql://db/x")


@pytest.mark.parametrize("missing", ["fcntl", "sqlite3"])
def test_without_locks_or_sqlite_it_says_what_to_use(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path on a system that lacks a module which SQLite ledgers need, such as Windows, says what serves there."""
    for name in ("sqlite", "process_lock", "sqlite_thread"):
        monkeypatch.delitem(sys.modules, f"sora_chars.ledger.stores.{name}")
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigurationError, match=rf"{missing}.* Use memory: or postgresql://\.\.\. instead"):
        open_ledger("characters.db")
    assert isinstance(open_ledger("memory:")._store, MemoryStore)


def test_a_store_shows_no_password() -> None:
    """Neither a ledger nor its store shows the URL."""
    ledger = open_ledger("postgresql://me:secret@db/x")
    assert "secret" not in f"{ledger!r} {ledger._store!r}"


async def test_a_failed_opening_leaves_it_closed(tmp_path: Path) -> None:
    """A ledger that could not be opened can be opened once the fault is over."""
    ledger = open_ledger(tmp_path / "later" / "characters.db")
    with pytest.raises(LedgerError, match="could not be used"):
        await ledger.open()
    (tmp_path / "later").mkdir()
    async with ledger:
        assert await ledger.get("k-1") is None
