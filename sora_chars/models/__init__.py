"""Requests, task snapshots and characters: the immutable values of the public API.

A request validates its own fields when it is created. The limits of a provider are
checked by that provider, in `Provider.check`.
"""

from .accepts import Accepts, MediaRule, TextRule
from .requests import (
    CharacterFields,
    CharacterRequest,
    Clip,
    ClipLike,
    Request,
    RowFields,
    TaskRequest,
    as_request,
    raise_if_invalid,
    seconds_problems,
    with_changes,
)
from .sources import Source, is_url, path_of
from .tasks import FAIL, SUCCESS, Character, Eta, ModelInfo, TaskFailure, TaskSnapshot, TaskStatus, UploadProgress

__all__ = [
    "FAIL",
    "SUCCESS",
    "Accepts",
    "Character",
    "CharacterFields",
    "CharacterRequest",
    "Clip",
    "ClipLike",
    "Eta",
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
    "as_request",
    "is_url",
    "path_of",
    "raise_if_invalid",
    "seconds_problems",
    "with_changes",
]
