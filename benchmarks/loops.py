"""Use a client in a second event loop: `python loops.py PEER URL` prints the results.

The client is opened in one `asyncio.run` and used in another.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading

from peers import PEERS

TIMEOUT_SECONDS = 20.0


def main(peer: str, url: str) -> None:
    """Create one task in each of two event loops."""
    results = {"first": "hangs", "second": "hangs"}

    def report() -> None:
        print(json.dumps(results), flush=True)
        os._exit(0)

    timer = threading.Timer(TIMEOUT_SECONDS, report)
    timer.daemon = True
    timer.start()
    opening = PEERS[peer](url)

    async def first() -> None:
        sys.set_asyncgen_hooks(firstiter=None)  # asyncio.run would close the generator that the second loop uses
        await one_task(0, await opening.__aenter__())

    async def one_task(number: int, one: object) -> None:
        nonlocal kept
        kept = one
        await kept(number)

    kept = None
    for loop, work in (("first", first), ("second", lambda: one_task(1, kept))):
        try:
            asyncio.run(work())
        except Exception as error:  # noqa: BLE001 # whatever a peer raises
            results[loop] = f"{type(error).__name__}: {error}".splitlines()[0][:150]
        else:
            results[loop] = "works"
    report()


if __name__ == "__main__":
    main(*sys.argv[1:])
