"""Requests, task snapshots and characters: the immutable values of the public API.

A request validates its own fields when it is created. The limits of a provider are
checked by that provider, in `Provider.check`.
"""

from .accepts import Accepts, ClipRule, MediaRule, TextRule
from .jobs import JobFields, Request, TaskRequest, VoiceRequest, as_request, of_row, with_changes
from .requests import (
    CharacterFields,
    CharacterRequest,
    Clip,
    ClipLike,
    RowFields,
    check_seconds,
    raise_if_invalid,
    seconds_problems,
)
from .sources import Source, is_url, is_whole_url, path_of
from .tasks import (
    FAIL,
    SUCCESS,
    Character,
    Eta,
    ModelInfo,
    TaskFailure,
    TaskSnapshot,
    TaskStatus,
    UploadProgress,
    Voice,
)

__all__ = [
    "FAIL",
    "SUCCESS",
    "Accepts",
    "Character",
    "CharacterFields",
    "CharacterRequest",
    "Clip",
    "ClipLike",
    "ClipRule",
    "Eta",
    "JobFields",
    "MediaRule",
    "ModelInfo",
    "Request",
    "RowFields",
    "Source",
    "TaskFailure",
    "TaskRequest",
    "TaskSnapshot",
    "TaskStatus",
    "TextRule",
    "UploadProgress",
    "Voice",
    "VoiceRequest",
    "as_request",
    "check_seconds",
    "is_url",
    "is_whole_url",
    "of_row",
    "path_of",
    "raise_if_invalid",
    "seconds_problems",
    "with_changes",
]
