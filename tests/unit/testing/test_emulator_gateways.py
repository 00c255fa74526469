"""The emulated gateways' rules for bodies and keys, apart from the network."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sora_chars.testing.emulator import evolink, wavespeed
from sora_chars.testing.emulator.files import FileStore
from sora_chars.testing.emulator.gateway_validation import evolink_problem, wavespeed_problem

URL = "https://a.example/b.mp4"
TEXTS = {"name": "Rex", "description": "A dog"}
VIDEO: dict[str, Any] = TEXTS | {"reference_type": "video_refer", "element_video_list": [URL]}
IMAGES: dict[str, Any] = TEXTS | {"frontal_image": URL, "refer_images": [URL]}


@pytest.mark.parametrize(
    "body",
    [
        VIDEO,
        IMAGES,
        IMAGES | {"reference_type": "image_refer", "refer_images": [URL] * 3},
        VIDEO | {"name": "x" * 20, "description": "x" * 100, "element_voice_id": "v", "tag_list": []},
    ],
)
def test_accepts_documented_bodies(body: dict[str, Any]) -> None:
    """Every documented body, at its limits, is accepted; images are the default."""
    assert wavespeed_problem(body, FileStore()) is None


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (VIDEO | {"name": None}, "name is required"),
        ({"name": "Rex"}, "description is required"),
        (VIDEO | {"name": "x" * 21}, "name must be a string of 1 to 20"),
        (VIDEO | {"description": "x" * 101}, "description must be a string of 1 to 100"),
        (VIDEO | {"reference_type": "clip"}, "reference_type must be"),
        (VIDEO | {"model": "m"}, "model is not a known parameter"),
        (VIDEO | {"tag_list": "o_102"}, "tag_list must be"),
        (VIDEO | {"element_video_list": []}, "element_video_list must be an array of 1 to 1"),
        (VIDEO | {"element_video_list": [URL, URL]}, "element_video_list must be an array of 1 to 1"),
        (VIDEO | {"element_video_list": ["b.mp4"]}, "element_video_list must hold http"),
        (VIDEO | {"element_video_list": URL}, "element_video_list must be an array"),
        (TEXTS, "frontal_image is required for image_refer"),
        (TEXTS | {"frontal_image": URL}, "refer_images is required for image_refer"),
        (TEXTS | {"reference_type": "video_refer"}, "element_video_list is required for video_refer"),
        (VIDEO | IMAGES, "frontal_image must not be given for video_refer"),
        (IMAGES | {"frontal_image": "iVBORw0KGgo="}, "frontal_image must be an http"),
        (IMAGES | {"refer_images": [URL] * 4}, "refer_images must be an array of 1 to 3"),
        (IMAGES | {"refer_images": [{"image_url": URL}]}, "refer_images must hold http"),
    ],
)
def test_rejects_other_bodies(body: dict[str, Any], problem: str) -> None:
    """A body beyond a limit is rejected with the parameter's name."""
    found = wavespeed_problem(body, FileStore())
    assert found is not None
    assert found.startswith(problem)


def test_evolink_parameters() -> None:
    """The parameters of the model are an object of known members; Kling's rules hold for their values."""
    assert evolink_problem({"model": "m", "model_params": {"element_name": 5}}) is None
    assert evolink_problem({"model": "m", "model_params": []}) == ("model_params", "is required")
    unknown = {"model_params": {"element_voice_id": "v"}}
    assert evolink_problem(unknown) == ("element_voice_id", "is not a known parameter")


@pytest.mark.parametrize(
    ("header", "accepted"),
    [("Bearer key", True), ("", False), ("Basic key", False), ("Bearer ", False), ("Bearer another", False)],
)
def test_keys(header: str, *, accepted: bool) -> None:
    """A wrong or missing key is rejected in the gateway's own form; without a key in the emulator any is accepted."""
    for module, member in ((wavespeed, "code"), (evolink, "error")):
        rejected = module.admit(header, "key")
        assert (rejected is None) == accepted
        assert rejected is None or (rejected.status == 401 and member in json.loads(rejected.body))
        assert module.admit("Bearer any", None) is None


@pytest.mark.parametrize("code", wavespeed.MESSAGES)
def test_wavespeed_errors(code: int) -> None:
    """Each code comes with a message and no data."""
    body = json.loads(wavespeed.reply(400, code).body)
    assert body == {"code": code, "message": wavespeed.MESSAGES[code]}


@pytest.mark.parametrize("status", [*evolink.ERRORS, 418])
def test_evolink_errors(status: int) -> None:
    """Each status comes with a type and a message."""
    answer = evolink.error(status)
    detail = json.loads(answer.body)["error"]
    assert (answer.status, detail["code"]) == (status, status)
    assert detail["message"]
    assert detail["type"]
