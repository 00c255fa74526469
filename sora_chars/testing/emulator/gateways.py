"""What the emulator's server needs to know of the gateways that make Kling's elements: routes and faults."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import evolink, wavespeed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from aiohttp import web

    from .faults import Fault
    from .responses import Reply
    from .state import EmulatorState

    Row = tuple[str, tuple[str, ...], Mapping[str, object], Callable[[Fault, str], Reply] | None]
    """A fault: its description, targets, settings, and what makes its response."""

ROUTES: dict[tuple[str, str], tuple[str, str, Callable[[EmulatorState, web.Request], Awaitable[Reply]]]] = {
    ("POST", wavespeed.CREATE): ("prediction", "wavespeed", wavespeed.create),
    ("GET", wavespeed.PREDICTION): ("prediction_poll", "wavespeed", wavespeed.poll),
    ("POST", wavespeed.UPLOAD): ("prediction_upload", "wavespeed", wavespeed.upload),
    ("GET", wavespeed.BALANCE): ("prediction_other", "wavespeed", wavespeed.balance),
    ("POST", evolink.CREATE): ("generation", "evolink", evolink.create),
    ("GET", evolink.TASK): ("generation_poll", "evolink", evolink.poll),
    ("GET", evolink.CREDITS): ("generation_other", "evolink", evolink.credits),
}
WAVESPEED_ENDPOINTS = ("prediction", "prediction_poll", "prediction_upload", "prediction_other")
EVOLINK_ENDPOINTS = ("generation", "generation_poll", "generation_other")
ENDPOINTS = (*WAVESPEED_ENDPOINTS, *EVOLINK_ENDPOINTS)
CREATES = ("prediction", "generation")


def _wavespeed_error(fault: Fault, _endpoint: str) -> Reply:
    status = fault.integer("status")
    return wavespeed.reply(status, fault.integer("code") or status, fault.text("message"))


def _evolink_error(fault: Fault, _endpoint: str) -> Reply:
    return evolink.error(fault.integer("status"), fault.text("message"))


FAULTS: Mapping[str, Row] = {
    "wavespeed_error": (
        "Wavespeed: an error by its HTTP status, and by its code if that differs",
        (*WAVESPEED_ENDPOINTS, "any"),
        {"status": 500, "code": 0, "message": ""},
        _wavespeed_error,
    ),
    "evolink_error": (
        "Evolink: an error by its HTTP status",
        (*EVOLINK_ENDPOINTS, "any"),
        {"status": 500, "message": ""},
        _evolink_error,
    ),
    "gateway_stuck": ("Wavespeed, Evolink: the task never ends", CREATES, {}, None),
    "gateway_fail": (
        "Wavespeed, Evolink: the task fails",
        CREATES,
        {"code": 1403, "message": "The video contains no person"},
        None,
    ),
    "gateway_cancel": ("Wavespeed, Evolink: the task is cancelled", CREATES, {}, None),
    "gateway_empty": ("Wavespeed, Evolink: the result holds no element id", CREATES, {}, None),
    "gateway_text": ("Wavespeed: the element is JSON text; Evolink: it stands in a list", CREATES, {}, None),
}
