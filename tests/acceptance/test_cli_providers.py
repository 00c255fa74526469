"""Characters of Kling, its gateways, Vidu and Seedance from the command line, as real processes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.images import jpeg, png

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    from sora_chars.testing import Emulator

    Cli = Callable[..., subprocess.CompletedProcess[str]]

TEXTS = ("--name", "Rex", "--prompt", "A friendly dog", "--poll", "0.05", "--json")


@pytest.fixture
def create(cli: Cli, emulator: Emulator) -> Callable[..., dict[str, Any]]:
    """A function that runs `create` at Kling and returns what it printed."""
    emulator.task_store.durations = (0.05, 0.1)

    def run(*arguments: str, status: int = 0) -> dict[str, Any]:
        ended = cli("create", "--provider", "kling", "--base-url", emulator.url, *arguments, *TEXTS)
        assert ended.returncode == status, (ended.stdout, ended.stderr)
        found: dict[str, Any] = json.loads(ended.stdout)
        return found

    return run


def test_video(create: Callable[..., dict[str, Any]], emulator: Emulator) -> None:
    """A clip becomes a character, under the key of the command, and once."""
    made = create("--video", "https://clips.example/rex.mp4", "--key", "order-17")
    (task,) = emulator.kling.tasks.values()
    assert made["character"]["id"] == str(task.element_id)
    assert (made["task_id"], task.external_id) == (task.task_id, "order-17")
    assert create("--video", "https://clips.example/rex.mp4", "--key", "order-17") == made
    assert emulator.counts.elements == 1


def test_images(create: Callable[..., dict[str, Any]], emulator: Emulator, tmp_path: Path) -> None:
    """Several --image options are the images in their order; a missing one is refused before anything is sent."""
    (tmp_path / "front.png").write_bytes(png(300, 300))
    (tmp_path / "side.jpg").write_bytes(jpeg(300, 300))
    images = ("--image", str(tmp_path / "front.png"), "--image", str(tmp_path / "side.jpg"), "--voice", "v1")
    assert create(*images)["character"]["name"] == "Rex"
    error = create(*images, "--image", str(tmp_path / "none.png"), status=2)["error"]
    assert "images[2] must be an http(s) URL or an existing file" in error["message"]
    assert emulator.counts.elements == 1


@pytest.mark.parametrize("name", ["wavespeed", "evolink"])
def test_gateways(cli: Cli, emulator: Emulator, name: str) -> None:
    """A clip becomes a character at a gateway, and once under one key; the credit is shown."""
    emulator.task_store.durations = (0.05, 0.1)
    options = ("--provider", name, "--base-url", emulator.url)
    video = ("--video", "https://clips.example/rex.mp4", "--key", "order-17")
    made = [json.loads(cli("create", *options, *video, *TEXTS).stdout)["character"]["id"] for _ in range(2)]
    (task,) = (emulator.wavespeed if name == "wavespeed" else emulator.evolink).tasks.values()
    assert made == [str(task.element_id)] * 2
    assert json.loads(cli("credit", *options, "--json").stdout)["credit"] == 1000.0


def test_local_file_at_a_gateway(cli: Cli, emulator: Emulator, tmp_path: Path) -> None:
    """Local images are uploaded to Wavespeed, and refused by Evolink before anything is sent."""
    (tmp_path / "front.png").write_bytes(png(300, 300))
    (tmp_path / "side.jpg").write_bytes(jpeg(300, 300))
    images = ("--image", str(tmp_path / "front.png"), "--image", str(tmp_path / "side.jpg"))
    ended = {
        name: cli("create", "--provider", name, "--base-url", emulator.url, *images, *TEXTS)
        for name in ("wavespeed", "evolink")
    }
    assert [one.returncode for one in ended.values()] == [0, 2]
    assert emulator.counts.uploads == 2
    assert "images[0] must be a URL" in json.loads(ended["evolink"].stdout)["error"]["message"]


def test_vidu(cli: Cli, emulator: Emulator, tmp_path: Path) -> None:
    """A character of Vidu is printed with its mention."""
    (tmp_path / "front.png").write_bytes(png(300, 300))
    options = ("--image", str(tmp_path / "front.png"), "--name", "Rex", "--json")
    ended = cli("create", "--provider", "vidu", "--base-url", emulator.url, *options)
    (subject,) = emulator.subjects.values()
    assert ended.returncode == 0, (ended.stdout, ended.stderr)
    character = json.loads(ended.stdout)["character"]
    assert (character["id"], character["mention"]) == (subject["id"], f"@{subject['name']}")


def test_seedance(cli: Cli, emulator: Emulator, tmp_path: Path) -> None:
    """A local image becomes an asset, whose id is printed and stands in no debug message."""
    emulator.task_store.durations = (0.05, 0.1)
    (tmp_path / "front.png").write_bytes(png(300, 300))
    options = ("--image", str(tmp_path / "front.png"), "--poll", "0.05", "--json", "-v")
    ended = cli("create", "--provider", "seedance", "--base-url", emulator.url, *options)
    assert ended.returncode == 0, (ended.stdout, ended.stderr)
    (asset,) = emulator.seedance.assets.values()
    assert json.loads(ended.stdout)["character"]["id"] == asset.asset_id
    assert asset.asset_id not in ended.stderr
    assert "asset-***" in ended.stderr
