"""Requests, task snapshots and characters: the immutable values of the public API.

A request validates its own fields when it is created. The limits of a provider are
checked by that provider, in `Provider.check`.
"""

from .requests import (
    CharacterRequest,
    Clip,
    OmniCharacterRequest,
    Request,
    TaskRequest,
    as_request,
    is_url,
    raise_if_invalid,
    seconds_problems,
    with_changes,
)
from .tasks import FAIL, SUCCESS, Character, Eta, ModelInfo, TaskFailure, TaskSnapshot, TaskStatus, UploadProgress

__all__ = [
    "FAIL",
    "SUCCESS",
    "Character",
    "CharacterRequest",
    "Clip",
    "Eta",
    "ModelInfo",
    "OmniCharacterRequest",
    "Request",
    "TaskFailure",
    "TaskRequest",
    "TaskSnapshot",
    "TaskStatus",
    "UploadProgress",
    "as_request",
    "is_url",
    "raise_if_invalid",
    "seconds_problems",
    "with_changes",
]
