"""A run of a batch: how a signal ends it."""

from __future__ import annotations

import asyncio
import signal

import pytest

from sora_chars.cli.batch.runner import BatchRun
from sora_chars.cli.batch.spool import open_spool
from sora_chars.cli.context import CommandContext
from sora_chars.cli.options import Settings


async def test_only_a_signal_suppresses_cancellation() -> None:
    """Without a signal, the cancellation reaches the caller."""
    with open_spool() as spool:
        batch_run = BatchRun(
            context=CommandContext(),
            settings=Settings(provider="kie", base_url=None, timeout=None),
            spool=spool,
            output="-",
            write=print,
            concurrency=1,
            budget=None,
            price=None,
            wait_on_interrupt=True,
            shutdown_timeout=8.0,
        )
    with pytest.raises(asyncio.CancelledError), batch_run._until_signal():
        raise asyncio.CancelledError
    batch_run.interrupted(signal.SIGINT)
    with batch_run._until_signal():
        raise asyncio.CancelledError
