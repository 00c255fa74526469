"""Progress of a batch: counts, rate and estimated time of completion."""

from __future__ import annotations

from collections import Counter, deque

import attrs

from sora_chars.ledger import EntryState

_RATE_PERIOD = 60  # seconds over which the rate is averaged


@attrs.frozen(kw_only=True)
class Progress:
    """Progress of a batch.

    `registered` is the sum of the five counts after it.

    Attributes:
        registered: Requests read so far. A request that waits for the budget does not
            count yet.
        running: Requests in flight, and running tasks that the batch no longer waits
            for.
        succeeded: Tasks with a result.
        failed: Tasks that ended without a result.
        rejected: Requests that were not sent, or for which the provider did nothing.
        unknown: Requests that were sent and whose outcome is unknown.
        remaining: Requests not registered yet; None while their number is unknown.
        credits: Credits that the ended tasks cost, as reported by the provider.
        rate: Ended requests per second, over the last minute. Requests whose end the
            ledger held already do not count.
        eta: Seconds until the last request ends; None if there is no estimate.
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
        """Number of requests that have ended, in any state."""
        return self.registered - self.running


@attrs.define(eq=False, kw_only=True)
class ProgressCounter:
    """Counts the requests of a batch. All times are loop times, in seconds.

    Attributes:
        began: When the batch began.
        total: Number of requests, if known.
        registered: Requests read so far.
        ended: Number of outcomes per state.
        credits: Credits that the ended tasks cost.
    """

    began: float
    total: int | None
    registered: int = 0
    ended: Counter[EntryState] = attrs.field(factory=Counter)
    credits: float = 0.0
    _measured: int = 0  # requests whose duration is known
    _total_duration: float = 0.0  # of all of them
    _last_registered: float = 0.0
    _recent: deque[list[int]] = attrs.field(factory=deque)  # [second, outcomes in it]

    def count_registered(self, now: float) -> None:
        """Count a request that was read."""
        self.registered += 1
        self._last_registered = now

    def count_ended(self, state: EntryState, cost: float | None, *, began: float | None, now: float) -> None:
        """Count an outcome.

        Args:
            state: How the request ended.
            cost: The credits that it cost, if known.
            began: When it was registered; None if it took no time, because it was
                invalid or the ledger held its end already.
            now: Loop time.
        """
        self.ended[state] += 1
        self.credits += cost or 0.0
        if began is None:
            return
        self._measured += 1
        self._total_duration += now - began
        if not self._recent or self._recent[-1][0] != int(now):
            self._recent.append([int(now), 0])
        self._recent[-1][1] += 1
        self._drop_old(now)

    def progress(self, now: float, *, newest_eta: float | None = None) -> Progress:
        """Return the progress now.

        Args:
            now: Loop time.
            newest_eta: Seconds until the newest task in flight ends, if the polling
                strategy has an estimate.
        """
        remaining = None if self.total is None else max(0, self.total - self.registered)
        rate = self._rate(now)
        return Progress(
            registered=self.registered,
            running=self.registered - self.ended.total() + self.ended[EntryState.RUNNING],
            succeeded=self.ended[EntryState.SUCCEEDED],
            failed=self.ended[EntryState.FAILED],
            rejected=self.ended[EntryState.REJECTED],
            unknown=self.ended[EntryState.UNKNOWN],
            remaining=remaining,
            credits=self.credits,
            rate=rate,
            eta=self._eta(now, rate, remaining, newest_eta),
        )

    def _rate(self, now: float) -> float:
        self._drop_old(now)
        period = min(_RATE_PERIOD, now - self.began)
        return sum(count for _, count in self._recent) / period if period > 0 else 0.0

    def _drop_old(self, now: float) -> None:
        while self._recent and self._recent[0][0] < now - _RATE_PERIOD:
            self._recent.popleft()

    def _eta(self, now: float, rate: float, remaining: int | None, newest_eta: float | None) -> float | None:
        """Remaining requests at the current rate, plus the expected duration of the newest task."""
        ended = self.ended.total()
        in_flight = self.registered - ended
        if remaining == in_flight == 0:
            return 0.0
        if remaining is None or (remaining and not rate):
            return None
        if newest_eta is None and self._measured:
            age = 0.0 if remaining else now - self._last_registered
            newest_eta = self._total_duration / self._measured - age
        if newest_eta is not None and newest_eta > 0:
            return newest_eta + (remaining / rate if remaining else 0.0)
        return in_flight / rate if rate else None  # the newest task takes longer than average
