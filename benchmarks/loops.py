"""A client opened in one `asyncio.run` and used in another: `python loops.py PEER URL` prints how that ends."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading

from peers import PEERS

PATIENCE = 20.0  # seconds


def main(peer: str, url: str) -> None:
    """Make one task in each of two event loops."""
    ends = {"first": "hangs", "second": "hangs"}

    def report() -> None:
        print(json.dumps(ends), flush=True)
        os._exit(0)

    timer = threading.Timer(PATIENCE, report)
    timer.daemon = True
    timer.start()
    opening = PEERS[peer](url)

    async def first() -> None:
        sys.set_asyncgen_hooks(firstiter=None)  # else asyncio.run would close what is to be used in the second
        await one_task(0, await opening.__aenter__())

    async def one_task(number: int, one: object) -> None:
        nonlocal kept
        kept = one
        await kept(number)

    kept = None
    for turn, work in (("first", first), ("second", lambda: one_task(1, kept))):
        try:
            asyncio.run(work())
        except Exception as error:  # noqa: BLE001 # whatever a peer raises
            ends[turn] = f"{type(error).__name__}: {error}".splitlines()[0][:150]
        else:
            ends[turn] = "works"
    report()


if __name__ == "__main__":
    main(*sys.argv[1:])
