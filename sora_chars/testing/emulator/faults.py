"""Faults: the table of their kinds, and the registry of those that are active."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, cast

import attrs

from . import assets, gateways, kling, transmission
from .responses import HTML, PLAIN_JSON, Reply, encoded, kie, kkiai_error
from .tasks import RAW_SHAPES, RESULT_SHAPES, EmulatedTask, TaskStore, never_end, set_result_shape

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Mapping

    from aiohttp import web

KLING_ENDPOINTS = ("element", "element_poll", "element_other", "voice", "voice_poll")
ELEMENT_ENDPOINTS = (*KLING_ENDPOINTS, "subject", "subject_other", *gateways.ENDPOINTS, *assets.ENDPOINTS)
ENDPOINTS = ("create", "poll", "upload", "character", "omni", "other", *ELEMENT_ENDPOINTS, "any")
TARGETS = (*ENDPOINTS, "callback")


@attrs.frozen
class PlannedPost:
    """One planned POST of a callback.

    Attributes:
        delay: Real seconds to wait before it.
        forged: "signature" or "token" forges that part; None sends the true callback.
    """

    delay: float = 0.0
    forged: str | None = None


@attrs.define(eq=False)
class Fault:
    """An active fault, as returned by `Emulator.fault`.

    Attributes:
        kind: Which failure it is; a key of `KINDS`.
        on: The requests that it applies to, one of `ENDPOINTS`; or "callback" for the
            deliveries of callbacks.
        times: After how many hits it is removed; None for never.
        rate: The share of the matching requests that it hits, 0.0 to 1.0.
        settings: The settings of its kind.
        hits: How many requests, tasks or callbacks it has hit.
    """

    kind: str
    on: str
    times: int | None
    rate: float
    settings: Mapping[str, object]
    hits: int = 0
    _active: list[Fault] = attrs.field(factory=list, repr=False)

    def remove(self) -> None:
        """Deactivate the fault. Has no effect if it is not active any more."""
        if self in self._active:
            self._active.remove(self)

    def text(self, name: str) -> str:
        """Return a setting that is a text."""
        return str(self.settings[name])

    def number(self, name: str) -> float:
        """Return a setting that is a number."""
        return float(cast("float", self.settings[name]))

    def integer(self, name: str) -> int:
        """Return a setting that is a whole number."""
        return int(cast("int", self.settings[name]))


@attrs.frozen
class FaultKind:
    """A row of the table of faults. Each row sets at least one of the four callables.

    Attributes:
        description: What goes wrong.
        targets: What it can be applied to, the default first.
        settings: Its settings with their defaults; a tuple lists all choices, the
            default first.
        respond: Makes the response instead of the server, which does nothing.
        send: Sends the server's response badly; the request was carried out.
        change_task: Changes the task that was just created.
        plan: Changes how a callback is delivered.
        applies: Whether the fault can hit this request, given the task that it polls.
    """

    description: str
    targets: tuple[str, ...] = ENDPOINTS
    settings: Mapping[str, object] = attrs.field(factory=dict)
    respond: Callable[[Fault, str], Reply] | None = None
    send: Callable[[web.Request, Reply, Fault], Awaitable[web.StreamResponse]] | None = None
    change_task: Callable[[TaskStore, EmulatedTask, Fault], None] | None = None
    plan: Callable[[list[PlannedPost], Fault], list[PlannedPost]] | None = None
    applies: Callable[[Fault, EmulatedTask | None], bool] = lambda _fault, _task: True


def _rejection(fault: Fault, endpoint: str) -> Reply:
    status, code, message = fault.integer("status"), fault.integer("code"), fault.text("message")
    if endpoint in ELEMENT_ENDPOINTS:  # Vidu's, or a gateway's; Kling's is kling_error
        return Reply(code, encoded({"message": message}), PLAIN_JSON)
    if endpoint == "character":
        return kkiai_error(1, code, message=message, type="new_api_error", code=str(code))
    return kie(code, message, status=status)


def _html(fault: Fault, _endpoint: str) -> Reply:
    return Reply(fault.integer("status"), b"<html><body><h1>Bad gateway</h1><hr>nginx</body></html>", HTML)


def _unknown_task(fault: Fault, _endpoint: str) -> Reply:
    forms = {
        "422": kie(422, "recordInfo is null"),
        "404": kie(404, "Task not found", status=404),
        "null": kie(200, "success"),
    }
    return forms[fault.text("form")]


def _is_young(fault: Fault, task: EmulatedTask | None) -> bool:
    seconds = fault.number("seconds")
    return seconds == 0 or (task is not None and task.clock() - task.created < seconds)


def _kkiai_error(fault: Fault, _endpoint: str) -> Reply:
    return kkiai_error(
        fault.integer("shape"),
        fault.integer("status"),
        message=fault.text("message"),
        type=fault.text("type"),
        code=fault.text("code"),
    )


def _kling_error(fault: Fault, _endpoint: str) -> Reply:
    return kling.reply(fault.integer("code"), fault.text("message"))


def _change_element(_store: TaskStore, _task: EmulatedTask, _fault: Fault) -> None:
    """Stand for a change that the provider's own module makes."""


