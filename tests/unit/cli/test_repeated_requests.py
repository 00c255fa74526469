"""The status line shows why a request is sent again, and when."""

from __future__ import annotations

import io
import logging

from rich.console import Console

from sora_chars.cli.output import Output
from sora_chars.cli.repeated_requests import repeated_requests_shown
from sora_chars.logs import event_logger

log = event_logger("sora_chars.transport")


def test_shows_noticeable_waits() -> None:
    """A wait of a second or more is shown with its reason, and only while the command waits."""
    err = io.StringIO()
    level = logging.getLogger("sora_chars.transport").level
    with Output(err=Console(file=err, width=200)).status_line() as line:
        with repeated_requests_shown(line):
            for seconds in (0.4, 12.0):
                facts = {"provider": "kie", "seconds": seconds, "error": "Your call frequency is too high."}
                log.info("request.repeated", extra=facts)
            log.info("ledger.written_late")
        log.info("request.repeated", extra={"provider": "kie", "seconds": 99.0, "error": "late"})
    assert err.getvalue() == "kie: sending again in 12 s: Your call frequency is too high.\n"
    assert logging.getLogger("sora_chars.transport").level == level
