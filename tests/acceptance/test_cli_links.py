"""Signed links on the command line: no output shows their user, query or fragment, and only an export holds them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from sora_chars.testing import Emulator

    Cli = Callable[..., subprocess.CompletedProcess[str]]

SECRETS = ("CANARY-password", "CANARY-signature", "CANARY-fragment")
LINK = "https://user:{}@videos.invalid/dog.mp4?X-Amz-Signature={}#{}".format(*SECRETS)
MASKED = "https://***@videos.invalid/dog.mp4?***"
CREATE = ("create", "--video", LINK, "--poll", "0.05", "--key", "k")


def shown(ended: subprocess.CompletedProcess[str]) -> str:
    """Return all output of a command, after a check that it shows no secret part of the link."""
    text = ended.stdout + ended.stderr
    assert not [secret for secret in SECRETS if secret in text]
    return text


@pytest.mark.parametrize("json_option", [(), ("--json",)], ids=["text", "json"])
def test_ledger_commands_mask_links(cli: Cli, emulator: Emulator, json_option: tuple[str, ...]) -> None:
    """A rejected request stays whole in the ledger, for another attempt, and is shown without its secrets."""
    emulator.fault("status", on="create", code=400, message=f"{LINK} cannot be read")
    failed = cli(*CREATE, "--base-url", emulator.url, "-v", *json_option)
    assert failed.returncode == 3
    assert MASKED in shown(failed)
    for command in (("show", "k"), ("ls",)):
        assert "videos.invalid/dog.mp4" in shown(cli("ledger", *command, *json_option))
    assert json.loads(cli("ledger", "export").stdout)["request"]["video"] == LINK


@pytest.mark.parametrize("json_option", [(), ("--json",)], ids=["text", "json"])
def test_characters_mask_links(cli: Cli, emulator: Emulator, json_option: tuple[str, ...]) -> None:
    """A character shows which link it was made from, without its secrets, and so does an export."""
    assert MASKED in shown(cli(*CREATE, "--base-url", emulator.url, "-v", *json_option))
    for command in (("characters",), ("ledger", "show", "k"), ("ledger", "ls"), ("ledger", "export")):
        options = () if command[-1] == "export" else json_option
        assert "videos.invalid/dog.mp4?***" in shown(cli(*command, *options))


@pytest.mark.parametrize("json_option", [(), ("--json",)], ids=["text", "json"])
@pytest.mark.parametrize(
    "arguments", [("create", LINK), ("create", "--video", "https://user:CANARY-password@a b", "--base-url", LINK)]
)
def test_usage_errors_mask_links(cli: Cli, arguments: tuple[str, ...], json_option: tuple[str, ...]) -> None:
    """A link in the wrong place is repeated without its secrets."""
    ended = cli(*arguments, *json_option)
    assert ended.returncode == 2
    assert "https://***@" in shown(ended)


def test_key_conflict_masks_links(cli: Cli, emulator: Emulator) -> None:
    """A key that was used with another signature is rejected without showing either."""
    assert cli(*CREATE, "--base-url", emulator.url).returncode == 0
    other = cli("create", "--video", f"{LINK}2", "--key", "k", "--base-url", emulator.url)
    assert other.returncode == 2
    assert "already belongs to another request" in shown(other)
