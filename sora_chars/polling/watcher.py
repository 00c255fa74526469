"""One scheduler that polls every waiting task of a session.

Each provider has a poller: a heap of due times and a bounded number of looks under way. A waiting task costs one small
object and one future, no asyncio task of its own. Time is the loop's.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from functools import partial
from typing import TYPE_CHECKING, Literal

import attrs

from sora_chars.errors import (
    MissingCharacterError,
    ProviderError,
    SoraCharsError,
    TaskNotFoundError,
    WatcherStoppedError,
    printable,
)

from .callback_health import CallbackHealth
from .due_queue import TICK, DueQueue
from .watched_task import WatchedTask

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sora_chars.models import Eta, TaskSnapshot
    from sora_chars.protocols import PollingStrategy, Provider

    from .watched_task import OnFinished

log = logging.getLogger("sora_chars.watcher")

_SLOTS = 64  # a second, in which looks begin together
_LONG = 0.25  # seconds; looks that are rarer may wait for each other
_STRETCH = 5.0  # how much rarer a task is polled while callbacks arrive
_FAULT_DELAYS = (1.0, 30.0)
_MISSING_DELAYS = (1.0, 5.0)
_BACKSTOP = 30.0  # seconds between our own looks at a task that another process polls, which may have come to a stop
_TOLD = 1000  # tasks of a closed session, whose waiters hear of it in one turn of the event loop
_FIRST_ECHO = 0.25  # seconds until the next look when a callback came before its record showed it


def _together(due: float) -> float:
    """A sixty-fourth of a second later at most, so that one waking serves all who are due by then."""
    return math.ceil(due * _SLOTS) / _SLOTS


@attrs.define(eq=False, kw_only=True)
class TaskWatcher:
    """Polls tasks until they end.

    `poll_concurrency`: looks under way at once, for each provider. `fault_budget`: seconds of nothing but passing
    faults after which a wait ends. `grace`: seconds for which "no such task" may mean "not visible yet".
    """

    polling: PollingStrategy
    poll_concurrency: int = 16
    fault_budget: float = 300.0
    grace: float = 90.0
    clock: Callable[[], float] = time.time
    polls: set[asyncio.Task[None]] = attrs.field(factory=set["asyncio.Task[None]"], init=False, repr=False)
    _pollers: dict[str, ProviderPoller] = attrs.field(factory=dict[str, "ProviderPoller"], init=False)
    callback_health: CallbackHealth = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self.callback_health = CallbackHealth(self._snap_back)

    def watch(
        self,
        provider: Provider,
        task_id: str,
        *,
        snapshot: TaskSnapshot | None = None,
        expects_callback: bool = False,
        polled_elsewhere: bool = False,
        on_finished: tuple[OnFinished, ...] = (),
    ) -> WatchedTask:
        """WatchedTask a task, or join those who watch it. With the `snapshot` of its submission it is known to be new.

        `polled_elsewhere`: another process polls it, so that a look now and then is enough.
        """
        loop = asyncio.get_running_loop()
        poller = self._pollers.get(provider.name)
        if poller is None:
            poller = self._pollers[provider.name] = ProviderPoller(provider=provider, watcher=self)
        watch = poller.watches.get(task_id)
        if watch is None:
            watch = WatchedTask(
                task_id, loop.create_future(), expects_callback, snapshot, polled_elsewhere, on_finished
            )
            if snapshot and snapshot.finished:
                watch.end(snapshot)
                return watch
            poller.watches[task_id] = watch
            watch.last_polled = loop.time()
            watch.started = watch.last_polled if snapshot else None
            try:
                delay = self.polling.delay(snapshot, 0.0) if snapshot else _BACKSTOP if polled_elsewhere else 0.0
            except Exception as error:  # noqa: BLE001 # a pace's bug must not lose an id that was just paid for
                poller.give_up(watch, error)
            else:
                poller.schedule(watch, delay, stretch=True)
        elif new := tuple(call for call in on_finished if call not in watch.on_finished):
            watch.on_finished += new
        return watch

    def nudge(self, provider: str, task_id: str, *, by: Literal["poll", "callback"] = "callback") -> bool:
        """Look at a task now, since a callback says that it ended. False when nobody waits for it."""
        poller = self._pollers.get(provider)
        watch = poller.watches.get(task_id) if poller else None
        if poller is None or watch is None:
            return False
        if not (watch.polling or watch.nudged):  # else the look under way may be too early: it is followed by another
            poller.schedule(watch, 0.0)
        watch.nudged = True
        watch.woken_by = by
        watch.stale_polls = 0
        return True

    def take_over(self, provider: str, watch: WatchedTask) -> None:
        """Poll a task from now on whose poller has gone."""
        watch.polled_elsewhere = False
        self.nudge(provider, watch.task_id, by="poll")

    async def poll(self, provider: Provider, watch: WatchedTask) -> TaskSnapshot:
        """Look at a task once, out of turn, and show what was seen to all who wait.

        Raises:
            SoraCharsError: the look failed; waits go on.
        """
        if watch.snapshot and watch.snapshot.finished:
            return watch.snapshot
        snapshot = await provider.fetch(watch.task_id)
        if snapshot.finished:
            await watch.finished_with(snapshot)
        poller = self._pollers.get(provider.name)
        if poller and poller.watches.get(watch.task_id) is watch and not watch.polling:
            poller.see(watch, snapshot)
        return snapshot

    def observe(self, snapshot: TaskSnapshot, age: float, unseen: float) -> None:
        """Tell the pace what a look has shown."""
        try:
            self.polling.observe(snapshot, age, unseen)
        except Exception:
            log.exception("pace.failed")  # its bug must not cost what was paid for

    def estimate(self, watch: WatchedTask) -> Eta | None:
        """When a task will end, as far as its pace knows."""
        if watch.started is None or watch.future.done():
            return None
        return self.polling.estimate(watch.snapshot, asyncio.get_running_loop().time() - watch.started)

    def _snap_back(self) -> None:
        for poller in self._pollers.values():
            poller.snap_back()

    def discard(self, poller: ProviderPoller) -> None:
        """Forget a poller that died, so that the next `watch` starts a new one."""
        self._pollers.pop(poller.provider.name, None)

    async def aclose(self) -> None:
        """Stop polling. Whoever still waits gets a `WatcherStoppedError`."""
        pollers, self._pollers = list(self._pollers.values()), {}
        self.callback_health.record_miss()
        asyncio_tasks = [poller.stop() for poller in pollers]
        why = "its session was closed"
        try:
            for poller in pollers:
                waiting = list(poller.watches.values())
                for start in range(0, len(waiting), _TOLD):
                    poller.tell(waiting[start : start + _TOLD], why)
                    await asyncio.sleep(0)
        finally:
            for poller in pollers:
                poller.tell(list(poller.watches.values()), why)
            asyncio_tasks += self.polls
            for look in self.polls:
                look.cancel()
            await asyncio.gather(*asyncio_tasks, return_exceptions=True)


@attrs.define(eq=False, kw_only=True, repr=False)
class ProviderPoller:
    """The tasks of one provider."""

    provider: Provider
    watcher: TaskWatcher
    watches: dict[str, WatchedTask] = attrs.field(factory=dict[str, WatchedTask])
    _queue: DueQueue = attrs.field(factory=DueQueue)
    _changed: asyncio.Event = attrs.field(factory=asyncio.Event)
    _under_way: int = 0  # looks
    _runner: asyncio.Task[None] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._runner = asyncio.create_task(self._run(), name=f"sora_chars watcher of {self.provider.name}")
        self._runner.add_done_callback(self._died)

    def schedule(self, watch: WatchedTask, delay: float, *, stretch: bool = False) -> None:
        """Make the task due in `delay` seconds; with `stretch` rarer while callbacks arrive."""
        now = asyncio.get_running_loop().time()
        watch.unstretched_due = now + delay
        rarer = _STRETCH if stretch and watch.expects_callback and self.watcher.callback_health.is_healthy else 1.0
        self._push(watch, _together(now + delay * rarer) if delay >= _LONG else now + delay)

    def snap_back(self) -> None:
        """Take back what was stretched."""
        for watch in self.watches.values():
            if watch.due > watch.unstretched_due and not watch.polling:
                self._push(watch, watch.unstretched_due)

    def _push(self, watch: WatchedTask, due: float) -> None:
        if self._queue.add(watch, due):
            self._changed.set()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._changed.clear()
            wait = self._queue.wait(loop.time())
            if self._under_way == self.watcher.poll_concurrency:
                wait = math.inf
            if wait > 0:
                timer = loop.call_later(wait, self._changed.set) if wait < math.inf else None
                await self._changed.wait()
                if timer:
                    timer.cancel()
                continue
            room = await self.provider.poll_capacity()
            while room > 0 and self._under_way < self.watcher.poll_concurrency and self._queue.wait(loop.time()) <= 0:
                self._begin(self._queue.take(partial(self._priority, loop.time()), room))
                room -= 1
            await asyncio.sleep(0)  # they take their places in the limits before the next ones are picked

    def _begin(self, watch: WatchedTask) -> None:
        watch.heap_id, watch.polling = 0, True
        self._under_way += 1
        look = asyncio.get_running_loop().create_task(self._poll(watch))
        self.watcher.polls.add(look)  # which outlives this poller, should it die
        look.add_done_callback(self.watcher.polls.discard)

    def _priority(self, now: float, watch: WatchedTask) -> float:
        """What a look at the task is worth."""
        if watch.nudged or watch.started is None:
            return math.inf  # its end was announced, or nobody knows how old it is
        return self.watcher.polling.priority(watch.snapshot, now - watch.started, now - watch.last_polled)

    async def _fetch(self, watch: WatchedTask) -> TaskSnapshot:
        """The part of a look that takes a place: while an end goes on record, others can be looked at."""
        try:
            seen = watch.snapshot
            return await (self.provider.fetch_if_changed(seen) if seen else self.provider.fetch(watch.task_id))
        finally:
            if self._under_way == self.watcher.poll_concurrency:
                self._changed.set()
            self._under_way -= 1

    async def _poll(self, watch: WatchedTask) -> None:
        nudged, watch.nudged = watch.nudged, False
        try:
            snapshot = await self._fetch(watch)
            if snapshot.finished:
                await watch.finished_with(snapshot)
            watch.polling = False
            self.see(watch, snapshot, nudged=nudged)
        except ProviderError as error:
            self._fault(watch, error)
        except MissingCharacterError as error:
            await watch.finished_with(error)
            self._end(watch, error)
        except SoraCharsError as error:
            self._end(watch, error)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 # the border: a bug ends one wait, not all
            self.give_up(watch, error)
        finally:
            watch.polling = False

    def give_up(self, watch: WatchedTask, error: BaseException) -> None:
        """End a wait that a bug of a provider or a pace has broken."""
        stopped = WatcherStoppedError(
            f"Looking at task {watch.task_id} raised {type(error).__name__}: {printable(error)}", task_id=watch.task_id
        )
        stopped.__cause__ = error
        self._end(watch, stopped)

    def see(self, watch: WatchedTask, snapshot: TaskSnapshot, *, nudged: bool = False) -> None:
        """Take what a look has shown, and decide when to look next."""
        now = asyncio.get_running_loop().time()
        watch.faulty_since = watch.missing_since = None
        if watch.started is None:
            age = 0.0 if snapshot.created_at is None else max(0.0, self.watcher.clock() - snapshot.created_at)
            watch.started = watch.last_polled = now - age
        unseen, watch.last_polled = now - watch.last_polled, now
        if snapshot.finished and watch.expects_callback and watch.woken_by == "poll":
            self.watcher.callback_health.record_miss()
        watch.show(snapshot)
        self.watcher.observe(snapshot, now - watch.started, unseen)
        if snapshot.finished:
            self._end(watch, snapshot)
            return
        delay = self.watcher.polling.delay(snapshot, now - watch.started)
        if watch.nudged:
            delay = 0.0
        elif snapshot.retry_after is not None:
            delay = snapshot.retry_after
        elif watch.polled_elsewhere and not nudged:
            delay = max(delay, _BACKSTOP)
        elif nudged or watch.stale_polls:
            echo = _FIRST_ECHO * 2**watch.stale_polls
            watch.stale_polls = watch.stale_polls + 1 if echo < delay else 0
            delay = min(delay, echo)
        self.schedule(watch, delay, stretch=snapshot.retry_after is None and not watch.stale_polls)

    def _fault(self, watch: WatchedTask, error: ProviderError) -> None:
        now = asyncio.get_running_loop().time()
        if isinstance(error, TaskNotFoundError):
            watch.faulty_since = None
            since = watch.missing_since = now if watch.missing_since is None else watch.missing_since
            budget, bounds = self.watcher.grace, _MISSING_DELAYS
        elif error.transient:
            since = watch.faulty_since = now if watch.faulty_since is None else watch.faulty_since
            budget, bounds = self.watcher.fault_budget, _FAULT_DELAYS
        else:
            self._end(watch, error)
            return
        if now - since >= budget - TICK:
            error.hint = f"{error.hint} It was so for {budget:g} s; the task may still run: resume it later.".strip()
            self._end(watch, error)
            return
        low, high = bounds
        delay = min(max(now - since, low), high) * random.uniform(0.75, 1.25)  # noqa: S311 # jitter, no secret
        delay = max(min(delay, since + budget - now), error.retry_after or 0.0)
        self.schedule(watch, 0.0 if watch.nudged and not error.retry_after else delay)

    def _end(self, watch: WatchedTask, outcome: TaskSnapshot | SoraCharsError) -> None:
        self.watches.pop(watch.task_id, None)
        watch.heap_id = -1
        watch.end(outcome)

    def _died(self, runner: asyncio.Task[None]) -> None:
        error = None if runner.cancelled() else runner.exception()
        how = f"died of {type(error).__name__}" if error else "was cancelled"
        log.error("watcher.died", exc_info=error, extra={"provider": self.provider.name})
        self.watcher.discard(self)
        self.tell(list(self.watches.values()), f"the watcher of {self.provider.name} {how}", cause=error)

    def tell(self, watches: Iterable[WatchedTask], why: str, *, cause: BaseException | None = None) -> None:
        """Tell those who wait for these tasks that nobody looks any more."""
        for watch in watches:
            error = WatcherStoppedError(
                f"Task {watch.task_id} is no longer watched: {why}.",
                hint="The task goes on; resume it by its id.",
                task_id=watch.task_id,
            )
            error.__cause__ = cause
            self._end(watch, error)

    def stop(self) -> asyncio.Task[None]:
        """Begin no more looks; returns the asyncio task that ends."""
        self._runner.remove_done_callback(self._died)
        self._runner.cancel()
        return self._runner
