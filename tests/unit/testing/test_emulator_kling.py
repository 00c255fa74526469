"""The emulated Kling's rules for bodies and keys, apart from the network."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import pytest

from sora_chars.signing import encode_jwt
from sora_chars.testing.emulator.kling import ERRORS, admit, reply
from sora_chars.testing.emulator.kling_validation import body_problem
from tests.support.images import jpeg, png

URL = "https://a.example/b.mp4"
TEXTS = {"element_name": "Rex", "element_description": "A dog"}
VIDEO: dict[str, Any] = TEXTS | {
    "reference_type": "video_refer",
    "element_video_list": {"refer_videos": [{"video_url": URL}]},
}
IMAGES: dict[str, Any] = TEXTS | {
    "reference_type": "image_refer",
    "element_image_list": {"frontal_image": URL, "refer_images": [{"image_url": URL}]},
}
MB = 1024 * 1024


def encoded(content: bytes) -> str:
    """Return base64 without a prefix."""
    return base64.b64encode(content).decode()


def images(frontal: object, *others: object) -> dict[str, Any]:
    """Return an element of these images."""
    return {"element_image_list": {"frontal_image": frontal, "refer_images": [{"image_url": url} for url in others]}}


@pytest.mark.parametrize(
    "body",
    [
        VIDEO,
        IMAGES,
        VIDEO | {"element_name": "x" * 20, "element_description": "x" * 100, "element_voice_id": "v"},
        VIDEO | {"tag_list": [{"tag_id": "o_102"}, {"tag_id": "o_108"}], "callback_url": URL, "external_task_id": "a"},
        IMAGES | images(URL, URL, URL, URL),
        IMAGES | images(encoded(png(300, 750)), encoded(jpeg(750, 300))),
        IMAGES | images(encoded(png(300, 300, size=10 * MB)), URL),
    ],
)
def test_accepts_documented_bodies(body: dict[str, Any]) -> None:
    """Every documented body, at its limits, is accepted."""
    assert body_problem(body) is None


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (VIDEO | {"element_name": None}, "element_name is required"),
        (VIDEO | {"element_name": "x" * 21}, "element_name must be a string of 1 to 20"),
        (VIDEO | {"element_name": " "}, "element_name must be a string"),
        (VIDEO | {"element_description": "x" * 101}, "element_description must be a string of 1 to 100"),
        (VIDEO | {"element_description": 5}, "element_description must be a string"),
        (VIDEO | {"reference_type": "clip"}, "reference_type must be"),
        (VIDEO | {"model": "m"}, "model is not a known parameter"),
        (VIDEO | {"tag_list": [{"tag_id": "o_1"}]}, "tag_list must be"),
        (VIDEO | {"tag_list": "o_102"}, "tag_list must be"),
        (VIDEO | {"callback_url": "localhost"}, "callback_url must be"),
        (VIDEO | {"external_task_id": "a b"}, "external_task_id must be"),
        (VIDEO | {"external_task_id": ""}, "external_task_id must be"),
        (VIDEO | {"element_video_list": [URL]}, "element_video_list must hold exactly one"),
        (VIDEO | {"element_video_list": {"refer_videos": []}}, "element_video_list must hold exactly one"),
        (VIDEO | {"element_video_list": {"refer_videos": [{"video_url": "b.mp4"}]}}, "element_video_list must hold an"),
        (TEXTS | {"reference_type": "video_refer"}, "element_video_list is required"),
        (IMAGES | {"reference_type": "video_refer"}, "element_video_list is required"),
        (VIDEO | IMAGES, "element_video_list must not be given"),
        (IMAGES | images(URL), "element_image_list must hold 1 to 3"),
        (IMAGES | images(URL, URL, URL, URL, URL), "element_image_list must hold 1 to 3"),
        (IMAGES | {"element_image_list": [URL]}, "element_image_list must hold frontal_image"),
        (
            IMAGES | {"element_image_list": {"frontal_image": URL, "refer_images": [URL]}},
            "element_image_list must hold URLs",
        ),
        (IMAGES | images("data:image/png;base64," + encoded(png(300, 300)), URL), "element_image_list must hold URLs"),
        (IMAGES | images("a.png", URL), "element_image_list must hold URLs"),
        (IMAGES | images(5, URL), "element_image_list must hold URLs"),
        (IMAGES | images(encoded(b"GIF89a"), URL), "element_image_list must hold jpg"),
        (
            IMAGES | images(encoded(png(300, 300, size=10 * MB + 1)), URL),
            "element_image_list must hold images of at most",
        ),
        (IMAGES | images(encoded(png(299, 300)), URL), "element_image_list must hold images of at least"),
        (IMAGES | images(URL, encoded(png(300, 751))), "element_image_list must hold images of at least"),
    ],
)
def test_rejects_other_bodies(body: dict[str, Any], problem: str) -> None:
    """A body beyond a limit is rejected with the parameter's name."""
    found = body_problem(body)
    assert found is not None
    assert found.startswith(problem)


def token(secret: str = "secret", **claims: object) -> str:
    """Return a header with a JWT."""
    now = int(time.time())
    return f"Bearer {encode_jwt({'iss': 'access', 'exp': now + 1800, 'nbf': now - 5} | claims, secret)}"


def forged(header: object) -> str:
    """Return a header whose JWT has another head."""
    return "Bearer " + encode_jwt({}, "secret").replace(
        "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9", encoded(json.dumps(header).encode())
    )


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ("Bearer key", None),
        (token(), None),
        ("", 1001),
        ("Basic key", 1002),
        ("Bearer ", 1002),
        ("Bearer another", 1000),
        (token("another"), 1000),
        (forged({"alg": "none"}), 1000),
        ("Bearer a.b.c", 1000),
        ("Bearer a.b.x", 1000),
        (token(iss=""), 1002),
        (token(exp="soon"), 1002),
        (token(nbf=time.time() + 86400), 1003),
        (token(exp=time.time() - 1), 1004),
    ],
)
def test_keys(header: str, code: int | None) -> None:
    """A wrong, missing, early or expired key is rejected with its own code."""
    rejected = admit(header, "key", "secret")
    assert (json.loads(rejected.body)["code"] if rejected else None) == code


def test_no_pair_of_keys() -> None:
    """Without a secret key no JWT is accepted; without an API key any is."""
    assert admit(token(), None, None) is not None
    assert admit("Bearer any", None, None) is None


@pytest.mark.parametrize("code", ERRORS)
def test_errors(code: int) -> None:
    """Each code comes with its HTTP status, a message and no data."""
    answer = reply(code)
    body = json.loads(answer.body)
    assert (answer.status, body["code"], "data" in body) == (ERRORS[code][0], code, False)
    assert body["message"]
