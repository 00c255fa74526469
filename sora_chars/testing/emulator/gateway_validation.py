"""The documented rules for bodies at the gateways that make Kling's elements (contracts: Kling, gateways).

They are written independently of the checks in the SDK.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from .kling_validation import FIELDS, REQUIRED, content_problem
from .validation import is_url

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .files import FileStore

MAX_CALLBACK_URL_LENGTH = 2048


def _urls(low: int, high: int) -> Callable[[object], str | None]:
    def check(value: object) -> str | None:
        items = cast("list[object]", value) if isinstance(value, list) else []
        if not low <= len(items) <= high:
            return f"must be an array of {low} to {high} URLs"
        return None if all(map(is_url, items)) else "must hold http or https URLs"

    return check


WAVESPEED_FIELDS: Mapping[str, Callable[[object], str | None]] = {
    "name": FIELDS["element_name"],
    "description": FIELDS["element_description"],
    "reference_type": FIELDS["reference_type"],
    "frontal_image": lambda value: None if is_url(value) else "must be an http or https URL",
    "refer_images": _urls(1, 3),
    "element_video_list": _urls(1, 1),
    "element_voice_id": FIELDS["element_voice_id"],
    "tag_list": lambda value: None if isinstance(value, list) else "must be an array",
}
WAVESPEED_SOURCES = {"image_refer": ("frontal_image", "refer_images"), "video_refer": ("element_video_list",)}


def wavespeed_problem(body: Mapping[str, object], files: FileStore) -> str | None:
    """Return the first rule that the body of Wavespeed's create breaks, or None."""
    for name in ("name", "description"):
        if body.get(name) is None:
            return f"{name} is required"
    for name, value in body.items():
        if name not in WAVESPEED_FIELDS:
            return f"{name} is not a known parameter"
        if (error := WAVESPEED_FIELDS[name](value)) is not None:
            return f"{name} {error}"
    kind = str(body.get("reference_type", "image_refer"))
    for source, names in WAVESPEED_SOURCES.items():
        for name in names:
            if (name in body) != (source == kind):
                return f"{name} {'is required' if source == kind else 'must not be given'} for {kind}"
    urls = [body.get("frontal_image"), *cast("list[object]", body.get("refer_images", []))]
    stored = [file.content for url in urls if (file := files.find(url))]
    error = next((error for content in stored if (error := content_problem(content))), None)
    return error and f"frontal_image and refer_images {error}"


EVOLINK_FIELDS = {*REQUIRED, "element_image_list", "element_video_list"}


def evolink_problem(body: Mapping[str, object]) -> tuple[str, str] | None:
    """Return the parameter and what is wrong with it, for the first rule that Evolink's create breaks, or None."""
    parameters = body.get("model_params")
    if not isinstance(parameters, dict):
        return "model_params", "is required"
    for name in body:
        if name not in {"model", "model_params", "callback_url"}:
            return name, "is not a known parameter"
    for name in cast("dict[str, object]", parameters):
        if name not in EVOLINK_FIELDS:
            return name, "is not a known parameter"
    url = body.get("callback_url")
    is_long = isinstance(url, str) and len(url) > MAX_CALLBACK_URL_LENGTH
    if url is not None and (not is_url(url) or not str(url).startswith("https://") or is_long):
        return "callback_url", f"must be an https URL of at most {MAX_CALLBACK_URL_LENGTH} characters"
    return None
