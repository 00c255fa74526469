"""The emulator's checks of requests, on both sides of each limit."""

from __future__ import annotations

import pytest

from sora_chars.testing.emulator.validation import (
    INPUT_RULES,
    KIE_ID,
    OMNI_RULES,
    TASK_RULES,
    Rules,
    SlidingWindow,
    is_url,
    problem,
    span_problem,
)

URL = "https://example.com/clip.mp4"
PRO: dict[str, object] = {"origin_task_id": "7" * 32, "timestamps": "3.55,5.55", "character_prompt": "A cook"}
FILE: dict[str, object] = {"character_file_url": [URL]}
OMNI: dict[str, object] = {"descriptions": "A cook", "image_urls": [URL]}
VIDEO: dict[str, object] = {"prompt": "A cook"}
RULES: dict[str, tuple[Rules, dict[str, object]]] = {
    "pro": (INPUT_RULES["sora-2-characters-pro"], PRO),
    "file": (INPUT_RULES["sora-2-characters"], FILE),
    "video": (INPUT_RULES["sora-2-text-to-video"], VIDEO),
    "omni": (OMNI_RULES, OMNI),
    "task": (TASK_RULES, {"model": "m", "input": {}}),
}


@pytest.mark.parametrize("name", RULES)
def test_accepts_smallest_requests(name: str) -> None:
    """The smallest valid request of each kind is accepted."""
    rules, values = RULES[name]
    assert problem(rules, values) is None


@pytest.mark.parametrize("name", RULES)
def test_requires_fields(name: str) -> None:
    """A required field that is missing or null is code 500 with "... is required"."""
    rules, values = RULES[name]
    for field in rules.required:
        rest = {key: value for key, value in values.items() if key != field}
        assert problem(rules, rest) == problem(rules, rest | {field: None}) == (500, f"{field} is required")


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("pro", "character_prompt", "x" * 5000),
        ("pro", "character_user_name", "x" * 40),
        ("pro", "safety_instruction", ""),
        ("pro", "safety_instruction", "x" * 5000),
        ("file", "character_prompt", ""),
        ("file", "safety_instruction", "x" * 5000),
        ("video", "aspect_ratio", "portrait"),
        ("video", "n_frames", "15"),
        ("video", "remove_watermark", False),
        ("video", "character_id_list", ["a", "b", "c", "d", "e"]),
        ("video", "upload_method", "oss"),
        ("omni", "audio_ids", ["a"]),
        ("omni", "character_name", "Cook"),
        ("task", "callBackUrl", "http://localhost:8080/cb?token=1"),
        ("task", "progressCallBackUrl", URL),
    ],
)
def test_accepts_values_at_the_limit(name: str, field: str, value: object) -> None:
    """The longest and the shortest valid values are accepted."""
    rules, values = RULES[name]
    assert problem(rules, values | {field: value}) is None


