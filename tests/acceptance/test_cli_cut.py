"""`sora-chars cut`: a clip that a provider takes, or one clear error and no file."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from functools import partial
from http.server import ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("av")

from sora_chars.cli.commands.cut import RULES
from sora_chars.cli.options import PROVIDERS
from sora_chars.providers.kkiai import GATEWAYS
from sora_chars.providers.kling_codec import ACCEPTS
from sora_chars.providers.local_files import file_problems
from tests.support.quiet_server import QuietHandler
from tests.support.videos import Video, numbers

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Eight seconds at 10 frames a second, upright."""
    times = [number / 10 for number in range(80)]
    return Video(size=(160, 90), rate=10, times=times, rotation=-90, click=3.0).write(tmp_path / "phone.mov")


def test_cut(cli: Callable[..., subprocess.CompletedProcess[str]], video: Path, tmp_path: Path) -> None:
    """The clip has the frames from start to end, and passes the checks of its provider."""
    output = tmp_path / "clip.mp4"
    done = cli("cut", str(video), "2,5", "--for", "kling", "-o", str(output))
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, f"file: {output}")
    assert "cutting phone.mov: 100 % of 30 frames" in done.stderr.replace("(", "").replace("  ", " ")
    assert numbers(output) == list(range(20, 50))
    assert ACCEPTS.video
    assert file_problems("video", output, ACCEPTS.video) == []


def test_rules_of_all_providers() -> None:
    """Every provider that takes whole videos has its rule here."""
    assert set(RULES) == set(PROVIDERS) - set(GATEWAYS)


def test_json(cli: Callable[..., subprocess.CompletedProcess[str]], video: Path, tmp_path: Path) -> None:
    """With --json, stdout has one object and stderr is empty."""
    done = cli("cut", str(video), "1,2", "--for", "kie", "--fit", "crop", "-o", str(tmp_path / "clip.mp4"), "--json")
    facts = json.loads(done.stdout)
    assert (done.returncode, done.stderr, facts["provider"]) == (0, "", "kie")
    assert facts["bytes"] == (tmp_path / "clip.mp4").stat().st_size
    assert facts["seconds"] == pytest.approx(1.0, abs=0.05)


def test_existing_file(cli: Callable[..., subprocess.CompletedProcess[str]], video: Path, tmp_path: Path) -> None:
    """An existing file is replaced only with --force."""
    output = tmp_path / "clip.mp4"
    output.write_text("mine")
    arguments = ("cut", str(video), "1,2", "--for", "vidu", "-o", str(output))
    done = cli(*arguments)
    assert (done.returncode, output.read_text()) == (2, "mine")
    assert "exists." in done.stderr
    assert "Add --force to replace it." in done.stderr
    assert cli(*arguments, "--force").returncode == 0
    assert len(numbers(output)) == 10


@pytest.mark.parametrize(
    ("clip", "name", "message"),
    [
        ("1,2", "clip.mp4", "The video was not cut: clip must span 3 to 8 seconds, got 1 ('1,2')."),
        ("4,9", "clip.mp4", "clip must end within the video's 8.00 seconds, got '4,9'"),
        ("5", "clip.mp4", 'clip must be "start,end" in seconds'),
        ("1,5", "none/clip.mp4", "clip.mp4 cannot be written: No such file or directory."),
    ],
)
def test_errors(  # noqa: PLR0917 # pytest passes them by name
    terminal: Callable[..., subprocess.CompletedProcess[str]],
    video: Path,
    tmp_path: Path,
    clip: str,
    name: str,
    message: str,
) -> None:
    """An error is one line on a terminal of 80 columns, with exit status 2, and no file is left."""
    done = terminal("cut", str(video), clip, "--for", "kling", "-o", str(tmp_path / name))
    assert done.returncode == 2
    assert message in done.stdout.replace("\r\n", "")
    assert "Traceback" not in done.stdout
    assert os.listdir(tmp_path) == ["phone.mov"]  # noqa: PTH208 # names


def test_a_file_that_is_no_video(cli: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    """A missing file and one that is no video are named."""
    (text := tmp_path / "notes.mp4").write_text("no video")
    for path in (text, tmp_path / "missing.mp4"):
        done = cli("cut", str(path), "1,5", "--for", "kling", "-o", str(tmp_path / "clip.mp4"))
        assert done.returncode == 2
        assert f"got {path}" in done.stderr


def test_urls(cli: Callable[..., subprocess.CompletedProcess[str]], video: Path, tmp_path: Path) -> None:
    """The video of a URL is downloaded first; http and addresses that are not public need --allow-any-url."""
    serve = partial(QuietHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/{video.name}"
        output = tmp_path / "clip.mp4"
        arguments = ("cut", url, "2,5", "--for", "kling", "-o", str(output))
        refused = cli(*arguments)
        done = cli(*arguments, "--allow-any-url")
        server.shutdown()
        thread.join()
    assert (refused.returncode, "not https" in refused.stderr) == (2, True)
    assert done.returncode == 0, done.stderr
    assert numbers(output) == list(range(20, 50))


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_interrupted(start_cli: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    """Ctrl-C ends the cut with exit status 130 and leaves no file."""
    times = [number / 25 for number in range(200)]
    video = Video(size=(640, 360), times=times, noise=True).write(tmp_path / "noise.mp4")
    process = start_cli("cut", str(video), "0,8", "--for", "kling", "-o", str(tmp_path / "clip.mp4"))
    assert process.stderr
    assert "0 %" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, "Interrupted" in err) == (130, True)
    assert os.listdir(tmp_path) == ["noise.mp4"]  # noqa: PTH208 # names


def test_without_the_extra(
    cli: Callable[..., subprocess.CompletedProcess[str]],
    cli_environment: dict[str, str],
    video: Path,
    tmp_path: Path,
) -> None:
    """Without PyAV, the error names the command that installs it."""
    (hidden := tmp_path / "hidden").mkdir()
    hook = "import importlib.util as u; f = u.find_spec; u.find_spec = lambda n, *a: None if n == 'av' else f(n, *a)\n"
    (hidden / "sitecustomize.py").write_text(hook)
    cli_environment["PYTHONPATH"] = str(hidden)
    done = cli("cut", str(video), "1,5", "--for", "kling", "-o", str(tmp_path / "clip.mp4"))
    assert done.returncode == 2
    assert "Cutting a video needs PyAV, which is not installed." in done.stderr
    assert "pip install 'sora-chars[media]'" in done.stderr
