"""Clips of local videos on the command line: cut, uploaded to another provider, and sent as URLs."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("av")

from tests.support.videos import Video

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    from sora_chars.testing import Emulator

CREATE = ("create", "--provider", "kling", "--name", "Rex", "--prompt", "A friendly dog")


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Eight seconds at 10 frames a second, upright."""
    return Video(rate=10, times=[number / 10 for number in range(80)], rotation=-90).write(tmp_path / "phone.mov")


def test_create(
    cli: Callable[..., subprocess.CompletedProcess[str]],
    cli_environment: dict[str, str],
    emulator: Emulator,
    video: Path,
) -> None:
    """One command cuts a part of a local video, uploads it and makes a character of it."""
    cli_environment["KIE_UPLOAD_URL"] = emulator.url
    options = ("--base-url", emulator.url, "--video", str(video), "--clip", "2,5", "--fit", "crop", "--hosting", "kie")
    done = cli(*CREATE, *options)
    assert done.returncode == 0, done.stderr
    assert "cutting phone.mov: 100 % of 30 frames" in done.stderr
    assert "uploading" in done.stderr
    (task,) = emulator.kling.tasks.values()
    assert re.search(rf'"video_url": "{re.escape(emulator.url)}/\S+\.mp4"', json.dumps(task.body))


def test_batch(
    cli: Callable[..., subprocess.CompletedProcess[str]],
    cli_environment: dict[str, str],
    emulator: Emulator,
    video: Path,
    tmp_path: Path,
) -> None:
    """Rows of a batch are cut and uploaded too; two rows of the same clip share both."""
    cli_environment["WAVESPEED_API_KEY"] = "secret"
    cli_environment["WAVESPEED_BASE_URL"] = emulator.url
    row = {"video": str(video), "clip": "2,5", "name": "Rex", "prompt": "A friendly dog"}
    (rows := tmp_path / "rows.jsonl").write_text("".join(json.dumps(row | {"key": key}) + "\n" for key in "ab"))
    out = tmp_path / "out.jsonl"
    options = ("--provider", "kling", "--base-url", emulator.url, "--hosting", "wavespeed", "--concurrency", "1")
    done = cli("batch", str(rows), "--output", str(out), *options)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["status"] for line in out.read_text().splitlines()] == ["succeeded"] * 2
    assert sum("upload" in request.path for request in emulator.requests) == 1


@pytest.mark.parametrize("name", ["video", "rows"])
def test_errors_name_the_option(
    cli: Callable[..., subprocess.CompletedProcess[str]], emulator: Emulator, video: Path, tmp_path: Path, name: str
) -> None:
    """Without --hosting, the error names the option and not the argument of Python."""
    row = {"video": str(video), "clip": "2,5", "name": "Rex", "prompt": "A friendly dog"}
    (rows := tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    if name == "video":
        done = cli(*CREATE, "--base-url", emulator.url, "--video", str(video))
    else:
        out = str(tmp_path / "out.jsonl")
        done = cli("batch", str(rows), "--output", out, "--provider", "kling", "--base-url", emulator.url)
    assert done.returncode == 2
    assert "--hosting NAME" in done.stderr
    assert "hosting=" not in done.stderr
    assert not emulator.requests


def test_the_recording_of_a_voice_is_uploaded(
    cli: Callable[..., subprocess.CompletedProcess[str]],
    cli_environment: dict[str, str],
    emulator: Emulator,
    tmp_path: Path,
) -> None:
    """`voice` with `--hosting` uploads a local recording, and sends its URL."""
    cli_environment["KIE_UPLOAD_URL"] = emulator.url
    recording = tmp_path / "rex.mp3"
    recording.write_bytes(b"ID3" + bytes(2000))
    done = cli("voice", str(recording), "--name", "rex", "--base-url", emulator.url, "--hosting", "kie")
    assert done.returncode == 0, done.stderr
    assert emulator.counts.voices == 1