@pytest.mark.parametrize(
    ("name", "field", "value", "message"),
    [
        ("pro", "origin_task_id", 7, "must be a string"),
        ("pro", "timestamps", [1, 3], 'must be a string "x,y" of seconds'),
        ("pro", "timestamps", "0,4.01", "must span 1 to 4 seconds"),
        ("pro", "character_prompt", " ", "must not be empty"),
        ("pro", "character_prompt", "x" * 5001, "must be at most 5000 characters"),
        ("pro", "character_user_name", "", "must not be empty"),
        ("pro", "character_user_name", "x" * 41, "must be at most 40 characters"),
        ("pro", "safety_instruction", "x" * 5001, "must be at most 5000 characters"),
        ("pro", "prompt", "x", "is not a known parameter"),
        ("file", "timestamps", "1,3", "is not a known parameter"),
        ("file", "character_file_url", URL, "must be an array of exactly 1 URL"),
        ("file", "character_file_url", [], "must be an array of exactly 1 URL"),
        ("file", "character_file_url", [URL, URL], "must be an array of exactly 1 URL"),
        ("file", "character_file_url", ["clip.mp4"], "must hold http or https URLs"),
        ("video", "aspect_ratio", "square", "must be one of portrait, landscape"),
        ("video", "n_frames", 10, "must be one of 10, 15"),
        ("video", "remove_watermark", "no", "must be a boolean"),
        ("video", "character_id_list", "a", "must be an array of at most 5 strings"),
        ("video", "character_id_list", ["a"] * 6, "must be an array of at most 5 strings"),
        ("video", "character_id_list", [""], "must be an array of at most 5 strings"),
        ("omni", "image_urls", [URL] * 3, "must be an array of 1 or 2 URLs"),
        ("task", "input", [], "must be an object"),
        ("task", "model", "", "must not be empty"),
        ("task", "callBackUrl", "localhost", "must be an http or https URL"),
        ("task", "priority", 1, "is not a known parameter"),
    ],
)
def test_rejects_values_beyond_the_limit(name: str, field: str, value: object, message: str) -> None:
    """A wrong value is code 422 with a message that names the field and the rule."""
    rules, values = RULES[name]
    assert problem(rules, values | {field: value}) == (422, f"{field} {message}")


@pytest.mark.parametrize("text", ["1,2", "0,4", "3.55,5.55", "0.1,1.1", "10.5,14.5"])
def test_accepts_spans_within_bounds(text: str) -> None:
    """Spans of exactly the minimum and the maximum are accepted, without rounding errors."""
    assert span_problem(text, 4) is None


@pytest.mark.parametrize(
    "text", ["1,1.99", "1,5.01", "3,1", "1, 3", " 1,3", "1,3\n", "1;3", "1,3,5", "-1,1", "1.,3", ".5,2"]
)
@pytest.mark.parametrize("max_seconds", [3, 4])
def test_rejects_spans(text: str, max_seconds: int) -> None:
    """Spans that are too short, too long, reversed or spelled differently are rejected."""
    assert span_problem(text, max_seconds) is not None


@pytest.mark.parametrize("value", ["1e0,3", "", "\u0663,\u0665", None, 2])
def test_rejects_other_values_as_spans(value: object) -> None:
    """Exponents, non-ASCII digits, missing values and numbers are rejected."""
    assert span_problem(value, 4) is not None


@pytest.mark.parametrize(
    ("value", "valid"),
    [
        (URL, True),
        ("http://127.0.0.1:8080/x", True),
        ("ftp://example.com/x", False),
        ("https://", False),
        ("https://exa mple.com", False),
        ("http://[::1", False),
        ("http://x:99999/", False),
        ("http://x:0/", False),
        ("", False),
        (None, False),
    ],
)
def test_is_url(value: object, valid: bool) -> None:  # noqa: FBT001 - an expectation, not an option
    """Only absolute http and https URLs with a usable host and port are accepted."""
    assert is_url(value) is valid


def test_form_of_older_task_ids() -> None:
    """An id of 32 hex digits or of the documented form may be an older video; others may not."""
    assert KIE_ID.fullmatch("7118f712" * 4)
    assert KIE_ID.fullmatch("task_sora-2-text-to-video_1765174270120")
    assert not KIE_ID.fullmatch("video_e50c76ca-21d4-40e9-8485-e4ead2d37133")


def test_required_fields_have_checks() -> None:
    """Every required field has a check."""
    tables: list[Rules] = [*INPUT_RULES.values(), OMNI_RULES, TASK_RULES]
    assert all(set(rules.required) <= set(rules.fields) for rules in tables)


def test_sliding_window() -> None:
    """A window admits `limit` requests in any `seconds`; rejected requests do not count."""
    window = SlidingWindow(2, 10.0)
    admitted = [window.admit(now) for now in (0.0, 9.0, 9.5, 9.999, 10.0, 10.5, 18.9, 19.0)]
    assert admitted == [True, True, False, False, True, False, False, True]
