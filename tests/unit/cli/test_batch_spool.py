"""The spool of a batch: each key once, in order, on disk; and the problems of all rows."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

import pytest

from sora_chars import Kie, Kkiai
from sora_chars.cli.batch.reader import Problem, Row
from sora_chars.cli.batch.spool import Spool, fill, open_spool
from sora_chars.errors import ConfigurationError
from sora_chars.models import CharacterRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

PROVIDERS = {"kie": Kie("a-key"), "kkiai": Kkiai("a-key")}


@pytest.fixture
def spool() -> Iterator[Spool]:
    """Give an empty spool."""
    with open_spool() as spool:
        yield spool


def row(line: int, key: str, *, provider: str = "kie", prompt: str = "A dog", clip: str = "1,3") -> Row:
    """Return a valid row."""
    task = f"task_{'0' * 26}" if provider == "kkiai" else "0" * 32
    prompts = {} if provider == "kkiai" else {"prompt": prompt}
    return Row(line, provider, CharacterRequest(from_task=task, clip=clip, key=key, **prompts))


def test_rows_keep_their_order(spool: Spool) -> None:
    """Rows are read back unchanged and in order."""
    rows = [row(n, f"key {9 - n}", provider="kkiai" if n % 2 else "kie") for n in range(1, 9)]
    problems = fill(spool, rows, PROVIDERS.__getitem__)
    assert (problems.count, problems.lines, spool.count) == (0, [], 8)
    for before, columns in zip(rows, spool, strict=True):
        assert columns.pop("provider") == before.provider
        assert CharacterRequest(**columns) == before.request


def test_repeated_row_is_left_out(spool: Spool) -> None:
    """Two rows with the same key and the same content are one request."""
    assert fill(spool, [row(1, "a"), row(2, "b"), row(5, "a")], PROVIDERS.__getitem__).count == 0
    assert ([kept["key"] for kept in spool], spool.count, spool.repeated) == (["a", "b"], 2, 1)


@pytest.mark.parametrize("other", [row(5, "a", prompt="A cat"), row(5, "a", provider="kkiai")])
def test_key_conflict_names_both_lines(spool: Spool, other: Row) -> None:
    """A key that two different rows use is a problem."""
    problems = fill(spool, [row(2, "a"), other], PROVIDERS.__getitem__)
    assert problems.lines == ["line 5: key a is used for a different request in line 2"]


def test_each_provider_checks_its_rows(spool: Spool) -> None:
    """A row is checked against the limits of its own provider, and invalid rows are not kept."""
    rows = [row(3, "a", clip="1,9"), row(4, "b", clip="1,5", provider="kkiai"), row(5, "c", clip="1,5")]
    lines = fill(spool, rows, PROVIDERS.__getitem__).lines
    assert [line.partition(": clip")[0] for line in lines] == ["line 3", "line 4"]
    assert [kept["key"] for kept in spool] == ["c"]


@pytest.mark.parametrize(("count", "last"), [(20, "line 20: x; y"), (21, "and 1 more"), (5000, "and 4980 more")])
def test_only_the_first_problems_are_kept(spool: Spool, count: int, last: str) -> None:
    """Twenty problems are kept; the others are counted."""
    problems = fill(spool, (Problem(n, ("x", "y")) for n in range(1, count + 1)), PROVIDERS.__getitem__)
    assert (problems.count, problems.lines[-1], len(problems.first)) == (count, last, 20)


def test_disk_is_full() -> None:
    """A full temporary file is a configuration error."""

    def overfill() -> None:
        with open_spool() as spool:
            spool._database.execute("PRAGMA max_page_count = 4")
            fill(spool, (row(n, f"key {n}") for n in range(1000)), PROVIDERS.__getitem__)

    with pytest.raises(ConfigurationError, match=r"temporary file: .*full"):
        overfill()


def test_file_is_deleted() -> None:
    """The connection is closed afterwards, which deletes the temporary file."""
    with open_spool() as spool:
        pass
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        list(spool)
