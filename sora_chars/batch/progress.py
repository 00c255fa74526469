"""How far a batch is: what was counted, how fast it goes, and how long it may still take."""

from __future__ import annotations

from collections import Counter, deque

import attrs

from sora_chars.ledger import EntryState

_RECENT = 60  # seconds that the rate looks back


@attrs.frozen(kw_only=True)
class Progress:
    """How far a batch is. `registered` is the sum of the five counts after it.

    `running` includes tasks that go on and are no longer waited for. `remaining`: requests not taken up yet, None while
    their number is unknown. `credits`: what the provider told that the ended ones cost. `rate`: how many ended a
    second, over the last minute. `eta`: seconds until all have ended, None where nothing tells.
    """

    registered: int
    running: int
    succeeded: int
    failed: int
    rejected: int
    unknown: int
    remaining: int | None
    credits: float
    rate: float = attrs.field(eq=False)
    eta: float | None = attrs.field(eq=False)

    @property
    def ended(self) -> int:
        """How many have ended, well or not."""
        return self.registered - self.running


@attrs.define(eq=False, kw_only=True)
class Meter:
    """Counts for a batch that began at loop time `began`; `total` requests, if that is known."""

    began: float
    total: int | None
    registered: int = 0
    ends: Counter[EntryState] = attrs.field(factory=Counter[EntryState])
    credits: float = 0.0
    _waited: float = 0.0  # seconds, by all that ended
    _last_registered: float = 0.0
    _recent: deque[list[int]] = attrs.field(factory=deque["list[int]"])  # second, how many ended in it

    def count_registered(self, now: float) -> None:
        """Count a request that is taken up."""
        self.registered += 1
        self._last_registered = now

    def end(self, state: EntryState, cost: float | None, *, began: float, now: float) -> None:
        """Count an end."""
        self.ends[state] += 1
        self.credits += cost or 0.0
        self._waited += now - began
        if not self._recent or self._recent[-1][0] != int(now):
            self._recent.append([int(now), 0])
        self._recent[-1][1] += 1
        self._forget(now)

    def progress(self, now: float, *, last: float | None = None) -> Progress:
        """The state of things. `last`: seconds until the youngest in flight ends, if anything was learned of that."""
        remaining = None if self.total is None else max(0, self.total - self.registered)
        rate, running = self._rate(now), self.registered - self.ends.total() + self.ends[EntryState.RUNNING]
        return Progress(
            registered=self.registered,
            running=running,
            succeeded=self.ends[EntryState.SUCCEEDED],
            failed=self.ends[EntryState.FAILED],
            rejected=self.ends[EntryState.REJECTED],
            unknown=self.ends[EntryState.UNKNOWN],
            remaining=remaining,
            credits=self.credits,
            rate=rate,
            eta=self._eta(now, rate, remaining, last),
        )

    def _rate(self, now: float) -> float:
        self._forget(now)
        span = min(_RECENT, now - self.began)
        return sum(count for _, count in self._recent) / span if span > 0 else 0.0

    def _forget(self, now: float) -> None:
        while self._recent and self._recent[0][0] < now - _RECENT:
            self._recent.popleft()

    def _eta(self, now: float, rate: float, remaining: int | None, last: float | None) -> float | None:
        """What is remaining goes at the rate of now; then the youngest lasts as was learned, or as the others did."""
        ended = self.ends.total()
        in_flight = self.registered - ended
        if remaining == in_flight == 0:
            return 0.0
        if remaining is None or (remaining and not rate):
            return None
        if last is None and ended:
            last = self._waited / ended - (0.0 if remaining else now - self._last_registered)
        if last is not None and last > 0:
            return last + (remaining / rate if remaining else 0.0)
        return in_flight / rate if rate else None  # longer than most: nothing but the rate tells
