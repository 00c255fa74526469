"""A budget: what a batch may cost, in credits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import attrs

from sora_chars.errors import printable
from sora_chars.ledger import EntryState
from sora_chars.models import Request, raise_if_invalid

Price = float | Callable[[Request], float]
Decision = Literal["go", "wait", "budget", "price"]

_ROUNDING = 1e-6  # credits; sums of decimal fractions are a little off


@attrs.define(eq=False)
class Budget:
    """Decides what may be sent. `price`: what the caller says that one costs.

    Without it, one at a time is sent until one has told; then each is taken to cost as much as the highest_cost so far.
    """

    budget: float | None
    price: Price | None
    spent: float = 0.0
    reserved: float = 0.0  # what those in flight are expected to cost
    highest_cost: float | None = None
    cost_unknown: bool = False  # one may have cost something, and nobody knows how much

    def expected_cost(self, request: Request) -> float | None:
        """What a request will cost, where that is known.

        Raises:
            InvalidRequestError: the caller's function gave no amount.
        """
        if self.price is None:
            return self.highest_cost
        price = self.price(request) if callable(self.price) else self.price
        raise_if_invalid(amount_problems("price", price, "credits"), what="The request")
        return price

    def decide(self, cost: float | None, *, in_flight: bool) -> Decision:
        """Whether a request may go now, or perhaps once others have ended, or why it never may."""
        if self.budget is None:
            return "go"
        if cost is None:
            if in_flight:
                return "wait"
            return "price" if self.cost_unknown else "budget" if self.spent >= self.budget else "go"
        if self.spent + cost > self.budget + _ROUNDING:
            return "budget"
        return "wait" if self.spent + self.reserved + cost > self.budget + _ROUNDING else "go"

    def reserve(self, cost: float | None) -> None:
        """A request goes."""
        self.reserved += cost or 0.0

    def record_cost(self, expected: float | None, told: float | None, state: EntryState) -> None:
        """It has ended, and cost what the provider told, else what was expected."""
        self.reserved -= expected or 0.0
        if told is not None:
            self.spent += told
            if state is EntryState.SUCCEEDED:  # failed ones may be free
                self.highest_cost = max(told, self.highest_cost or 0.0)
        elif state is not EntryState.REJECTED:
            self.spent += expected or 0.0
            self.cost_unknown = self.cost_unknown or (expected is None and state is not EntryState.FAILED)


def amount_problems(field: str, value: object, unit: str) -> list[str]:
    """Say what is wrong with an amount given by a caller."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf:
        return []
    return [f"{field}: must be a number of {unit}, 0 or above, got {printable(repr(value), limit=60)}"]