def _mark_failed(task_store: TaskStore, task: EmulatedTask, fault: Fault) -> None:
    task_store.mark_failed(task, code=fault.text("code"), message=fault.text("message"))


def _rejects(description: str, code: int, message: str, *, status: int = 200) -> FaultKind:
    return FaultKind(description, settings={"status": status, "code": code, "message": message}, respond=_rejection)


def _kkiai(
    status: int,
    code: str,
    message: str,
    *,
    type: str = "new_api_error",  # noqa: A002 - kkiai.com's word
    description: str = "",
) -> FaultKind:
    settings: dict[str, object] = {
        "shape": (1, 2, 3, 4, 5, 6, 7),
        "status": status,
        "code": code,
        "message": message,
        "type": type,
    }
    return FaultKind(description or f"kkiai.com: {status} {code}", ("character", "any"), settings, respond=_kkiai_error)


def _of_provider(
    description: str,
    targets: tuple[str, ...],
    settings: Mapping[str, object],
    respond: Callable[[Fault, str], Reply] | None,
) -> FaultKind:
    return FaultKind(description, targets, settings, respond=respond, change_task=None if respond else _change_element)


BUSY = "Your call frequency is too high. Please try again later."
KINDS: dict[str, FaultKind] = {
    "lost_response": FaultKind(
        "the request is carried out, the connection closes without a response", send=transmission.close
    ),
    "reset": FaultKind("the connection is reset before anything happens", respond=lambda _f, _e: transmission.RESET),
    "delay": FaultKind(
        "the request is carried out at once, its response (or the callback) comes late",
        TARGETS,
        {"seconds": 1.0},
        send=lambda request, reply, fault: transmission.send_late(request, reply, fault.number("seconds")),
        plan=lambda posts, fault: [attrs.evolve(post, delay=fault.number("seconds")) for post in posts],
    ),
    "truncated": FaultKind("the response ends in the middle of its body", send=transmission.send_truncated),
    "slow_body": FaultKind(
        "the response comes in pieces, slowly",
        settings={"seconds": 0.5},
        send=lambda request, reply, fault: transmission.send_slowly(request, reply, fault.number("seconds")),
    ),
    "junk_json": FaultKind(
        "the request is carried out, the response is not JSON",
        send=lambda request, _, __: transmission.send(request, Reply(200, b'{"code":200,"msg":"succ', PLAIN_JSON)),
    ),
    "http_429": _rejects("rate limit as HTTP 429", 429, BUSY, status=429),
    "body_429": _rejects("rate limit as HTTP 200 with code 429", 429, BUSY),
    "http_500": _rejects("server error as HTTP 500", 500, "Server exception, please try again later", status=500),
    "body_500": _rejects("server error as HTTP 200 with code 500", 500, "Server exception, please try again later"),
    "status": _rejects("any status, code and message", 503, "Service unavailable", status=503),
    "html": FaultKind("the HTML page of a proxy", settings={"status": 502}, respond=_html),
    "maintenance": _rejects("code 455", 455, "Service is under maintenance"),
    "credits": _rejects("code 402", 402, "Insufficient credits"),
    "credits_500": _rejects("missing credits as code 500", 500, "Credits insufficient. Your balance is not enough."),
    "cap": _rejects("code 433", 433, "The usage of this API key has reached its limit"),
    "unauthorized": _rejects("code 401", 401, "You do not have access permissions"),
    "not_visible": FaultKind(
        "the task is unknown; with seconds, only while it is younger than that",
        ("poll",),
        {"form": ("422", "404", "null"), "seconds": 0.0},
        respond=_unknown_task,
        applies=_is_young,
    ),
    "stuck": FaultKind("the task never ends", ("create",), change_task=lambda _s, task, _f: never_end(task)),
    "fail_task": FaultKind(
        "the task fails", ("create",), {"code": "501", "message": "generation failed"}, change_task=_mark_failed
    ),
    "result_shape": FaultKind(
        "resultJson has another shape, or is missing",
        ("create",),
        {"shape": ("resultObject", *sorted((RESULT_SHAPES.keys() | RAW_SHAPES.keys()) - {"resultObject"}))},
        change_task=lambda store, task, fault: set_result_shape(task, fault.text("shape"), f"ch_{store.new_id()}"),
    ),
    "early_callback": FaultKind(
        "the task ends at once and its callback is delivered before createTask's response",
        ("create",),
        change_task=lambda _s, task, _f: task.end(),
    ),
    "double_callback": FaultKind("the callback is sent twice", ("callback",), plan=lambda posts, _: posts * 2),
    "lost_callback": FaultKind("the callback is never sent", ("callback",), plan=lambda _posts, _: []),
    "forged_callback": FaultKind(
        "a callback with a wrong signature or token is sent before the true one",
        ("callback",),
        {"how": ("signature", "token")},
        plan=lambda posts, fault: [PlannedPost(forged=fault.text("how")), *posts],
    ),
    "kkiai_error": _kkiai(
        500,
        "do_request_failed",
        "upstream error (request id: 20261101120000abc)",
        description="kkiai.com: an error of shape 1 to 7",
    ),
    "kling_error": FaultKind(
        "Kling: an error by its code, 1000 to 5002",
        (*KLING_ENDPOINTS, "any"),
        {"code": 5000, "message": ""},
        respond=_kling_error,
    ),
    "kling_stuck": FaultKind("Kling: the task never ends", ("element", "voice"), change_task=_change_element),
    "kling_fail": FaultKind(
        "Kling: the task fails",
        ("element", "voice"),
        {"message": "The video contains no person"},
        change_task=_change_element,
    ),
    "kling_empty": FaultKind("Kling: the result holds no element", ("element", "voice"), change_task=_change_element),
    "quota": _kkiai(429, "insufficient_user_quota", "user quota is not enough", type="insufficient_quota"),
    "model_not_found": _kkiai(503, "model_not_found", "No available channel for this model"),
    "invalid_url": _kkiai(404, "", "Invalid URL (POST /sora/v1/characters)", type="invalid_request_error"),
    "get_origin_task_failed": _kkiai(500, "get_origin_task_failed", "failed to get the origin task"),
    "task_not_exist": _kkiai(400, "task_not_exist", "task does not exist"),
    "cameo_permission_denied": _kkiai(400, "cameo_permission_denied", "cameo_permission_denied"),
    "rate": _kkiai(429, "rate_limit_exceeded", "Too many requests, please slow down"),
    **{name: _of_provider(*row) for name, row in {**gateways.FAULTS, **assets.FAULTS}.items()},
}


