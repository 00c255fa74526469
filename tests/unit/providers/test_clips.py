"""Clips of videos for providers that take whole videos: what is refused, and what it names as the way out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sora_chars.models import Clip, MediaRule
from sora_chars.providers.clips import clip_problems

if TYPE_CHECKING:
    from sora_chars.models.accepts import Local

WHOLE = "clip must be omitted, since this provider takes a whole video of 3 to 8 seconds; cut the video"


@pytest.mark.parametrize(
    ("local", "is_installed", "problems"),
    [
        ("no", True, [WHOLE]),
        ("no", False, [WHOLE]),
        ("hosting", True, [f"{WHOLE}, or pass hosting= to have it cut"]),
        ("hosting", False, [f"{WHOLE}, or pass hosting= to have it cut"]),
        ("upload", True, []),
        ("inline", True, []),
        ("upload", False, [f"{WHOLE}, or install what cuts it: pip install 'sora-chars[media]'"]),
    ],
)
def test_ways_out(
    monkeypatch: pytest.MonkeyPatch,
    local: Local,
    is_installed: bool,  # noqa: FBT001 # pytest passes it
    problems: list[str],
) -> None:
    """A clip of the video of a URL needs PyAV, and a way for a local file to the provider."""
    monkeypatch.setattr("sora_chars.media.extra.find_spec", lambda _: "av" if is_installed else None)
    assert clip_problems(Clip(1, 5), None, MediaRule(local=local, seconds=(3, 8))) == problems


@pytest.mark.parametrize(("end", "allowed"), [(3.99, False), (4.0, True), (9.0, True), (9.01, False)])
def test_lengths(monkeypatch: pytest.MonkeyPatch, end: float, allowed: bool) -> None:  # noqa: FBT001 # pytest passes it
    """A clip is as long as the provider takes, from both sides."""
    monkeypatch.setattr("sora_chars.media.extra.find_spec", lambda _: "av")
    problems = clip_problems(Clip(1, end), None, MediaRule(local="upload", seconds=(3, 8)))
    assert (problems == []) is allowed
    open_ended = clip_problems(Clip(1, 5), None, MediaRule(local="upload", seconds=(15, float("inf"))))
    assert open_ended == ["clip must span at least 15 seconds, got 4 ('1,5')"]
    assert clip_problems(Clip(1, 5), None, MediaRule(local="upload")) == []
