"""Everything that can go wrong on demand: one table of kinds, and the faults that are active."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import attrs

from . import transmission as wire
from .responses import HTML, PLAIN_JSON, Reply, encoded, kie, kkiai_error
from .tasks import RAW_SHAPES, RESULT_SHAPES, EmulatedTask, TaskBook, reshape, stick

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Mapping

    from aiohttp import web

REQUESTS = ("create", "poll", "upload", "character", "omni", "other", "any")
PLACES = (*REQUESTS, "callback")


@attrs.frozen
class Post:
    """One planned delivery of a callback: after so many real seconds; forged in the named way or true."""

    delay: float = 0.0
    forged: str | None = None


@attrs.define(eq=False)
class Fault:
    """An active fault. `hits` counts how often it struck; `remove()` ends it."""

    kind: str
    on: str
    times: int | None
    rate: float
    settings: Mapping[str, object]
    hits: int = 0
    _active: list[Fault] = attrs.field(factory=list, repr=False)

    def remove(self) -> None:
        """Take it out; without effect if it is spent or out already."""
        if self in self._active:
            self._active.remove(self)

    def text(self, name: str) -> str:
        """A setting that is text."""
        return str(self.settings[name])

    def number(self, name: str) -> float:
        """A setting that is a number."""
        return float(cast("float", self.settings[name]))

    def integer(self, name: str) -> int:
        """A setting that is a whole number."""
        return int(cast("int", self.settings[name]))


@attrs.frozen
class Kind:
    """A row of the table: where such a fault may strike, its settings, and one or two ways to act."""

    note: str
    places: tuple[str, ...] = REQUESTS
    settings: Mapping[str, object] = attrs.field(factory=dict[str, object])
    """Each with its default; a tuple lists all that it can be, the default first."""
    answer: Callable[[Fault, str], Reply] | None = None
    """Answers instead of the server: nothing happens, nothing is created."""
    send: Callable[[web.Request, Reply, Fault], Awaitable[web.StreamResponse]] | None = None
    """The request lands, but its answer travels badly."""
    mark: Callable[[TaskBook, EmulatedTask, Fault], None] | None = None
    """Changes the task that was just created."""
    plan: Callable[[list[Post], Fault], list[Post]] | None = None
    """Changes how the callback is delivered."""
    applies: Callable[[Fault, EmulatedTask | None], bool] = lambda _fault, _task: True


def _refuse(fault: Fault, place: str) -> Reply:
    status, code, message = fault.integer("status"), fault.integer("code"), fault.text("message")
    if place == "character":
        return kkiai_error(1, code, message=message, type="new_api_error", code=str(code))
    return kie(code, message, status=status)


def _html(fault: Fault, _place: str) -> Reply:
    return Reply(fault.integer("status"), b"<html><body><h1>Bad gateway</h1><hr>nginx</body></html>", HTML)


def _unseen(fault: Fault, _place: str) -> Reply:
    forms = {
        "422": kie(422, "recordInfo is null"),
        "404": kie(404, "Task not found", status=404),
        "null": kie(200, "success"),
    }
    return forms[fault.text("form")]


def _young(fault: Fault, task: EmulatedTask | None) -> bool:
    seconds = fault.number("seconds")
    return seconds == 0 or (task is not None and task.clock() - task.created < seconds)


def _gateway_error(fault: Fault, _place: str) -> Reply:
    return kkiai_error(
        fault.integer("shape"),
        fault.integer("status"),
        message=fault.text("message"),
        type=fault.text("type"),
        code=fault.text("code"),
    )


def _spoil(book: TaskBook, task: EmulatedTask, fault: Fault) -> None:
    book.spoil(task, code=fault.text("code"), message=fault.text("message"))


def _refusal(note: str, code: int, message: str, *, status: int = 200) -> Kind:
    return Kind(note, settings={"status": status, "code": code, "message": message}, answer=_refuse)


def _gateway(status: int, code: str, message: str, *, type: str = "new_api_error", note: str = "") -> Kind:  # noqa: A002
    settings: dict[str, object] = {
        "shape": (1, 2, 3, 4, 5, 6, 7),
        "status": status,
        "code": code,
        "message": message,
        "type": type,
    }
    return Kind(note or f"kkiai: {status} {code}", ("character", "any"), settings, answer=_gateway_error)


BUSY = "Your call frequency is too high. Please try again later."
KINDS: dict[str, Kind] = {
    "lost_answer": Kind("the request lands, the connection closes without an answer", send=wire.close),
    "reset": Kind("the connection is reset before anything happens", answer=lambda _f, _p: wire.RESET),
    "delay": Kind(
        "the request lands at once, its answer (or the callback) comes late",
        PLACES,
        {"seconds": 1.0},
        send=lambda request, reply, fault: wire.later(request, reply, fault.number("seconds")),
        plan=lambda posts, fault: [attrs.evolve(post, delay=fault.number("seconds")) for post in posts],
    ),
    "truncated": Kind("the answer breaks off in the middle", send=wire.truncated),
    "slow_body": Kind(
        "the answer trickles in",
        settings={"seconds": 0.5},
        send=lambda request, reply, fault: wire.slowly(request, reply, fault.number("seconds")),
    ),
    "junk_json": Kind(
        "the request lands, the answer is not JSON",
        send=lambda request, _, __: wire.plainly(request, Reply(200, b'{"code":200,"msg":"succ', PLAIN_JSON)),
    ),
    "http_429": _refusal("rate limit as HTTP 429", 429, BUSY, status=429),
    "body_429": _refusal("rate limit as HTTP 200 with code 429", 429, BUSY),
    "http_500": _refusal("server error as HTTP 500", 500, "Server exception, please try again later", status=500),
    "body_500": _refusal("server error as HTTP 200 with code 500", 500, "Server exception, please try again later"),
    "status": _refusal("any status, code and message", 503, "Service unavailable", status=503),
    "html": Kind("a proxy's page", settings={"status": 502}, answer=_html),
    "maintenance": _refusal("code 455", 455, "Service is under maintenance"),
    "credits": _refusal("code 402", 402, "Insufficient credits"),
    "credits_500": _refusal("no credits, said as code 500", 500, "Credits insufficient. Your balance is not enough."),
    "cap": _refusal("code 433", 433, "The usage of this API key has reached its limit"),
    "unauthorized": _refusal("code 401", 401, "You do not have access permissions"),
    "not_visible": Kind(
        "the task is not known yet; with seconds, only while it is younger",
        ("poll",),
        {"form": ("422", "404", "null"), "seconds": 0.0},
        answer=_unseen,
        applies=_young,
    ),
    "stuck": Kind("the task never ends", ("create",), mark=lambda _b, task, _f: stick(task)),
    "fail_task": Kind("the task fails", ("create",), {"code": "501", "message": "generation failed"}, mark=_spoil),
    "result_shape": Kind(
        "resultJson has another shape, or none",
        ("create",),
        {"shape": ("resultObject", *sorted((RESULT_SHAPES.keys() | RAW_SHAPES.keys()) - {"resultObject"}))},
        mark=lambda book, task, fault: reshape(task, fault.text("shape"), f"ch_{book.hex_id()}"),
    ),
    "early_callback": Kind(
        "the task ends at once and its callback is delivered before createTask's answer",
        ("create",),
        mark=lambda _b, task, _f: task.end(),
    ),
    "double_callback": Kind("the callback comes twice", ("callback",), plan=lambda posts, _: posts * 2),
    "lost_callback": Kind("the callback never comes", ("callback",), plan=lambda _posts, _: []),
    "forged_callback": Kind(
        "a forged callback comes before the true one: its signature or its token is wrong",
        ("callback",),
        {"how": ("signature", "token")},
        plan=lambda posts, fault: [Post(forged=fault.text("how")), *posts],
    ),
    "kkiai_error": _gateway(
        500, "do_request_failed", "upstream error (request id: 20261101120000abc)", note="kkiai: shape 1-7"
    ),
    "quota": _gateway(429, "insufficient_user_quota", "user quota is not enough", type="insufficient_quota"),
    "model_not_found": _gateway(503, "model_not_found", "No available channel for this model"),
    "invalid_url": _gateway(404, "", "Invalid URL (POST /sora/v1/characters)", type="invalid_request_error"),
    "get_origin_task_failed": _gateway(500, "get_origin_task_failed", "failed to get the origin task"),
    "task_not_exist": _gateway(400, "task_not_exist", "task does not exist"),
    "cameo_permission_denied": _gateway(400, "cameo_permission_denied", "cameo_permission_denied"),
    "rate": _gateway(429, "rate_limit_exceeded", "Too many requests, please slow down"),
}


@attrs.define(eq=False)
class FaultBox:
    """The active faults, oldest first. Their chance is not the tasks', so that no fault moves a duration."""

    chance: random.Random
    active: list[Fault] = attrs.field(factory=list)

    def add(
        self, kind: str, *, on: str | None, times: int | None, rate: float, settings: Mapping[str, object]
    ) -> Fault:
        """Activate a fault.

        Raises:
            ValueError: the kind, the place or a setting is unknown; the message lists what there is.
        """
        if not 0 <= rate <= 1 or (times is not None and times < 1):
            raise ValueError(f"rate is 0 to 1 and times at least 1 or None, not {rate} and {times}")
        fault = attrs.evolve(_fault(kind, on, settings), times=times, rate=rate, active=self.active)
        self.active.append(fault)
        return fault

    def pick(self, place: str, task: EmulatedTask | None) -> Fault | None:
        """The first fault that changes how this request is answered, and count it as a hit."""
        for fault in self.active:
            kind = KINDS[fault.kind]
            if (kind.answer or kind.send) and fault.on in {place, "any"} and self._strikes(fault, task):
                return fault
        return None

    def take(self, place: str) -> list[Fault]:
        """All faults that change a new task (create) or a delivery (callback), each counted as a hit."""
        effect = "mark" if place == "create" else "plan"
        candidates = [fault for fault in self.active if fault.on == place and getattr(KINDS[fault.kind], effect)]
        return [fault for fault in candidates if self._strikes(fault, None)]

    def _strikes(self, fault: Fault, task: EmulatedTask | None) -> bool:
        if not KINDS[fault.kind].applies(fault, task):
            return False
        if fault.rate < 1.0 and self.chance.random() >= fault.rate:
            return False
        fault.hits += 1
        if fault.hits == fault.times:
            fault.remove()
        return True


