"""The emulator's dashboard: counts, tasks, faults, endpoints and the latest requests.

The page needs no scripts and no other files, and reloads itself once per second.
"""

from __future__ import annotations

from collections import Counter
from html import escape
from http import HTTPStatus
from itertools import islice
from string import Template
from typing import TYPE_CHECKING

from .responses import HTML, Reply

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .faults import Fault
    from .state import EmulatorState
    from .tasks import EmulatedTask

MAX_TASKS = 20
MAX_REQUESTS = 12

PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="1">
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">
<title>sora-chars emulator</title>
<style>
:root { color-scheme: light dark; --paper: #f6f7f9; --card: #fff; --ink: #1b2130; --soft: #69728a;
  --line: #e4e7ee; --wait: #7d879f; --work: #3366dd; --good: #1f8a56; --bad: #c8383c; --warn: #a86300 }
@media (prefers-color-scheme: dark) { :root { --paper: #12151c; --card: #1a1f29; --ink: #e8ebf2;
  --soft: #8e97ad; --line: #2a303d; --wait: #5d667c; --work: #3f6fe8; --good: #2c8a60; --bad: #d9575a;
  --warn: #e0a03c } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 1120px; padding: 32px 24px 48px; background: var(--paper);
  color: var(--ink); font: 14px/1.5 system-ui, sans-serif }
header { display: flex; flex-wrap: wrap; align-items: baseline; gap: 4px 16px; margin-bottom: 20px }
h1 { margin: 0; font-size: 22px; letter-spacing: -.01em }
h2 { margin: 0 0 10px; font-size: 12px; letter-spacing: .06em; text-transform: uppercase; color: var(--soft) }
code { font: 12.5px/1.5 ui-monospace, "DejaVu Sans Mono", monospace }
section, .tiles div { background: var(--card); border: 1px solid var(--line); border-radius: 10px }
section { padding: 16px 18px; margin-bottom: 16px; overflow-x: auto }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(120px, 1fr)); gap: 12px;
  margin-bottom: 16px }
.tiles div { padding: 12px 16px }
.tiles b { display: block; font-size: 24px; line-height: 1.25 }
.tiles span, .soft { color: var(--soft) }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 0 16px;
  align-items: start }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums }
th { text-align: left; font-weight: 500; color: var(--soft); padding: 0 12px 6px 0 }
td { border-top: 1px solid var(--line); padding: 6px 12px 6px 0; white-space: nowrap }
td:last-child, th:last-child { padding-right: 0 }
p { margin: 10px 0 0 }
.chip { display: inline-block; min-width: 82px; padding: 0 9px; border-radius: 99px; text-align: center;
  color: #fff; font-size: 12px; background: var(--wait) }
.queuing, .generating { background: var(--work) }
.success { background: var(--good) }
.fail { background: var(--bad) }
progress { width: 130px; height: 6px; vertical-align: middle; accent-color: var(--work) }
.bad { color: var(--bad) }
.warn { color: var(--warn) }
</style></head><body>
<header><h1>sora-chars emulator</h1><code>$url</code><span class="soft">kie.ai &middot; uploads &middot;
kkiai.com &middot; $speed &times; speed &middot; $credits credits remaining</span></header>
<div class="tiles">$tiles</div>
<section><h2>Tasks</h2>$tasks</section>
<section><h2>Faults</h2>$faults</section>
<div class="pair"><section><h2>Endpoints</h2>$routes</section>
<section><h2>Latest requests</h2>$requests</section></div>
</body></html>
""")


def render(state: EmulatorState, routes: Iterable[tuple[str, str]]) -> Reply:
    """Return the page. It shows no API key, no callback URL and no query string."""
    text = PAGE.substitute(
        url=escape(state.url),
        speed=f"{state.task_store.speed:g}",
        credits=f"{state.task_store.credits:g}",
        tiles="".join(f"<div><b>{value}</b><span>{name}</span></div>" for name, value in _tiles(state).items()),
        tasks=_tasks(state.task_store.tasks),
        faults=_table(("kind", "on", "hits", "remaining", "rate", "settings"), map(_fault, state.faults.active)),
        routes=_table(("method", "path", "requests"), _routes(state, routes)),
        requests=_requests(state),
    )
    return Reply(HTTPStatus.OK, text.encode(errors="replace"), HTML)


def _tiles(state: EmulatorState) -> dict[str, object]:
    counts = state.counts
    mean = sum(counts.detection_delays) / len(counts.detection_delays) if counts.detection_delays else None
    return {
        "tasks created": counts.creates,
        "characters": counts.characters + counts.omni,
        "polls": counts.polls,
        "callbacks": f"{counts.callbacks_accepted}/{counts.callbacks_sent}",
        "uploads": counts.uploads,
        "429 responses": counts.rate_limited.total(),
        "detection delay": "&ndash;" if mean is None else f"{mean:.2f} s",
    }


def _tasks(tasks: dict[str, EmulatedTask]) -> str:
    states = Counter(task.state for task in tasks.values())
    newest = [tasks[task_id] for task_id in islice(reversed(tasks), 10 * MAX_TASKS)]
    shown = sorted(newest, key=lambda task: task.finished)[:MAX_TASKS]
    summary = " &middot; ".join(f"{count} {state}" for state, count in states.items())
    head = ("state", "progress", "model", "task", "polls", "callback")
    return _table(head, map(_task, shown)) + (f'<p class="soft">{summary}</p>' if summary else "")


def _task(task: EmulatedTask) -> tuple[str, ...]:
    state = task.state
    share = round(task.progress * 100)
    return (
        f'<span class="chip {state}">{state}</span>',
        f'<progress max="100" value="{share}"></progress> <span class="soft">{share} %</span>',
        escape(task.model),
        f"<code>{task.task_id}</code>",
        str(task.polls),
        _callback(task),
    )


def _callback(task: EmulatedTask) -> str:
    if task.callback_url is None:
        return '<span class="soft">none</span>'
    if not task.deliveries:
        return "due" if task.finished else "pending"
    return ", ".join(str(delivery.status or "no response") for delivery in task.deliveries)


def _fault(fault: Fault) -> tuple[str, ...]:
    remaining = "&infin;" if fault.times is None else str(fault.times - fault.hits)
    settings = ", ".join(f"{name}={value}" for name, value in fault.settings.items())
    kind = f'<span class="warn">{fault.kind}</span>'
    return kind, fault.on, str(fault.hits), remaining, f"{fault.rate:.0%}", escape(settings)


def _routes(state: EmulatorState, routes: Iterable[tuple[str, str]]) -> Iterable[tuple[str, ...]]:
    for method, path in routes:
        yield method, f"<code>{path}</code>", str(state.request_counts[method, path])


def _requests(state: EmulatorState) -> str:
    latest = islice(reversed(state.requests), MAX_REQUESTS)
    rows = (
        (
            _status(logged.status),
            logged.method,
            f"<code>{escape(logged.path.partition('?')[0])}</code>",
            f'<span class="warn">{logged.fault or ""}</span>',
        )
        for logged in latest
    )
    return _table(("status", "method", "path", "fault"), rows)


def _status(status: int) -> str:
    if 0 < status < HTTPStatus.BAD_REQUEST:
        return str(int(status))
    return f'<span class="bad">{int(status) or "reset"}</span>'


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    if not body:
        return '<span class="soft">none</span>'
    return f"<table><tr>{''.join(f'<th>{name}</th>' for name in head)}</tr>{body}</table>"
