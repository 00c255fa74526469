"""The file that a batch writes: whole lines, also after a crash."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from sora_chars.cli.batch_output import open_output
from sora_chars.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

ROW = {"key": "döner", "status": "succeeded", "credits": 0.1}
LINE = json.dumps(ROW).encode() + b"\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"", b""),
        (LINE, LINE),
        (LINE[:-1], LINE),
        (LINE + LINE[:-2], LINE),
        (LINE + LINE[:4], LINE),
        (LINE[:20], b""),
        (b"mine", b"mine\n"),
        (b'{"key": 1}', b'{"key": 1}\n'),
        (b"x" * (3 << 20), b"x" * (3 << 20) + b"\n"),
        (b"x\n" * (1 << 20) + LINE[:20], b"x\n" * (1 << 20)),
    ],
)
def test_a_row_begins_a_line(tmp_path: Path, before: bytes, after: bytes) -> None:
    """What a crash left of a row is cut off; any other text is kept, and its line ended."""
    path = tmp_path / "out.jsonl"
    path.write_bytes(before)
    with open_output(str(path)) as write:
        write(ROW)
        assert path.read_bytes() == after + LINE
        write(ROW)
    assert path.read_bytes() == after + LINE + LINE


def test_the_file_is_made(tmp_path: Path) -> None:
    """It need not exist."""
    with open_output(str(tmp_path / "out.jsonl")) as write:
        write(ROW)
    assert (tmp_path / "out.jsonl").read_bytes() == LINE


@pytest.mark.parametrize("name", [".", "nowhere/out.jsonl", ""])
def test_a_file_that_cannot_be_opened_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Before anything is sent."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match=f"--output {name}: "), open_output(name):
        pass


def test_a_full_disk_is_told() -> None:
    """As it happens, with what to do about it."""
    with open_output("/dev/full") as write, pytest.raises(ConfigurationError, match="No space left") as caught:
        write(ROW)
    assert "Run the same command again" in caught.value.hint


def test_a_dash_is_stdout(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """Rows come out at once, so that another program may read along."""
    with open_output("-") as write:
        write(ROW)
        assert capfdbinary.readouterr().out == LINE
