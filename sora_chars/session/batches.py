"""A batch whose requests a session submits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sora_chars.batch.batch import Batch
from sora_chars.batch.options import BatchOptions, submit_concurrency
from sora_chars.ledger import EntryState

if TYPE_CHECKING:
    from sora_chars.batch.budget import Price
    from sora_chars.batch.options import Rows
    from sora_chars.models import Request
    from sora_chars.polling.handle import TaskHandle

    from .dispatcher import Dispatcher
    from .session import CharacterSession

_FAILED = {EntryState.FAILED, EntryState.REJECTED}


def new_batch(
    session: CharacterSession,
    dispatcher: Dispatcher,
    requests: Rows,
    *,
    concurrency: int = 100,
    provider: str | None = None,
    budget: float | None = None,
    price: Price | None = None,
    timeout: float | None = None,
    retry_failed: bool = False,
) -> Batch:
    """Return the batch of `CharacterSession.create_many`."""
    seen: set[str] = set()  # a key that fails in this batch is not sent again for another row
    counted: set[str] = set()  # the keys whose earlier attempts count in the budget

    async def start(request: Request, name: str | None) -> TaskHandle[Any]:
        name = name or provider
        if retry_failed and request.key and request.key not in seen:
            seen.add(request.key)
            entry = await session.entry(request.key)
            if entry and entry.state in _FAILED and name in {None, entry.provider}:
                return await session.retry(entry.key, request)
        return await session.submit(request, provider=name)

    async def cost_before(request: Request) -> float:
        entry = await session.entry(request.key) if request.key and request.key not in counted else None
        if entry is None:
            return 0.0
        counted.add(entry.key)
        costs = [attempt.credits for attempt in await session.ledger.attempts(entry.key)]
        if retry_failed and entry.state in _FAILED:
            costs.append(entry.credits)
        return sum(cost for cost in costs if cost is not None)

    serving = session.providers if provider is None else (dispatcher.provider(provider),)
    return Batch(
        options=BatchOptions(
            requests=requests,
            start=start,
            cost_before=cost_before,
            concurrency=concurrency,
            submit_concurrency=max(map(submit_concurrency, serving)),
            timeout=session.timeout if timeout is None else timeout,
            budget=budget,
            price=price,
        )
    )
