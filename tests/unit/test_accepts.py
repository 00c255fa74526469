"""What a provider accepts, as data."""

from __future__ import annotations

import math
from typing import Any

import pytest

from sora_chars.models import Accepts, CharacterRequest, ClipRule, MediaRule, TextRule
from sora_chars.providers.kling_codec import ACCEPTS as KLING

IMAGE = "https://images.example/front.png"
VIDEO = "https://clips.example/rex.mp4"


def test_rows() -> None:
    """Each source and field is described in one line, made of the same data as the checks."""
    assert dict(KLING.rows()) == {
        "video": (
            "1; URLs, or local files by hosting=; mp4, mov; 3 to 8 s; up to 200 MB; "
            "1920x1080 or 1080x1920; of a realistic person"
        ),
        "images": (
            "2 to 4; URLs or local files, which are sent inside the request; jpeg, png; up to 10 MB; "
            "at least 300 pixels a side; width to height 0.4 to 2.5; the frontal one first"
        ),
        "name": "required, up to 20 characters",
        "prompt": "required, up to 100 characters",
        "voice": "optional, with video or images",
    }


def test_bounds() -> None:
    """A bound of pixels may be one or two, and a video may have no longest duration."""
    pixels = MediaRule(min_pixels=300, max_pixels=6000, seconds=(15, math.inf))
    assert pixels.describe() == "1; URLs only; at least 15 s; 300 to 6000 pixels a side"
    (clip,) = Accepts(video=pixels).problems(CharacterRequest(video=VIDEO, clip="1,3"))
    assert clip.endswith("this provider takes a whole video of at least 15 seconds; cut the video")


WHOLE = "this provider takes a whole video"
PER_SOURCE = Accepts(
    from_task=True,
    video=MediaRule(seconds=(1, 4)),
    images=MediaRule(),
    clip=ClipRule(seconds=(1, 4), sources=("from_task",)),
    prompt={"from_task": TextRule(max_length=9, required=True), "video": TextRule(max_length=9), "images": TextRule()},
    safety={"from_task": TextRule(), "video": TextRule()},
)


def test_rules_for_each_source() -> None:
    """A field may have a rule for each source; equal ones are described together."""
    assert dict(PER_SOURCE.rows()) == {
        "from_task": "a finished task of the account",
        "video": "1; URLs only; 1 to 4 s",
        "images": "1; URLs only",
        "clip": "required with from_task, 1 to 4 s",
        "prompt": "with from_task: required, up to 9 characters; with video: optional, up to 9 characters; "
        "with images: optional",
        "safety": "with from_task or video: optional",
    }


@pytest.mark.parametrize(
    ("fields", "problems"),
    [
        ({"from_task": "t", "clip": "0,1", "prompt": "a dog"}, []),
        ({"from_task": "t", "clip": "0,4", "prompt": "123456789"}, []),
        ({"from_task": "t", "clip": "0,4.01", "prompt": "x"}, ['clip must span 1 to 4 seconds, got 4.01 ("0,4.01")']),
        (
            {"from_task": "t"},
            [
                'clip must be given with from_task, as "start,end" in seconds',
                "prompt must be given, with 1 to 9 characters",
            ],
        ),
        (
            {"video": VIDEO, "clip": "1,3", "prompt": "1234567890"},
            [
                f"clip must be omitted, since {WHOLE} of 1 to 4 seconds; cut the video, or use from_task",
                "prompt must have 1 to 9 characters, got 10",
            ],
        ),
        (
            {"images": [IMAGE], "clip": "1,3", "prompt": " ", "safety": "x"},
            [
                "clip must be omitted with images, since this route has no such field",
                "prompt must have at least 1 character, got 1",
                "safety must be omitted with images, since this route has no such field",
            ],
        ),
    ],
)
def test_problems_for_each_source(fields: dict[str, Any], problems: list[str]) -> None:
    """Each source has its own limits, on both sides."""
    assert PER_SOURCE.problems(CharacterRequest(**fields)) == problems


def test_few_rules() -> None:
    """A limit that a provider does not have is not described."""
    accepts = Accepts(images=MediaRule(local="upload"), prompt=TextRule(max_length=9))
    assert dict(accepts.rows()) == {"images": "1; URLs or local files", "prompt": "optional, up to 9 characters"}


@pytest.mark.parametrize(
    ("accepts", "fields", "problems"),
    [
        (Accepts(video=MediaRule(), prompt=TextRule(max_length=9)), {"video": VIDEO}, []),
        (Accepts(video=MediaRule()), {"video": "a.mp4"}, ["video must be a URL, since this provider takes no uploads"]),
        (Accepts(video=MediaRule(local="upload")), {"video": "a.mp4"}, []),
        (
            Accepts(video=MediaRule()),
            {"images": [IMAGE]},
            ["images must be omitted, since this provider takes video"],
        ),
        (Accepts(images=MediaRule()), {"video": VIDEO}, ["video must be omitted, since this provider takes images"]),
        (
            Accepts(images=MediaRule()),
            {"images": ["a.png"]},
            ["images[0] must be a URL, since this provider takes no uploads"],
        ),
        (
            Accepts(images=MediaRule(local="hosting")),
            {"images": ["a.png"]},
            ["images[0] must be a URL, since this provider takes no uploads; host the file, or pass hosting="],
        ),
        (
            Accepts(video=MediaRule(), images=MediaRule()),
            {"from_task": "t"},
            ["from_task must be omitted, since this provider takes video or images"],
        ),
        (
            Accepts(images=MediaRule()),
            {"images": [IMAGE], "clip": "1,3", "voice": "v"},
            [
                "clip must be omitted, since this provider has no such field",
                "voice must be omitted, since this provider has no such field",
            ],
        ),
        (
            Accepts(video=MediaRule(), images=MediaRule(), voice=("images",)),
            {"video": VIDEO, "voice": "v"},
            ["voice must be omitted with video, since it is only for images"],
        ),
        (
            Accepts(video=MediaRule(), safety=TextRule(max_length=3)),
            {"video": VIDEO, "safety": "none"},
            ["safety must have 1 to 3 characters, got 4"],
        ),
    ],
)
def test_problems(accepts: Accepts, fields: dict[str, Any], problems: list[str]) -> None:
    """A source or a field without a rule is refused, with what the provider takes instead."""
    assert accepts.problems(CharacterRequest(**fields)) == problems
