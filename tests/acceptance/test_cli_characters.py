"""`sora-chars characters`: lists, details and deletion, as real processes."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from sora_chars.testing import Emulator

    Cli = Callable[..., subprocess.CompletedProcess[str]]

REX = ("--video", "https://clips.example/rex.mp4", "--name", "Rex", "--prompt", "A friendly dog", "--poll", "0.05")


@pytest.fixture
def create(cli: Cli, emulator: Emulator) -> Callable[[str], dict[str, Any]]:
    """Return a function that creates a character at Kling under a key."""

    def run(key: str) -> dict[str, Any]:
        made = cli("create", "--provider", "kling", "--base-url", emulator.url, *REX, "--key", key, "--json")
        assert made.returncode == 0, made.stdout + made.stderr
        character: dict[str, Any] = json.loads(made.stdout)["character"]
        return character

    return run


def test_removes_characters(cli: Cli, emulator: Emulator, create: Callable[[str], dict[str, Any]]) -> None:
    """Characters are deleted by key and by id, once; their keys are not sent again, and the list omits them."""
    create("rex")
    second = create("bello")
    at = ("--base-url", emulator.url)

    refused = cli("characters", "rm", "rex", *at)
    assert (refused.returncode, emulator.kling.deleted_ids) == (2, [])
    assert "add --yes" in refused.stderr
    gone = cli("characters", "rm", "rex", second["id"], "--yes", "--json", *at)
    assert gone.returncode == 0, gone.stdout + gone.stderr
    deleted = [json.loads(line)["deleted"] for line in gone.stdout.splitlines()]
    assert [(one["provider"], one["key"]) for one in deleted] == [("kling", "rex"), ("kling", "bello")]
    assert sorted(emulator.kling.deleted_ids) == sorted(one["id"] for one in deleted)
    assert json.loads(cli("characters", "--json").stdout) == {"characters": []}
    assert "already as rex" in cli("characters", "rm", "rex").stdout

    again = cli("create", "--provider", "kling", *at, *REX, "--key", "rex")
    waited = cli("wait", "--provider", "kling", *at, "rex")
    assert {again.returncode, waited.returncode} == {2}
    for ended in (again, waited):
        assert "The character of key rex was deleted at kling. Nothing was sent." in ended.stderr


def test_nothing_is_removed_if_a_name_is_wrong(
    cli: Cli, emulator: Emulator, create: Callable[[str], dict[str, Any]]
) -> None:
    """All names are checked first, and so are the routes of their providers."""
    create("rex")
    at = ("--base-url", emulator.url)
    wrong = cli("characters", "rm", "rex", "nosuch", "--yes", *at)
    assert (wrong.returncode, "recorded character, its key or its id, got 'nosuch'" in wrong.stderr) == (2, True)
    kkiai = ("--provider", "kkiai", *at, "--video", "https://example.com/dog.mp4", "--clip", "1,3", "--key", "dog")
    assert cli("create", *kkiai).returncode == 0
    routeless = cli("characters", "rm", "rex", "dog", "--yes", *at)
    assert routeless.returncode == 2
    assert "kkiai has no route that deletes characters. Nothing was deleted." in routeless.stderr
    assert emulator.kling.deleted_ids == []


@pytest.mark.parametrize("answer", ["y\n", "\n"])
def test_asks_on_a_terminal(
    script: str,
    cli_environment: dict[str, str],
    emulator: Emulator,
    create: Callable[[str], dict[str, Any]],
    answer: str,
) -> None:
    """On a terminal the command shows what it would delete, and does it only after a yes."""
    made = create("rex")
    controller, end = pty.openpty()
    os.write(controller, answer.encode())
    command = [script, "characters", "rm", "rex", "--base-url", emulator.url]
    ended = subprocess.run(
        command, check=False, env=cli_environment, stdin=end, capture_output=True, text=True, timeout=30
    )
    os.close(end)
    os.close(controller)
    assert ended.returncode == 0, ended.stderr
    assert f"Delete 1 character for good: {made['id']} at kling? [y/N]" in ended.stderr
    is_yes = answer == "y\n"
    assert ("Nothing was deleted." in ended.stderr) is not is_yes
    assert len(emulator.kling.deleted_ids) == is_yes


def test_details_of_one_character(cli: Cli, create: Callable[[str], dict[str, Any]]) -> None:
    """The key of one character shows its details; the help names both commands."""
    made = create("rex")
    create("rex-2")
    shown = cli("characters", made["id"])
    assert f"id: {made['id']}" in shown.stdout.splitlines()
    assert "key: rex" in shown.stdout.splitlines()
    usage = {"prompt": "<<<element_1>>>", "element_list": [{"element_id": made["id"]}]}
    (shown_usage,) = [line for line in shown.stdout.splitlines() if line.startswith("usage: ")]
    assert json.loads(shown_usage.removeprefix("usage: ")) == usage
    (saved,) = json.loads(cli("characters", made["id"], "--json").stdout)["characters"]
    assert made["usage"] == saved["character"]["usage"] == usage
    listed = cli("characters", "ls", "rex")
    assert len(listed.stdout.splitlines()) == 2
    text = cli("characters", "--help").stdout
    assert all(command in text for command in ("ls", "rm"))
