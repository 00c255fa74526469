"""One scheduler that polls every waiting task of a session.

Each provider has a lane: a heap of due times and a bounded number of looks under way. A waiting task costs one small
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

from .callback_health import Trust
from .due_queue import TICK, Turns
from .watched_task import Watch

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from sora_chars.models import Eta, TaskSnapshot
    from sora_chars.protocols import Pace, Provider

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


async def _tell_nobody(provider: str, outcome: TaskSnapshot | MissingCharacterError) -> None:
    del provider, outcome


@attrs.define(eq=False, kw_only=True)
class TaskWatcher:
    """Polls tasks until they end.

    `max_in_flight`: looks under way at once, for each provider. `fault_budget`: seconds of nothing but passing
    faults after which a wait ends. `grace`: seconds for which "no such task" may mean "not visible yet".
    `settle` is awaited with the provider's name and how a task ended, before anybody else hears of it.
    """

    pace: Pace
    max_in_flight: int = 16
    fault_budget: float = 300.0
    grace: float = 90.0
    wall: Callable[[], float] = time.time
    settle: Callable[[str, TaskSnapshot | MissingCharacterError], Awaitable[None]] = _tell_nobody
    looks: set[asyncio.Task[None]] = attrs.field(factory=set["asyncio.Task[None]"], init=False, repr=False)
    _lanes: dict[str, _Lane] = attrs.field(factory=dict[str, "_Lane"], init=False)
    callbacks: Trust = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self.callbacks = Trust(self._snap_back)

    def watch(
        self,
        provider: Provider,
        task_id: str,
        *,
        snapshot: TaskSnapshot | None = None,
        expects_callback: bool = False,
        follows: bool = False,
    ) -> Watch:
        """Watch a task, or join those who watch it. With the `snapshot` of its submission it is known to be new.

        `follows`: another process polls it, so that a look now and then is enough.
        """
        loop = asyncio.get_running_loop()
        lane = self._lanes.get(provider.name)
        if lane is None:
            lane = self._lanes[provider.name] = _Lane(provider=provider, watcher=self)
        watch = lane.watches.get(task_id)
        if watch is None:
            watch = Watch(task_id, loop.create_future(), expects_callback, snapshot, follows)
            if snapshot and snapshot.finished:
                watch.end(snapshot)
                return watch
            lane.watches[task_id] = watch
            watch.looked = loop.time()
            watch.started = watch.looked if snapshot else None
            try:
                delay = self.pace.delay(snapshot, 0.0) if snapshot else _BACKSTOP if follows else 0.0
            except Exception as error:  # noqa: BLE001 # a pace's bug must not lose an id that was just paid for
                lane.give_up(watch, error)
            else:
                lane.schedule(watch, delay, stretch=True)
        return watch

    def nudge(self, provider: str, task_id: str, *, by: Literal["poll", "callback"] = "callback") -> bool:
        """Look at a task now, since a callback says that it ended. False when nobody waits for it."""
        lane = self._lanes.get(provider)
        watch = lane.watches.get(task_id) if lane else None
        if lane is None or watch is None:
            return False
        if not (watch.polling or watch.nudged):  # else the look under way may be too early: it is followed by another
            lane.schedule(watch, 0.0)
        watch.nudged = True
        watch.woken_by = by
        watch.echoes = 0
        return True

    def take_over(self, provider: str, watch: Watch) -> None:
        """Poll a task from now on whose poller has gone."""
        watch.follows = False
        self.nudge(provider, watch.task_id, by="poll")

    async def look(self, provider: Provider, watch: Watch) -> TaskSnapshot:
        """Look at a task once, out of turn, and show what was seen to all who wait.

        Raises:
            SoraCharsError: the look failed; waits go on.
        """
        if watch.snapshot and watch.snapshot.finished:
            return watch.snapshot
        snapshot = await provider.fetch(watch.task_id)
        if snapshot.finished:
            await self.settle(provider.name, snapshot)
        lane = self._lanes.get(provider.name)
        if lane and lane.watches.get(watch.task_id) is watch and not watch.polling:
            lane.see(watch, snapshot)
        return snapshot

    def saw(self, snapshot: TaskSnapshot, age: float, unseen: float) -> None:
        """Tell the pace what a look has shown."""
        try:
            self.pace.saw(snapshot, age, unseen)
        except Exception:
            log.exception("pace.failed")  # its bug must not cost what was paid for

    def expect(self, watch: Watch) -> Eta | None:
        """When a task will end, as far as its pace knows."""
        if watch.started is None or watch.future.done():
            return None
        return self.pace.expect(watch.snapshot, asyncio.get_running_loop().time() - watch.started)

    def _snap_back(self) -> None:
        for lane in self._lanes.values():
            lane.snap_back()

    def discard(self, lane: _Lane) -> None:
        """Forget a lane that died, so that the next `watch` starts a new one."""
        self._lanes.pop(lane.provider.name, None)

    async def aclose(self) -> None:
        """Stop polling. Whoever still waits gets a `WatcherStoppedError`."""
        lanes, self._lanes = list(self._lanes.values()), {}
        self.callbacks.missed()
        asyncio_tasks = [lane.stop() for lane in lanes]
        why = "its session was closed"
        try:
            for lane in lanes:
                waiting = list(lane.watches.values())
                for start in range(0, len(waiting), _TOLD):
                    lane.tell(waiting[start : start + _TOLD], why)
                    await asyncio.sleep(0)
        finally:
            for lane in lanes:
                lane.tell(list(lane.watches.values()), why)
            asyncio_tasks += self.looks
            for look in self.looks:
                look.cancel()
            await asyncio.gather(*asyncio_tasks, return_exceptions=True)


@attrs.define(eq=False, kw_only=True, repr=False)
class _Lane:
    """The tasks of one provider."""

    provider: Provider
    watcher: TaskWatcher
    watches: dict[str, Watch] = attrs.field(factory=dict[str, Watch])
    _turns: Turns = attrs.field(factory=Turns)
    _changed: asyncio.Event = attrs.field(factory=asyncio.Event)
    _under_way: int = 0  # looks
    _runner: asyncio.Task[None] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._runner = asyncio.create_task(self._run(), name=f"sora_chars watcher of {self.provider.name}")
        self._runner.add_done_callback(self._died)

    def schedule(self, watch: Watch, delay: float, *, stretch: bool = False) -> None:
        """Make the task due in `delay` seconds; with `stretch` rarer while callbacks arrive."""
        now = asyncio.get_running_loop().time()
        watch.plain_due = now + delay
        rarer = _STRETCH if stretch and watch.expects_callback and self.watcher.callbacks.holds else 1.0
        self._push(watch, _together(now + delay * rarer) if delay >= _LONG else now + delay)

    def snap_back(self) -> None:
        """Take back what was stretched."""
        for watch in self.watches.values():
            if watch.due > watch.plain_due and not watch.polling:
                self._push(watch, watch.plain_due)

    def _push(self, watch: Watch, due: float) -> None:
        if self._turns.add(watch, due):
            self._changed.set()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._changed.clear()
            wait = self._turns.wait(loop.time())
            if self._under_way == self.watcher.max_in_flight:
                wait = math.inf
            if wait > 0:
                timer = loop.call_later(wait, self._changed.set) if wait < math.inf else None
                await self._changed.wait()
                if timer:
                    timer.cancel()
                continue
            room = await self.provider.ready()
            while room > 0 and self._under_way < self.watcher.max_in_flight and self._turns.wait(loop.time()) <= 0:
                self._begin(self._turns.take(partial(self._gain, loop.time()), room))
                room -= 1
            await asyncio.sleep(0)  # they take their places in the limits before the next ones are picked

    def _begin(self, watch: Watch) -> None:
        watch.entry, watch.polling = 0, True
        self._under_way += 1
        look = asyncio.get_running_loop().create_task(self._look(watch))
        self.watcher.looks.add(look)  # which outlives this lane, should it die
        look.add_done_callback(self.watcher.looks.discard)

    def _gain(self, now: float, watch: Watch) -> float:
        """What a look at the task is worth."""
        if watch.nudged or watch.started is None:
            return math.inf  # its end was announced, or nobody knows how old it is
        return self.watcher.pace.gain(watch.snapshot, now - watch.started, now - watch.looked)

    async def _fetch(self, watch: Watch) -> TaskSnapshot:
        """The part of a look that takes a place: while an end goes on record, others can be looked at."""
        try:
            seen = watch.snapshot
            return await (self.provider.refetch(seen) if seen else self.provider.fetch(watch.task_id))
        finally:
            if self._under_way == self.watcher.max_in_flight:
                self._changed.set()
            self._under_way -= 1

    async def _look(self, watch: Watch) -> None:
        nudged, watch.nudged = watch.nudged, False
        try:
            snapshot = await self._fetch(watch)
            if snapshot.finished:
                await self.watcher.settle(self.provider.name, snapshot)
            watch.polling = False
            self.see(watch, snapshot, nudged=nudged)
        except ProviderError as error:
            self._fault(watch, error)
        except MissingCharacterError as error:
            await self.watcher.settle(self.provider.name, error)
            self._end(watch, error)
        except SoraCharsError as error:
            self._end(watch, error)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 # the border: a bug ends one wait, not all
            self.give_up(watch, error)
        finally:
            watch.polling = False

    def give_up(self, watch: Watch, error: BaseException) -> None:
        """End a wait that a bug of a provider or a pace has broken."""
        stopped = WatcherStoppedError(
            f"Looking at task {watch.task_id} raised {type(error).__name__}: {printable(error)}", task_id=watch.task_id
        )
        stopped.__cause__ = error
        self._end(watch, stopped)

    def see(self, watch: Watch, snapshot: TaskSnapshot, *, nudged: bool = False) -> None:
        """Take what a look has shown, and decide when to look next."""
        now = asyncio.get_running_loop().time()
        watch.faulty_since = watch.missing_since = None
        if watch.started is None:
            age = 0.0 if snapshot.created_at is None else max(0.0, self.watcher.wall() - snapshot.created_at)
            watch.started = watch.looked = now - age
        unseen, watch.looked = now - watch.looked, now
        if snapshot.finished and watch.expects_callback and watch.woken_by == "poll":
            self.watcher.callbacks.missed()
        watch.show(snapshot)
        self.watcher.saw(snapshot, now - watch.started, unseen)
        if snapshot.finished:
            self._end(watch, snapshot)
            return
        delay = self.watcher.pace.delay(snapshot, now - watch.started)
        if watch.nudged:
            delay = 0.0
        elif snapshot.retry_after is not None:
            delay = snapshot.retry_after
        elif watch.follows and not nudged:
            delay = max(delay, _BACKSTOP)
        elif nudged or watch.echoes:
            echo = _FIRST_ECHO * 2**watch.echoes
            watch.echoes = watch.echoes + 1 if echo < delay else 0
            delay = min(delay, echo)
        self.schedule(watch, delay, stretch=snapshot.retry_after is None and not watch.echoes)

    def _fault(self, watch: Watch, error: ProviderError) -> None:
        now = asyncio.get_running_loop().time()
        if isinstance(error, TaskNotFoundError):
            watch.faulty_since = None
            since = watch.missing_since = now if watch.missing_since is None else watch.missing_since
            budget, bounds = self.watcher.grace, _MISSING_DELAYS
        elif error.passing:
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

    def _end(self, watch: Watch, outcome: TaskSnapshot | SoraCharsError) -> None:
        self.watches.pop(watch.task_id, None)
        watch.entry = -1
        watch.end(outcome)

    def _died(self, runner: asyncio.Task[None]) -> None:
        error = None if runner.cancelled() else runner.exception()
        how = f"died of {type(error).__name__}" if error else "was cancelled"
        log.error("watcher.died", exc_info=error, extra={"provider": self.provider.name})
        self.watcher.discard(self)
        self.tell(list(self.watches.values()), f"the watcher of {self.provider.name} {how}", cause=error)

    def tell(self, watches: Iterable[Watch], why: str, *, cause: BaseException | None = None) -> None:
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
