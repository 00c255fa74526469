"""Part D: early, late, duplicate, forged, replayed and oversized callbacks, and a flood of invalid ones."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import secrets
import tempfile
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import attrs
from faults import receiving
from measure import memory_bytes
from peers import BODY, KEY

from sora_chars import CallbackReceiver, CharacterSession, EntryState, FixedInterval, Kie, TaskRequest
from sora_chars.testing import Emulator
from sora_chars.testing.emulator.callbacks import sign

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

HMAC_KEY = "benchmark-hmac-key"
TASKS, QUICK_TASKS = 50, 5
FLOOD, QUICK_FLOOD = 20_000, 500
KINDS: dict[str, tuple[str, dict[str, Any]] | None] = {
    "early": ("early_callback", {}),
    "late": ("delay", {"on": "callback", "seconds": 0.5}),
    "double": ("double_callback", {}),
    "forged signature": ("forged_callback", {"how": "signature"}),
    "forged token": ("forged_callback", {"how": "token"}),
    "lost": ("lost_callback", {}),
    "replayed after the end": None,
    "oversized": None,
}


def figures(*, quick: bool) -> dict[str, Any]:
    """Return one row for each kind, and the memory that a flood of invalid callbacks leaves."""
    logging.getLogger("sora_chars.callbacks").setLevel(logging.ERROR)  # it logs a warning for each rejection
    tasks, flood = (QUICK_TASKS, QUICK_FLOOD) if quick else (TASKS, FLOOD)
    return {
        "kinds": [asyncio.run(run_kind(kind, tasks)) for kind in KINDS],
        "flood": asyncio.run(run_flood(flood)),
    }


@attrs.define(eq=False)
class Scene:
    """An emulator, a session and the receiver of its callbacks."""

    emulator: Emulator
    session: CharacterSession
    receiver: CallbackReceiver


@asynccontextmanager
async def scene(seconds: tuple[float, float]) -> AsyncGenerator[Scene, None]:
    """Open a scene with signed callbacks; tasks take `seconds`, from the minimum to the maximum."""
    async with Emulator(durations=seconds, hmac_key=HMAC_KEY, credits=1e9) as emulator, receiving() as (receivers, url):
        kie = Kie(KEY, base_url=emulator.url, callback_url=f"{url}/hooks", limits=None)
        with tempfile.TemporaryDirectory() as folder:
            ledger = Path(folder) / "characters.db"
            async with CharacterSession(kie, ledger=ledger, polling=FixedInterval(0.2)) as session:
                receivers.append(CallbackReceiver(session, HMAC_KEY))
                yield Scene(emulator, session, receivers[0])


async def run_kind(kind: str, tasks: int) -> dict[str, Any]:
    """Run tasks whose callbacks all have the fault `kind`."""
    async with scene((0.3, 0.6)) as it:
        if fault := KINDS[kind]:
            it.emulator.fault(fault[0], times=None, **fault[1])
        requests = [TaskRequest(**BODY, key=f"key-{number}") for number in range(tasks)]
        handles = await asyncio.gather(*(it.session.submit(request) for request in requests))
        statuses: list[int] = []
        if kind == "oversized":
            statuses = [await post(it, handle.task_id, b" " * 2 * 2**20) for handle in handles]
        results = await asyncio.gather(*(handle.result(30) for handle in handles))
        if kind == "replayed after the end":
            body = [json.dumps({"code": 200, "data": {"taskId": handle.task_id}}).encode() for handle in handles]
            pairs = zip(handles, body, strict=True)
            statuses = [await post(it, handle.task_id, content) for handle, content in pairs]
        if kind != "lost":
            await it.emulator.until(lambda: all(task.deliveries for task in it.emulator.tasks.values()))
        statuses += [post.status or 0 for task in it.emulator.tasks.values() for post in task.deliveries]
        entries = [entry async for entry in it.session.ledger.entries(states=set(EntryState))]
        return {
            "kind": kind,
            "tasks": len(it.emulator.tasks),
            "results": len({result.task_id for result in results}),
            "entries_succeeded": sum(entry.state is EntryState.SUCCEEDED for entry in entries),
            "entries": len(entries),
            "callbacks": len(statuses),
            "refused": sum(status != 200 for status in statuses),
        }


async def post(it: Scene, task_id: str, body: bytes) -> int:
    """Post a signed callback to a task's own URL."""
    now = str(int(time.time()))
    headers = {
        "Content-Type": "application/json",
        "X-Webhook-Timestamp": now,
        "X-Webhook-Signature": sign(HMAC_KEY, task_id, now),
    }
    url = str(it.emulator.tasks[task_id].callback_url)
    try:
        async with aiohttp.ClientSession() as http, http.post(url, data=body, headers=headers) as response:
            return response.status
    except aiohttp.ClientError:  # the receiver closed the connection, so it has not accepted the callback
        return 0


async def run_flood(count: int) -> dict[str, Any]:
    """Pass invalid callbacks to the receiver: unknown tokens, and a known token with other ids, signed as by kie.ai."""
    async with scene((1e6, 1e6)) as it:
        handle = await it.session.submit(TaskRequest(**BODY, key="key"))
        known = str(it.emulator.tasks[handle.task_id].callback_url)
        statuses: dict[int, int] = {}

        async def post_junk(url: str, task_id: str) -> None:
            now = str(int(time.time()))
            headers = {"content-type": "application/json", "x-webhook-timestamp": now}
            headers["x-webhook-signature"] = sign(HMAC_KEY, task_id, now)

            async def body() -> AsyncGenerator[bytes, None]:
                yield json.dumps({"code": 200, "data": {"taskId": task_id, "state": "success"}}).encode()

            status, _ = await it.receiver.handle("POST", url, headers, body())
            statuses[status] = statuses.get(status, 0) + 1

        token = known.rpartition("/")[2]
        for _ in range(100):
            await post_junk(known, secrets.token_hex(16))
        gc.collect()
        before = memory_bytes()
        began = time.perf_counter()
        for number in range(count):
            url = known if number % 2 else f"/hooks/{secrets.token_urlsafe(len(token) * 3 // 4)}"
            await post_junk(url, secrets.token_hex(16))
        seconds = time.perf_counter() - began
        gc.collect()
        growth = max(0, memory_bytes() - before)
        accepted = sum(count for status, count in statuses.items() if status == 200)
        return {"callbacks": count, "seconds": seconds, "bytes_each": growth / count, "taken": accepted}
