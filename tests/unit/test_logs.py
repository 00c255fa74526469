"""Log records: a readable message, and the facts as attributes."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import sora_chars
from sora_chars.logs import SENTENCES, event_logger

if TYPE_CHECKING:
    import pytest


def test_the_message_names_the_facts(caplog: pytest.LogCaptureFixture) -> None:
    """The stock formatter shows key and task id, and the record has each fact as an attribute."""
    facts = {"provider": "kie", "key": "order-17", "task_id": "t-1", "error": None}
    event_logger("sora_chars.session").warning("submission.outlived_its_caller", extra=facts)
    [record] = caplog.records
    assert logging.Formatter().format(record) == (
        "The task keeps running although its caller was cancelled (provider=kie, key=order-17, task_id=t-1)"
    )
    assert {name: vars(record)[name] for name in facts} == facts
    assert vars(record)["event"] == "submission.outlived_its_caller"


def test_a_message_without_facts(caplog: pytest.LogCaptureFixture) -> None:
    """An event without facts is its sentence."""
    event_logger("sora_chars.watcher").error("polling_strategy.failed")
    assert caplog.messages == [SENTENCES["polling_strategy.failed"]]


def test_every_event_has_a_sentence() -> None:
    """The package logs the events that have a sentence, and no others."""
    folder = Path(sora_chars.__file__).parent
    source = "\n".join(path.read_text() for path in folder.rglob("*.py") if "testing" not in path.parts)
    used = re.findall(r'log\.(?:debug|info|warning|error|exception|log)\(\s*(?:level, )?"([\w.]+)"', source)
    assert set(used) == SENTENCES.keys()


def test_ids_of_assets_are_hidden(caplog: pytest.LogCaptureFixture) -> None:
    """The id of a Seedance asset is a secret in every fact but the caller's key, and a route is none."""
    facts = {
        "key": "asset-17",
        "task_id": "asset-20260916123456-ab1cd",
        "error": ValueError("asset://Asset-20260916123456-ab1cd is gone"),
        "url": "https://icover.ai/api/asset-library/assets/asset-20260916123456-ab1cd",
        "status": 200,
    }
    event_logger("sora_chars.transport").warning("request.repeated", extra=facts)
    [record] = caplog.records
    assert "ab1cd" not in caplog.text + str(vars(record))
    assert (vars(record)["key"], vars(record)["task_id"], vars(record)["status"]) == ("asset-17", "asset-***", 200)
    assert vars(record)["url"] == "https://icover.ai/api/asset-library/assets/asset-***"


PROGRAM = """
import logging
{set_up}
from sora_chars.logs import event_logger
event_logger("sora_chars.transport").info("request.repeated", extra={{"key": "order-17", "seconds": 2.5}})
event_logger("sora_chars.transport").debug("exchange")
"""


def output_of(value: str, set_up: str = "") -> str:
    """Return what a program that logs two records writes with SORA_CHARS_LOG set to `value`."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(set_up=set_up)],
        env=os.environ | {"SORA_CHARS_LOG": value},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == ""
    return done.stderr


def test_the_variable_writes_records() -> None:
    """With SORA_CHARS_LOG=info a program without logging writes readable records to the standard error stream."""
    assert re.fullmatch(
        r"[-\d]+ [:,\d]+ INFO sora_chars\.transport: The request is sent again after a wait"
        r" \(key=order-17, seconds=2\.5\)\n",
        output_of("info"),
    )
    assert output_of("Debug").count("\n") == 2
    assert output_of("") == ""


def test_the_variable_adds_no_second_line() -> None:
    """A program that sets up logging writes each record once, in its own format."""
    shown = output_of("info", "logging.basicConfig(format='own: %(message)s')")
    assert shown == "own: The request is sent again after a wait (key=order-17, seconds=2.5)\n"


def test_an_unknown_level_is_a_warning() -> None:
    """A level that does not exist is named in a warning, and nothing is written."""
    assert "SORA_CHARS_LOG must be info or debug, got 'trace'." in output_of("trace")
