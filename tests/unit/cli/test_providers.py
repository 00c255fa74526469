"""`sora-chars providers`: what each provider takes, and whether its key is set."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from sora_chars.cli import app
from sora_chars.cli.commands.cut import RULES
from sora_chars.cli.options import PROVIDERS
from sora_chars.providers.kling_codec import ACCEPTS

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """A function that runs the command and returns what it printed."""

    def run_command(*arguments: str) -> str:
        assert app.main(["providers", *arguments]) == 0
        return capsys.readouterr().out

    return run_command


def test_lists_every_provider(run: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each provider has a line with its variable and whether it is set; no line holds a key."""
    monkeypatch.setenv("VIDU_API_KEY", "secret-key")
    lines = [line.split("\t") for line in run().splitlines()]
    assert [line[0] for line in lines] == list(PROVIDERS)
    assert {line[0]: line[2] for line in lines if line[2] == "yes"} == {"vidu": "yes"}
    assert "secret-key" not in run("--json")


def test_shows_the_limits_of_one(run: Callable[..., str]) -> None:
    """The limits are those that the checks use."""
    shown: dict[str, Any] = json.loads(run("kling", "--json"))
    assert shown["accepts"] == {name: rule.replace("by hosting=", "by --hosting NAME") for name, rule in ACCEPTS.rows()}
    assert shown["variables"] == ["KLING_API_KEY", "KLING_ACCESS_KEY+KLING_SECRET_KEY"]
    assert "3 to 8 s" in run("kling")
    assert "1 to 3 s" in run("kkiai")
    assert "URLs or local files" in run("wavespeed")
    assert "EVOLINK_API_KEY" in run("evolink")


def test_videos_are_cut_for_gateways() -> None:
    """`cut --for` knows Kling's gateways, with Kling's limits."""
    assert RULES["wavespeed"].seconds == RULES["evolink"].seconds == RULES["kling"].seconds == (3, 8)


@pytest.mark.parametrize(
    ("variables", "is_set"),
    [
        ((), False),
        (("KLING_API_KEY",), True),
        (("KLING_ACCESS_KEY",), False),
        (("KLING_ACCESS_KEY", "KLING_SECRET_KEY"), True),
    ],
)
def test_pairs_of_keys(
    run: Callable[..., str], variables: tuple[str, ...], *, is_set: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pair of keys is set when both are."""
    for name in variables:
        monkeypatch.setenv(name, "key")
    assert json.loads(run("kling", "--json"))["key_set"] is is_set
