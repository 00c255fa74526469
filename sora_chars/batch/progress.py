"""How far a batch is: what was counted, how fast it goes, and how long it may still take."""

from __future__ import annotations

from collections import Counter, deque

import attrs

from sora_chars.ledger import State

_RECENT = 60  # seconds that the rate looks back


@attrs.frozen(kw_only=True)
class Progress:
    """How far a batch is. `asked` is the sum of the five counts after it.

    `running` includes tasks that go on and are no longer waited for. `left`: requests not taken up yet, None while
    their number is unknown. `credits`: what the provider told that the ended ones cost. `rate`: how many ended a
    second, over the last minute. `eta`: seconds until all have ended, None where nothing tells.
    """

    asked: int
    running: int
    succeeded: int
    failed: int
    refused: int
    unknown: int
    left: int | None
    credits: float
    rate: float = attrs.field(eq=False)
    eta: float | None = attrs.field(eq=False)

    @property
    def ended(self) -> int:
        """How many have ended, well or not."""
        return self.asked - self.running


@attrs.define(eq=False, kw_only=True)
class Meter:
    """Counts for a batch that began at loop time `began`; `total` requests, if that is known."""

    began: float
    total: int | None
    asked: int = 0
    ends: Counter[State] = attrs.field(factory=Counter[State])
    credits: float = 0.0
    _waited: float = 0.0  # seconds, by all that ended
    _last_asked: float = 0.0
    _recent: deque[list[int]] = attrs.field(factory=deque["list[int]"])  # second, how many ended in it

    def ask(self, now: float) -> None:
        """Count a request that is taken up."""
        self.asked += 1
        self._last_asked = now

    def end(self, state: State, cost: float | None, *, began: float, now: float) -> None:
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
        left = None if self.total is None else max(0, self.total - self.asked)
        rate, running = self._rate(now), self.asked - self.ends.total() + self.ends[State.RUNNING]
        return Progress(
            asked=self.asked,
            running=running,
            succeeded=self.ends[State.SUCCEEDED],
            failed=self.ends[State.FAILED],
            refused=self.ends[State.REFUSED],
            unknown=self.ends[State.UNKNOWN],
            left=left,
            credits=self.credits,
            rate=rate,
            eta=self._eta(now, rate, left, last),
        )

    def _rate(self, now: float) -> float:
        self._forget(now)
        span = min(_RECENT, now - self.began)
        return sum(count for _, count in self._recent) / span if span > 0 else 0.0

    def _forget(self, now: float) -> None:
        while self._recent and self._recent[0][0] < now - _RECENT:
            self._recent.popleft()

    def _eta(self, now: float, rate: float, left: int | None, last: float | None) -> float | None:
        """What is left goes at the rate of now; then the youngest lasts as was learned, or as the others did."""
        ended = self.ends.total()
        in_flight = self.asked - ended
        if left == in_flight == 0:
            return 0.0
        if left is None or (left and not rate):
            return None
        if last is None and ended:
            last = self._waited / ended - (0.0 if left else now - self._last_asked)
        if last is not None and last > 0:
            return last + (left / rate if left else 0.0)
        return in_flight / rate if rate else None  # longer than most: nothing but the rate tells
