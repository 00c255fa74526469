"""Counts what is lost or sent twice at Kling when processes are killed at every step.

The processes and the kills are those of `faults.py`. Kling can be asked for the task of a
key, so every process first settles what is unknown by asking, as `recover` does; there are
no callbacks, and no person resolves anything before the counts. What is unknown in the end
must be what never arrived. Finally these keys are resolved as never sent, and created.
Usage: python benchmarks/faults_kling.py [--quick]
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import tempfile
import threading
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import aiohttp
from faults import (
    KEY,
    RANDOM,
    ROWS,
    KillingStore,
    Outcome,
    ProcessKiller,
    Supervisor,
    Trial,
    WorkerOptions,
    key_of,
    plan,
    report,
    tracing,
)

from sora_chars import CharacterSession, EntryState, FixedInterval, Kling, Ledger, SubmissionUnknownError, open_ledger
from sora_chars.testing import Emulator
from sora_chars.testing.emulator import kling

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator
    from contextlib import AbstractAsyncContextManager

    from sora_chars import TaskSnapshot
    from sora_chars.models import Request

VIDEO = "https://clips.example/rex.mp4"


class KillingKling(Kling):
    """A provider whose requests and responses are steps."""

    def __init__(self, url: str, http: aiohttp.ClientSession, killer: ProcessKiller) -> None:
        super().__init__(KEY, base_url=url, http=http)
        self._killer = killer

    async def submit(
        self,
        request: Request,
        *,
        key: str,
        callback_url: str | None,
        on_send: Callable[[], AbstractAsyncContextManager[None]],
    ) -> TaskSnapshot:
        """Submit the request."""

        @asynccontextmanager
        async def observed() -> AsyncGenerator[None, None]:
            async with on_send():
                yield
            self._killer.reach("response read")

        return await super().submit(request, key=key, callback_url=callback_url, on_send=observed)


class KlingWorkerOptions(WorkerOptions):
    """The options of a worker process of this benchmark."""

    script: ClassVar[str] = __file__


async def work(options: WorkerOptions) -> None:
    """Settle what is unknown and create the remaining characters, or be killed."""
    killer = ProcessKiller(options.step, options.after, options.in_flight_file)
    if options.step == RANDOM:
        threading.Timer(options.after / 1000, os.kill, (os.getpid(), signal.SIGKILL)).start()
    keys = [key_of(number) for number in range(options.keys)]
    random.Random(options.seed).shuffle(keys)
    async with aiohttp.ClientSession(trace_configs=[tracing(killer)]) as http:
        provider = KillingKling(options.url, http, killer)
        ledger = Ledger(KillingStore(options.ledger, killer))
        async with CharacterSession(provider, ledger=ledger, polling=FixedInterval(0.05), timeout=60) as session:
            running = [handle async for handle in session.recover()]
            ended = {EntryState.SUCCEEDED, EntryState.UNKNOWN}
            done = {entry.key async for entry in ledger.entries(states=ended)}
            todo = iter([key for key in keys if key not in done])
            await asyncio.gather(*(create_each(session, todo) for _ in range(options.concurrency)), *running)
    os._exit(0)  # before the timer of a random kill fires


async def create_each(session: CharacterSession, keys: Iterator[str]) -> None:
    """Create one character after the other. Unknown entries stay unknown."""
    for key in keys:
        with suppress(SubmissionUnknownError):
            await session.create(video=VIDEO, name="Rex", prompt=key, key=key)


class KlingSupervisor(Supervisor):
    """Starts workers until every key is done, settles by asking, and counts."""

    options: ClassVar[type[WorkerOptions]] = KlingWorkerOptions

    async def _count(self) -> None:
        for handle in [handle async for handle in self.session.recover()]:
            await handle
        await super()._count()

    def tasks(self) -> list[tuple[str, str]]:
        """Return the id and the key of each task on the server."""
        return [(task_id, str(task.external_id)) for task_id, task in self.emulator.kling.tasks.items()]


async def run(trial: Trial, folder: Path) -> tuple[Outcome, int]:
    """Run a trial, and return its counts and how many creates the server received."""
    async with Emulator(durations=(0.05, 0.3)) as emulator:
        ledger = open_ledger(folder / "characters.db")
        provider = Kling(KEY, base_url=emulator.url)
        async with CharacterSession(provider, ledger=ledger, polling=FixedInterval(0.05)) as session:
            outcome = await KlingSupervisor(trial, folder, emulator, session, "").run()
            return outcome, emulator.request_counts["POST", kling.ELEMENTS]


def main() -> None:
    """Run the trial and print the tables."""
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "*"  # every server is on loopback
    keys = 100 if "--quick" in sys.argv else 1000
    trial = Trial(keys=keys, kills=plan(keys, random.Random(1)))
    with tempfile.TemporaryDirectory() as folder:
        outcome, received = asyncio.run(run(trial, Path(folder)))
    report(keys, {"Kling, asked": outcome}, ROWS | {"creates that the server received": lambda _: received})


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        asyncio.run(work(WorkerOptions.parse(sys.argv[2:])))
    else:
        main()