def _fault(kind: str, on: str | None, settings: Mapping[str, object]) -> Fault:
    row = KINDS.get(kind)
    if row is None:
        raise ValueError(f"no fault {kind!r}; there are: {', '.join(sorted(KINDS))}")
    place = row.places[0] if on is None else on
    if place not in row.places:
        raise ValueError(f"{kind} cannot strike on {place!r}; it can on: {', '.join(row.places)}")
    for name, value in settings.items():
        if not _fits(value, row.settings.get(name)):
            raise ValueError(f"{kind} has no setting {name}={value!r}; its settings: {dict(row.settings)}")
    return Fault(
        kind, place, None, 1.0, {name: _default(known) for name, known in row.settings.items()} | dict(settings)
    )


def _default(known: object) -> object:
    return cast("tuple[object, ...]", known)[0] if isinstance(known, tuple) else known


def _fits(value: object, known: object) -> bool:
    if isinstance(known, tuple):
        return value in cast("tuple[object, ...]", known)
    return known is not None and isinstance(value, (int, float) if isinstance(known, float) else type(known))


def from_header(text: str) -> Fault:
    """A fault for one request: `X-Emulator-Fault: delay; seconds=0.5`.

    Raises:
        ValueError: it names no fault, or no setting of it.
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


def described(fault: Fault) -> dict[str, object]:
    """A fault as JSON values."""
    return {
        "kind": fault.kind,
        "on": fault.on,
        "times": fault.times,
        "rate": fault.rate,
        "hits": fault.hits,
        "settings": dict(fault.settings),
    }


def wrong_fault(error: Exception) -> Reply:
    """The answer to a fault that there is not."""
    return Reply(400, encoded({"error": str(error)}), PLAIN_JSON)
