"""Security without a network: foreign text in messages, hostile input to the log mask, pickles."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import sora_chars
from sora_chars import (
    CharacterRequest,
    CharacterSession,
    InvalidRequestError,
    Kie,
    Kkiai,
    MissingCharacterError,
    NoAnswerError,
    SoraCharsError,
    open_ledger,
)
from sora_chars.models import as_request
from sora_chars.providers import kie_account, kie_codec
from sora_chars.providers.kie_callback import verify
from sora_chars.providers.kkiai import read_character
from sora_chars.redaction import mask
from sora_chars.responses import Response

if TYPE_CHECKING:
    from collections.abc import Callable

HOSTILE = "evil\x1b]0;owned\x07\r\n\x9b31m\x00\x7f\u202e\u2028evil"
READERS: dict[str, Callable[[Response], object]] = {
    "task id": kie_codec.read_task_id,
    "record": lambda response: kie_codec.read_record(response, task_id="t", provider="kie").outcome(),
    "omni": lambda response: kie_codec.read_omni(response, provider="kie"),
    "upload": kie_account.read_upload,
    "credit": kie_account.read_credit,
    "models": kie_account.read_models,
    "character": lambda response: read_character(response, provider="kkiai"),
    "callback": lambda response: verify({}, response.body, now=0.0, hmac_key=None),
}
RECORD = {"taskId": "t", "state": "success", "model": "sora-2-characters", "failCode": HOSTILE, "failMsg": HOSTILE}
BODIES: dict[str, Any] = {
    "envelope": {"code": 400, "msg": HOSTILE},
    "other envelope": {"code": HOSTILE, "message": HOSTILE, "data": HOSTILE},
    "accepted": {"code": 200, "data": {"taskId": HOSTILE, "characterId": "", "downloadUrl": ""}},
    "failed": {"code": 200, "data": RECORD | {"state": "fail"}},
    "ended without a record": {"code": 501, "msg": HOSTILE},
    "another task": {"code": 200, "data": RECORD | {"taskId": HOSTILE, "resultJson": HOSTILE}},
    "no character": {"code": 200, "data": RECORD | {"resultJson": {HOSTILE: HOSTILE}}},
    "malformed": {"code": 200, "data": RECORD | {"taskId": [HOSTILE]}},
    "gateway": {"error": {"message": HOSTILE, "code": HOSTILE, "type": HOSTILE}},
    "gateway in Chinese": {"error": {"message_zh": HOSTILE}},
    "flat": {"detail": HOSTILE, "code": HOSTILE},
    "text": HOSTILE,
}


@pytest.mark.parametrize("status", [200, 201, 400, 401, 404, 429, 500, 502])
@pytest.mark.parametrize("body", [*BODIES, "no JSON"])
@pytest.mark.parametrize("reader", READERS)
def test_messages_are_printable(reader: str, body: str, status: int) -> None:
    """Whatever a provider sends, the message and the hint of an error are one printable line."""
    content = HOSTILE if body == "no JSON" else json.dumps(BODIES[body])
    shown = ""
    try:
        READERS[reader](Response(status, {}, content.encode()))
    except SoraCharsError as error:
        shown = str(error)
    assert shown.isprintable()


LONG = "A" * 3_000_000
CALLS: dict[str, Callable[[], object]] = {
    "video": lambda: CharacterRequest(video=f"data:video/mp4;base64,{LONG}"),
    "video of another scheme": lambda: CharacterRequest(video=f"ftp://a.invalid/{LONG}"),
    "invalid link": lambda: CharacterRequest(video=f"https://a b/{LONG}"),
    "path": lambda: _check(CharacterRequest(video=LONG)),
    "path of an image": lambda: _check(CharacterRequest(images=(LONG,), prompt="A dog")),
    "from_task": lambda: CharacterRequest(from_task=f"a/{LONG}"),
    "clip": lambda: CharacterRequest(video="https://a.invalid/b", clip=LONG),
    "key": lambda: CharacterRequest(from_task="t", key=LONG),
    "field": lambda: as_request(None, {LONG: 1}),
    "field of a stranger": lambda: CharacterRequest.from_untrusted({LONG: 1}),
    "base_url": lambda: Kie("key", base_url=LONG),
    "proxy": lambda: Kie("key", proxy=LONG),
    "gateway": lambda: Kkiai.gateway(LONG),
    "ledger": lambda: open_ledger(f"other://{LONG}"),
    "session": lambda: CharacterSession(LONG),  # type: ignore[arg-type] # wrong on purpose
}


def _check(request: CharacterRequest) -> None:
    raise InvalidRequestError("not sent", problems=tuple(Kie("key").check(request)))


@pytest.mark.parametrize("call", CALLS)
def test_messages_are_bounded(call: str) -> None:
    """A message that repeats what a caller passed is short, however long that was."""
    with pytest.raises(SoraCharsError) as caught:
        CALLS[call]()
    problems = getattr(caught.value, "problems", ())
    assert len(str(caught.value)) < 2000
    assert all(len(problem) < 1000 for problem in problems)


@pytest.mark.parametrize("task_id", ["a\nb", "\x1b[2J", "\x00", "\u2028", "x" * 201])
def test_task_id_must_be_storable(task_id: str) -> None:
    """A task id that would break a log line or a database column leaves the outcome unknown."""
    response = Response(200, {}, json.dumps({"code": 200, "data": {"taskId": task_id}}).encode())
    with pytest.raises(NoAnswerError, match="no task id"):
        kie_codec.read_task_id(response)


@pytest.mark.parametrize("name", ["", "a\nb", "\x1b[2J", "x" * 201])
@pytest.mark.parametrize("reader", ["omni", "character"])
def test_character_id_must_be_storable(reader: str, name: str) -> None:
    """A character id that no ledger can store raises an error with the whole payload."""
    content = {"code": 200, "data": {"characterId": name}} if reader == "omni" else {"id": name, "username": "u"}
    with pytest.raises(MissingCharacterError) as caught:
        READERS[reader](Response(200, {}, json.dumps(content).encode()))
    assert caught.value.payload in (content, content.get("data"))


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    "text",
    [
        "http://" * 100_000,
        "callBackUrl" + "\\" * 700_000,
        "callBackUrl:" * 50_000,
        "http://a?" * 80_000,
        "http://" + "a@" * 350_000,
        ":" + "\\" * 700_000,
        "http://a?" + ("'" * 1000 + "a") * 700,
    ],
    ids=["links", "backslashes", "callbacks", "queries", "users", "slashes", "quotes"],
)
def test_mask_is_fast_on_hostile_text(text: str) -> None:
    """Hiding secrets in 700 kB of hostile text takes seconds at most."""
    assert mask(f"{text} x https://a/b?SIGNATURE").endswith("https://a/b?***")


def test_no_pickle_imports() -> None:
    """No module of the package imports a module that can run code from a file."""
    imported: set[str] = set()
    files = list(Path(sora_chars.__path__[0]).rglob("*.py"))
    for node in (node for file in files for node in ast.walk(ast.parse(file.read_text()))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").partition(".")[0])
    assert {"json", "sqlite3"} <= imported
    assert not imported & {"pickle", "_pickle", "shelve", "marshal", "dill", "cloudpickle"}
