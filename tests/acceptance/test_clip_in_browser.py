"""A clip that was cut plays in Chromium, served over loopback. Skipped where no Chromium is installed."""

from __future__ import annotations

import asyncio
import functools
import os
import queue
import shutil
import signal
import subprocess
import threading
from http.server import ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("av")

from sora_chars import media
from sora_chars.providers.kling_codec import VIDEO as KLING
from tests.support.quiet_server import QuietHandler
from tests.support.videos import phone_video

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PAGE = """<!doctype html><video id="v" muted src="clip.mp4"></video><script>
const video = document.getElementById("v");
const send = text => fetch("result", {method: "POST", body: text});
video.onended = () => send(`ended ${video.duration.toFixed(1)} s ${video.videoWidth}x${video.videoHeight}`);
video.onerror = () => send(`error ${video.error.message}`);
video.play().catch(error => send(`refused ${error}`));
</script>"""


class _Handler(QuietHandler):
    results: queue.Queue[str] = queue.Queue()

    def do_POST(self) -> None:  # noqa: N802 # the name of the base class
        """Take the result that the page sends."""
        self.results.put(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.send_response(204)
        self.end_headers()


@pytest.fixture
def served(tmp_path: Path) -> Generator[str]:
    """The URL at which the test's folder is served."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.timeout(300)
async def test_plays_in_chromium(served: str, tmp_path: Path) -> None:
    """A clip of a phone's video is played from its start to its end, upright and in the provider's size."""
    source = phone_video(tmp_path / "phone.mov")
    await media.cut(source, tmp_path / "clip.mp4", clip="1,4.1", rule=KLING)
    (tmp_path / "page.html").write_text(PAGE)
    command = [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--no-proxy-server",
        "--autoplay-policy=no-user-gesture-required",
        f"--user-data-dir={tmp_path / 'profile'}",
        f"{served}/page.html",
    ]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=quiet, stderr=quiet, start_new_session=True) as browser:  # noqa: ASYNC220 # the test waits for it
        try:
            result = await asyncio.to_thread(_Handler.results.get, timeout=120)
        finally:
            os.killpg(browser.pid, signal.SIGKILL)
    assert result == "ended 3.1 s 1080x1920"
