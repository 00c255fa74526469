"""Budget of a batch, in credits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import attrs

from sora_chars.errors import printable
from sora_chars.ledger import EntryState
from sora_chars.models import Request, raise_if_invalid

Price = float | Callable[[Request], float]
"""Credits that a request costs, or a function that returns them."""

Decision = Literal["go", "wait", "budget", "price"]
"""Send now, decide again when another request has ended, or stop and why."""

_ROUNDING = 1e-6  # credits; sums of decimal fractions are inexact


@attrs.define(eq=False)
class Budget:
    """Decides which requests the budget of a batch allows.

    Without a price the first request is sent alone. Once the provider has reported what
    a task cost, every request is expected to cost the highest cost so far.

    Attributes:
        budget: Credits that the batch may spend; None for no limit.
        price: The caller's price of a request, if any.
        spent: Credits that the finished requests cost.
        reserved: Credits that the requests in flight are expected to cost.
        highest_cost: Highest reported cost of a successful task.
        cost_unknown: Whether a request may have cost credits that were neither
            expected nor reported.
    """

    budget: float | None
    price: Price | None
    spent: float = 0.0
    reserved: float = 0.0
    highest_cost: float | None = None
    cost_unknown: bool = False

    def expected_cost(self, request: Request) -> float | None:
        """Return the credits that a request will cost, or None if unknown.

        Raises:
            InvalidRequestError: The caller's price function returned no valid amount.
        """
        if self.price is None:
            return self.highest_cost
        price = self.price(request) if callable(self.price) else self.price
        raise_if_invalid(amount_problems("price", price, "credits"), what="The request")
        return price

    def decide(self, cost: float | None, *, in_flight: bool) -> Decision:
        """Decide whether to send a request with this expected cost.

        Args:
            cost: Expected credits; None if unknown.
            in_flight: Whether other requests are in flight, whose end may change the
                decision.
        """
        if self.budget is None:
            return "go"
        if cost is None:
            return "wait" if in_flight else self._decide_unpriced(self.budget)
        if self.spent + cost > self.budget + _ROUNDING:
            return "budget"
        return "wait" if self.spent + self.reserved + cost > self.budget + _ROUNDING else "go"

    def _decide_unpriced(self, budget: float) -> Decision:
        if self.cost_unknown:
            return "price"
        return "budget" if self.spent >= budget else "go"

    def reserve(self, cost: float | None) -> None:
        """Reserve the expected cost of a request that is sent now."""
        self.reserved += cost or 0.0

    def record_cost(self, expected: float | None, reported: float | None, state: EntryState) -> None:
        """Replace the reservation of a finished request by its reported or expected cost."""
        self.reserved -= expected or 0.0
        if reported is not None:
            self.spent += reported
            if state is EntryState.SUCCEEDED:  # failed tasks may be free
                self.highest_cost = max(reported, self.highest_cost or 0.0)
        elif state is not EntryState.REJECTED:
            self.spent += expected or 0.0
            self.cost_unknown = self.cost_unknown or (expected is None and state is not EntryState.FAILED)


def amount_problems(field: str, value: object, unit: str) -> list[str]:
    """Return the problems of an amount that the caller passed, none or one."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf:
        return []
    return [f"{field} must be a number of {unit}, at least 0, got {printable(repr(value), limit=60)}"]
