"""The documented rules for the body of Kling's create (contracts: Kling, Create).

They are written independently of the checks in the SDK.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
from typing import TYPE_CHECKING, cast

import imagesize

from .kling_tasks import TAGS
from .validation import is_url

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MAX_IMAGE_BYTES = 10 * 1024 * 1024
MIN_IMAGE_PIXELS = 300
RATIOS = (0.4, 2.5)
EXTERNAL_ID = re.compile(r"[!-~]{1,128}")  # the contract gives no form; it is used in a path


def _text(limit: int) -> Callable[[object], str | None]:
    def check(value: object) -> str | None:
        valid = isinstance(value, str) and 0 < len(value.strip()) <= len(value) <= limit
        return None if valid else f"must be a string of 1 to {limit} characters"

    return check


def _videos(value: object) -> str | None:
    match value:
        case {"refer_videos": [{"video_url": url, **rest}], **others} if not rest and not others:
            return None if is_url(url) else "must hold an http or https URL"
        case _:
            return "must hold exactly one video in refer_videos"


def _images(value: object) -> str | None:
    match value:
        case {"frontal_image": frontal, "refer_images": [*others], **rest} if not rest:
            urls = [other.get("image_url") if isinstance(other, dict) else None for other in others]
            if not 1 <= len(urls) <= 3:  # noqa: PLR2004 - the contract's number
                return "must hold 1 to 3 refer_images"
            return next((error for image in (frontal, *urls) if (error := _image(image))), None)
        case _:
            return "must hold frontal_image and refer_images"


def _image(value: object) -> str | None:
    if is_url(value):
        return None
    if not isinstance(value, str) or value.startswith("data:"):
        return "must hold URLs or base64 without a prefix"
    try:
        return content_problem(base64.b64decode(value, validate=True))
    except (binascii.Error, ValueError):
        return "must hold URLs or base64 without a prefix"


def content_problem(content: bytes) -> str | None:
    """Return what is wrong with an image, or None."""
    if not content.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")):
        return "must hold jpg, jpeg or png images"
    if len(content) > MAX_IMAGE_BYTES:
        return "must hold images of at most 10MB"
    width, height = imagesize.get(io.BytesIO(content))
    if min(width, height) < MIN_IMAGE_PIXELS or not RATIOS[0] <= width / height <= RATIOS[1]:
        return "must hold images of at least 300px and a ratio of 1:2.5 to 2.5:1"
    return None


def _tags(value: object) -> str | None:
    items = cast("list[object]", value) if isinstance(value, list) else [None]
    valid = all(isinstance(item, dict) and list(item) == ["tag_id"] and item["tag_id"] in TAGS for item in items)
    return None if valid else f"must be an array of tag_id out of {', '.join(TAGS)}"


FIELDS: Mapping[str, Callable[[object], str | None]] = {
    "element_name": _text(20),
    "element_description": _text(100),
    "reference_type": lambda value: (
        None if value in {"video_refer", "image_refer"} else "must be video_refer or image_refer"
    ),
    "element_video_list": _videos,
    "element_image_list": _images,
    "element_voice_id": _text(100),
    "tag_list": _tags,
    "callback_url": lambda value: None if is_url(value) else "must be an http or https URL",
    "external_task_id": lambda value: (
        None if isinstance(value, str) and EXTERNAL_ID.fullmatch(value) else "must be printable text without spaces"
    ),
}
REQUIRED = ("element_name", "element_description", "reference_type")
SOURCES = {"video_refer": "element_video_list", "image_refer": "element_image_list"}


VOICE_FIELDS: Mapping[str, Callable[[object], str | None]] = {
    "voice_name": _text(20),
    "voice_url": lambda value: None if is_url(value) else "must be an http or https URL",
    "callback_url": FIELDS["callback_url"],
    "external_task_id": FIELDS["external_task_id"],
}


def voice_problem(body: Mapping[str, object]) -> str | None:
    """Return the first rule that the body of a voice's create breaks, or None."""
    for name in ("voice_name", "voice_url"):
        if body.get(name) is None:
            return f"{name} is required"
    for name, value in body.items():
        if name not in VOICE_FIELDS:
            return f"{name} is not a known parameter"
        if (error := VOICE_FIELDS[name](value)) is not None:
            return f"{name} {error}"
    return None


def body_problem(body: Mapping[str, object]) -> str | None:
    """Return the first rule that the body of a create breaks, or None."""
    for name in REQUIRED:
        if body.get(name) is None:
            return f"{name} is required"
    for name, value in body.items():
        if name not in FIELDS:
            return f"{name} is not a known parameter"
        if (error := FIELDS[name](value)) is not None:
            return f"{name} {error}"
    source = SOURCES[str(body["reference_type"])]
    for name in SOURCES.values():
        if (name in body) != (name == source):
            return f"{name} {'is required' if name == source else 'must not be given'} for {body['reference_type']}"
    return None