@attrs.define(eq=False)
class FaultRegistry:
    """The active faults, oldest first.

    Attributes:
        rng: Decides which requests a fault with a rate hits. It is not the generator
            of the tasks, so adding a fault does not change task durations.
        active: The faults that can still hit.
    """

    rng: random.Random
    active: list[Fault] = attrs.field(factory=list)

    def add(
        self, kind: str, *, on: str | None, times: int | None, rate: float, settings: Mapping[str, object]
    ) -> Fault:
        """Activate a fault.

        Raises:
            ValueError: An argument is invalid; the message lists the valid values.
        """
        if not 0 <= rate <= 1:
            raise ValueError(f"rate must be from 0 to 1, got {rate}")
        if times is not None and times < 1:
            raise ValueError(f"times must be at least 1 or None, got {times}")
        fault = attrs.evolve(_fault(kind, on, settings), times=times, rate=rate, active=self.active)
        self.active.append(fault)
        return fault

    def pick(self, endpoint: str, task: EmulatedTask | None) -> Fault | None:
        """Return the first fault that changes the response to this request, counted as hit."""
        for fault in self.active:
            kind = KINDS[fault.kind]
            if (kind.respond or kind.send) and fault.on in {endpoint, "any"} and self._hits(fault, task):
                return fault
        return None

    def take(self, target: str) -> list[Fault]:
        """Return all faults that change a new task ("create", "element") or a "callback", counted as hit."""
        effect = "plan" if target == "callback" else "change_task"
        candidates = [fault for fault in self.active if fault.on == target and getattr(KINDS[fault.kind], effect)]
        return [fault for fault in candidates if self._hits(fault, None)]

    def _hits(self, fault: Fault, task: EmulatedTask | None) -> bool:
        if not KINDS[fault.kind].applies(fault, task):
            return False
        if fault.rate < 1.0 and self.rng.random() >= fault.rate:
            return False
        fault.hits += 1
        if fault.hits == fault.times:
            fault.remove()
        return True


