"""Which requests a budget allows."""

from __future__ import annotations

from typing import Any

import pytest

from sora_chars.batch.budget import Budget
from sora_chars.errors import InvalidRequestError
from sora_chars.ledger import EntryState
from sora_chars.models import CharacterRequest

REQUEST = CharacterRequest(from_task="t", name="four")


def test_no_budget_allows_everything() -> None:
    """Without a budget every request is sent, whatever its cost."""
    assert Budget(None, 1e9).decide(1e9, in_flight=True) == "go"
    assert Budget(None, None).decide(None, in_flight=True) == "go"


def test_requests_in_flight_reserve_their_cost() -> None:
    """A request waits while those in flight may exhaust the budget, and is sent if they cost less than expected."""
    budget = Budget(10.0, 4)
    for _ in range(2):
        assert budget.decide(budget.expected_cost(REQUEST), in_flight=False) == "go"
        budget.reserve(4)
    assert budget.decide(4, in_flight=True) == "wait"
    budget.record_cost(4, 1.0, EntryState.SUCCEEDED)
    assert budget.decide(4, in_flight=True) == "go"
    budget.reserve(4)
    budget.record_cost(4, 4.0, EntryState.SUCCEEDED)
    assert budget.decide(4, in_flight=True) == "wait"
    budget.record_cost(4, 4.0, EntryState.SUCCEEDED)
    assert budget.decide(4, in_flight=False) == "budget"
    assert budget.decide(1, in_flight=False) == "go"


def test_budget_can_be_spent_completely() -> None:
    """The inexact sum of decimal fractions does not stop the last request."""
    budget = Budget(0.3, 0.1)
    for _ in range(3):
        assert budget.decide(0.1, in_flight=False) == "go"
        budget.reserve(0.1)
        budget.record_cost(0.1, 0.1, EntryState.SUCCEEDED)
    assert budget.decide(0.1, in_flight=False) == "budget"


@pytest.mark.parametrize(
    ("state", "reported", "spent"),
    [
        (EntryState.SUCCEEDED, None, 4.0),
        (EntryState.FAILED, None, 4.0),
        (EntryState.FAILED, 0.0, 0.0),
        (EntryState.RUNNING, None, 4.0),
        (EntryState.UNKNOWN, None, 4.0),
        (EntryState.REJECTED, None, 0.0),
    ],
)
def test_cost_is_reported_or_else_expected(state: EntryState, reported: float | None, spent: float) -> None:
    """Without a reported cost, only a rejected request is free."""
    budget = Budget(10.0, 4)
    budget.reserve(4)
    budget.record_cost(4, reported, state)
    assert (budget.spent, budget.reserved) == (spent, 0.0)


def test_without_price_first_request_is_sent_alone() -> None:
    """Later requests are expected to cost the highest cost of a success; failures may be free."""
    budget = Budget(10.0, None)
    assert (budget.expected_cost(REQUEST), budget.decide(None, in_flight=True)) == (None, "wait")
    for reported, state in ((0.0, EntryState.FAILED), (None, EntryState.FAILED), (None, EntryState.REJECTED)):
        budget.record_cost(None, reported, state)
        assert (budget.expected_cost(REQUEST), budget.decide(None, in_flight=False)) == (None, "go")
    budget.record_cost(None, 3.0, EntryState.SUCCEEDED)
    budget.record_cost(None, 2.0, EntryState.SUCCEEDED)
    assert budget.expected_cost(REQUEST) == 3.0
    assert budget.decide(3.0, in_flight=True) == "go"


@pytest.mark.parametrize("state", [EntryState.SUCCEEDED, EntryState.RUNNING, EntryState.UNKNOWN])
def test_unknown_cost_stops_batch(state: EntryState) -> None:
    """The budget cannot be enforced if neither caller nor provider states what the first request cost."""
    budget = Budget(10.0, None)
    budget.record_cost(None, None, state)
    assert budget.decide(None, in_flight=False) == "price"


def test_budget_of_zero() -> None:
    """Without a price not even the first request is sent; with a price of 0 all are."""
    assert Budget(0, None).decide(None, in_flight=False) == "budget"
    assert Budget(0, 0).decide(0, in_flight=True) == "go"


def test_price_function() -> None:
    """A function is called for each request; a returned value that is no amount is rejected."""
    assert Budget(9, lambda request: len(str(request.key or "four"))).expected_cost(REQUEST) == 4
    invalid: Any = ("4", -1, None, True, float("nan"))
    for price in invalid:
        with pytest.raises(InvalidRequestError, match="price must be a number of credits"):
            Budget(9, lambda _, price=price: price).expected_cost(REQUEST)
