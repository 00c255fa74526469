"""What a provider and a pace have to offer, so that anybody can write one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from .errors import ConfigurationError
from .ratelimit.window import UNLIMITED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType
    from typing import Self

    from .models import Eta, ModelInfo, Request, TaskSnapshot
    from .ratelimit.window import Account


class Provider(Protocol):
    """A service that makes characters. Inherit from it, write `submit` and, unless `synchronous`, `fetch`.

    `name` is how requests and ledgers name it. A `synchronous` provider's first snapshot is already finished.
    `callback_url`: the base URL under which callbacks of this provider's tasks arrive, if they do. `account`: whose
    limits it keeps, which processes on one ledger then divide between them; None for none that are known here.
    """

    name: str
    synchronous: bool = False
    callback_url: str | None = None
    account: Account | None = None

    def check(self, request: Request) -> Sequence[str]:
        """Say why this provider cannot serve `request`, a line for each reason, naming the field; empty if it can.

        No network, and no more disk than a local file's headers.
        """
        del request
        return ()

    async def submit(
        self, request: Request, *, callback_url: str | None, on_send: Callable[[], AbstractAsyncContextManager[None]]
    ) -> TaskSnapshot:
        """Start the task and return its first snapshot.

        `async with on_send():` stands around the request that costs money, entered once nothing is left to wait for:
        the ledger is told, and the session no longer cancels this coroutine when its caller goes away. A `harmless`
        error that leaves it takes that back.

        Raises:
            NoAnswerError: not `harmless` when the paid request may have arrived; it is then never sent again.
            ProviderError: the provider refused.
        """
        ...

    async def fetch(self, task_id: str) -> TaskSnapshot:
        """Look at the task once.

        Raises:
            ProviderError: `transient` when a later look may work.
        """
        raise ConfigurationError(f"{self.name} answers at once and has no tasks to look at: {task_id!r}.")

    async def fetch_if_changed(self, seen: TaskSnapshot) -> TaskSnapshot:
        """Look again at a task that was last `seen` so; may return `seen` itself. Raises as `fetch`."""
        return await self.fetch(seen.task_id)

    async def poll_capacity(self) -> int:
        """How many times `fetch` would be sent at once, as soon as it would be once.

        So tasks are picked as late as can be. When more are due, the most promising are looked at first.
        """
        return UNLIMITED

    async def credit(self) -> float:
        """How many credits the account has left."""
        raise ConfigurationError(f"{self.name} does not tell how many credits are left.")

    async def models(self) -> list[ModelInfo]:
        """Which models can be asked for now."""
        raise ConfigurationError(f"{self.name} does not list its models.")

    async def __aenter__(self) -> Self:
        """Open connections. Each session that uses the provider enters it once."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close what was opened, once the last session has left."""
        del kind, error, traceback


class PollingStrategy(Protocol):
    """When to look at a task next. Inherit from it and write `delay`; the rest is for those that learn."""

    def delay(self, snapshot: TaskSnapshot | None, age: float) -> float:
        """Seconds until the next look at a task that is `age` seconds old; `snapshot` is the last one, if any."""
        ...

    def observe_finished(self, snapshot: TaskSnapshot) -> None:
        """Hear of a task that has ended, well or not; also of those that are on record when a session opens."""
        del snapshot

    def observe(self, snapshot: TaskSnapshot, age: float, unseen: float) -> None:
        """Hear what a look has shown of a task `age` seconds old that was last looked at `unseen` seconds ago.

        Unless written, `learn` hears of it if the task has ended.
        """
        del age, unseen
        if snapshot.finished:
            self.observe_finished(snapshot)

    def priority(self, snapshot: TaskSnapshot | None, age: float, unseen: float) -> float:
        """How much waiting a look now saves at a task `age` seconds old that was last looked at `unseen` seconds ago.

        Of the tasks that are due when fewer looks are allowed, the one with the largest gain goes first. Seconds, 0 or
        more; growing with `unseen`, so that none starves.
        """
        del snapshot, age
        return unseen

    def estimate(self, snapshot: TaskSnapshot | None, age: float) -> Eta | None:
        """When a task that has not ended at `age` seconds will, if anything is known."""
        del snapshot, age
        return None