def _fault(kind: str, on: str | None, settings: Mapping[str, object]) -> Fault:
    row = KINDS.get(kind)
    if row is None:
        raise ValueError(f"unknown fault {kind!r}; known faults: {', '.join(sorted(KINDS))}")
    target = row.targets[0] if on is None else on
    if target not in row.targets:
        raise ValueError(f"{kind} does not apply to on={target!r}; valid values: {', '.join(row.targets)}")
    for name, value in settings.items():
        if not _is_valid(value, row.settings.get(name)):
            raise ValueError(f"{kind} has no setting {name}={value!r}; its settings: {dict(row.settings)}")
    defaults = {name: _default(known) for name, known in row.settings.items()}
    return Fault(kind, target, None, 1.0, defaults | dict(settings))


def _default(known: object) -> object:
    return cast("tuple[object, ...]", known)[0] if isinstance(known, tuple) else known


def _is_valid(value: object, known: object) -> bool:
    if isinstance(known, tuple):
        return value in cast("tuple[object, ...]", known)
    return known is not None and isinstance(value, (int, float) if isinstance(known, float) else type(known))


def parse_header(text: str) -> Fault:
    """Return the fault of one request, from `X-Emulator-Fault: delay; seconds=0.5`.

    Raises:
        ValueError: The kind or a setting is unknown.
    """
    kind, *pairs = (part.strip() for part in text.split(";"))
    known = KINDS[kind].settings if kind in KINDS else {}
    settings: dict[str, object] = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        settings[name] = value if isinstance(_default(known.get(name)), str) else _number(value)
    return _fault(kind, None, settings)


def _number(text: str) -> object:
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        return text


def fault_json(fault: Fault) -> dict[str, object]:
    """Return a fault as JSON values."""
    return {
        "kind": fault.kind,
        "on": fault.on,
        "times": fault.times,
        "rate": fault.rate,
        "hits": fault.hits,
        "settings": dict(fault.settings),
    }


def invalid_fault(error: Exception) -> Reply:
    """Return the response to a fault that does not exist or has wrong settings."""
    return Reply(HTTPStatus.BAD_REQUEST, encoded({"error": str(error)}), PLAIN_JSON)
