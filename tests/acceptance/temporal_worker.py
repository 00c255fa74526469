"""A Temporal worker, for a test that kills it: `python temporal_worker.py ADDRESS EMULATOR_URL LEDGER`."""

from __future__ import annotations

import asyncio
import sys

from temporalio.client import Client
from temporalio.worker import Worker

from sora_chars import CharacterSession, FixedInterval, Kie
from sora_chars.contrib.temporal import CharacterActivities, CharacterWorkflow


async def main(address: str, url: str, ledger: str) -> None:
    """Serve the workflow and its activity until the process is killed."""
    client = await Client.connect(address)
    kie = Kie("key", base_url=url, limits=None)
    async with CharacterSession(kie, ledger=ledger, polling=FixedInterval(0.2)) as session:
        activities = CharacterActivities(session)
        worker = Worker(client, task_queue="characters", workflows=[CharacterWorkflow], activities=[activities.advance])
        async with worker:
            sys.stdout.write("ready\n")
            sys.stdout.flush()
            await asyncio.Event().wait()


asyncio.run(main(*sys.argv[1:]))
