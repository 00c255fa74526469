"""What the ledger's entries hold as JSON: requests, results and errors, and how each is read back.

No callback token is stored. A provider's record may echo the `callBackUrl` of its request, which is redacted here.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from sora_chars import errors
from sora_chars.errors import ProviderError, SoraCharsError
from sora_chars.ids import token_digest
from sora_chars.models import (
    Character,
    CharacterRequest,
    Clip,
    Request,
    Source,
    TaskFailure,
    TaskRequest,
    TaskSnapshot,
    Voice,
    VoiceRequest,
    is_url,
)
from sora_chars.redaction import hide_tokens, mask

from .entry import current_form, unreadable

if TYPE_CHECKING:
    from .entry import Entry

KINDS: dict[str, type[Request]] = {"character": CharacterRequest, "task": TaskRequest, "voice": VoiceRequest}

RETRY_HINT = (
    "The response does not prove that nothing was charged, so this key is not sent again automatically. "
    "To send it again, call `session.retry(key)` or add `--retry`."
)
"""The advice of a rejection without proof."""


def to_record(request: Request) -> tuple[str, dict[str, Any]]:
    """Return the kind of a request and its fields as JSON, without the key. Local paths become absolute."""
    kind = next(kind for kind, made in KINDS.items() if isinstance(request, made))
    facts = {
        field.name: _to_json(field.name, getattr(request, field.name))
        for field in attrs.fields(type(request))
        if field.name != "key"
    }
    return kind, {name: value for name, value in facts.items() if value is not None}


def _to_json(name: str, value: Any) -> Any:
    if name in {"video", "source"} and value is not None:
        return _absolute(value)
    if name == "images" and value is not None:
        return [_absolute(image) for image in value]
    return str(value) if isinstance(value, Clip) else value


def _absolute(source: Source) -> str:
    return str(source) if is_url(source) else str(Path(os.fspath(source)).absolute())


def to_request(entry: Entry) -> Request:
    """Return the request of an entry.

    Raises:
        UnreadableEntryError: Its kind or a field is not one that this version has.
    """
    try:
        kind, fields = current_form(entry.kind, entry.request)
        return KINDS[kind](**fields, key=entry.key)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise unreadable(entry.key, error) from error


def to_result(snapshot: TaskSnapshot) -> dict[str, Any]:
    """Return a finished snapshot as JSON, without callback tokens and without the secret parts of the request's links.

    The links of a result stay whole: they are what was paid for.
    """
    facts = _facts(snapshot)
    for part in facts.keys() & {"character", "voice", "failure"}:
        facts[part] = _facts(facts[part])
    if isinstance(snapshot.raw, dict) and "param" in snapshot.raw:  # kie.ai repeats the request there
        facts["raw"] = snapshot.raw | {"param": json.loads(mask(json.dumps(snapshot.raw["param"])))}
    text = json.dumps(facts)
    clean = mask(text) if snapshot.status == "failed" else hide_tokens(text)  # a failure may quote the request's links
    return facts if clean == text else json.loads(clean)


def _facts(value: TaskSnapshot | Character | Voice | TaskFailure) -> dict[str, Any]:
    """Return the fields that are set; nested values stay as they are, because the raw answer may be long."""
    return attrs.asdict(value, recurse=False, filter=lambda field, fact: fact is not None and field.name != "digest")


def to_snapshot(entry: Entry) -> TaskSnapshot:
    """Return the finished snapshot of an entry that succeeded or failed.

    Raises:
        UnreadableEntryError: A field is not one that this version has.
    """
    try:
        facts = dict(entry.result)
        if character := facts.get("character"):
            facts["character"] = Character(**character)
        if voice := facts.get("voice"):
            facts["voice"] = Voice(**voice)
        if failure := facts.get("failure"):
            facts["failure"] = TaskFailure(**({"code": None} | failure))
        return TaskSnapshot(**facts)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise unreadable(entry.key, error) from error


def echoes_other_token(snapshot: TaskSnapshot, digest: str | None) -> bool:
    """Return whether the record echoes callback URLs and none of them ends in the token of this digest."""
    text = json.dumps(snapshot.raw).replace("\\", "")
    urls = re.findall(r'callBackUrl["\s:]+(https?:[^"\s]+)', text, re.IGNORECASE)
    tokens = [url.rpartition("/")[2] for url in urls]
    return bool(tokens) and all(token_digest(token) != digest for token in tokens)


def to_error(error: SoraCharsError) -> dict[str, Any]:
    """Return an error as JSON: the name of its type and its plain attributes, without the key of its entry."""
    facts = {field.name: getattr(error, field.name) for field in attrs.fields(type(error)) if field.name != "key"}
    facts["charged"] = "" if error.charged == "no" else error.charged
    plain = {name: value for name, value in facts.items() if isinstance(value, str | int | float) and value != ""}
    return {"type": type(error).__name__, **plain}


def rejection(entry: Entry) -> ProviderError:
    """Return the error with which the provider rejected the request of an entry."""
    facts: dict[str, Any] = {"message": ""} | (entry.error or {})
    facts |= {name: str(facts[name]) for name in ("message", "hint") if name in facts}
    named = getattr(errors, str(facts.get("type")), None)
    kind = named if isinstance(named, type) and issubclass(named, ProviderError) else ProviderError
    known = {field.name for field in attrs.fields(kind)}
    made: ProviderError = kind(**{name: value for name, value in facts.items() if name in known})
    if made.may_have_been_paid:
        made.hint = f"Nothing was sent now. {RETRY_HINT}"
    return made
