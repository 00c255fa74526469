from __future__ import annotations

from typing import Any

import pytest

from sora_chars.batch.budget import Budget
from sora_chars.errors import InvalidRequestError
from sora_chars.ledger import EntryState
from sora_chars.models import CharacterRequest

WISH = CharacterRequest(from_task="t", name="four")


def test_without_a_budget_all_may_go() -> None:
    """Nothing is asked, whatever it costs."""
    assert Budget(None, 1e9).decide(1e9, in_flight=True) == "go"
    assert Budget(None, None).decide(None, in_flight=True) == "go"


def test_what_is_in_flight_holds_its_price() -> None:
    """A request waits while those in flight may use up the budget, and goes if they cost less than expected."""
    purse = Budget(10.0, 4)
    for _ in range(2):
        assert purse.decide(purse.expected_cost(WISH), in_flight=False) == "go"
        purse.reserve(4)
    assert purse.decide(4, in_flight=True) == "wait"
    purse.record_cost(4, 1.0, EntryState.SUCCEEDED)
    assert purse.decide(4, in_flight=True) == "go"
    purse.reserve(4)
    purse.record_cost(4, 4.0, EntryState.SUCCEEDED)
    assert purse.decide(4, in_flight=True) == "wait"
    purse.record_cost(4, 4.0, EntryState.SUCCEEDED)
    assert purse.decide(4, in_flight=False) == "budget"
    assert purse.decide(1, in_flight=False) == "go"


def test_a_budget_may_be_spent_to_its_end() -> None:
    """Sums of decimal fractions do not stop the last one."""
    purse = Budget(0.3, 0.1)
    for _ in range(3):
        assert purse.decide(0.1, in_flight=False) == "go"
        purse.reserve(0.1)
        purse.record_cost(0.1, 0.1, EntryState.SUCCEEDED)
    assert purse.decide(0.1, in_flight=False) == "budget"


@pytest.mark.parametrize(
    ("state", "told", "spent"),
    [
        (EntryState.SUCCEEDED, None, 4.0),
        (EntryState.FAILED, None, 4.0),
        (EntryState.FAILED, 0.0, 0.0),
        (EntryState.RUNNING, None, 4.0),
        (EntryState.UNKNOWN, None, 4.0),
        (EntryState.REJECTED, None, 0.0),
    ],
)
def test_an_end_counts_as_told_or_as_expected(state: EntryState, told: float | None, spent: float) -> None:
    """What may have cost something counts; only what was refused is free without being told."""
    purse = Budget(10.0, 4)
    purse.reserve(4)
    purse.record_cost(4, told, state)
    assert (purse.spent, purse.reserved) == (spent, 0.0)


def test_without_a_price_one_goes_at_a_time_until_one_has_told() -> None:
    """Then each is taken to cost as much as the highest_cost success; a failure that was free teaches nothing."""
    purse = Budget(10.0, None)
    assert (purse.expected_cost(WISH), purse.decide(None, in_flight=True)) == (None, "wait")
    for told, state in ((0.0, EntryState.FAILED), (None, EntryState.FAILED), (None, EntryState.REJECTED)):
        purse.record_cost(None, told, state)
        assert (purse.expected_cost(WISH), purse.decide(None, in_flight=False)) == (None, "go")
    purse.record_cost(None, 3.0, EntryState.SUCCEEDED)
    purse.record_cost(None, 2.0, EntryState.SUCCEEDED)
    assert purse.expected_cost(WISH) == 3.0
    assert purse.decide(3.0, in_flight=True) == "go"


@pytest.mark.parametrize("state", [EntryState.SUCCEEDED, EntryState.RUNNING, EntryState.UNKNOWN])
def test_without_any_price_the_batch_stops(state: EntryState) -> None:
    """A budget cannot be kept when nobody tells what the first one cost."""
    purse = Budget(10.0, None)
    purse.record_cost(None, None, state)
    assert purse.decide(None, in_flight=False) == "price"


def test_a_budget_that_is_spent_ends_the_search_for_a_price() -> None:
    """With nothing to spend not even the first one goes; with a price of nothing all do."""
    assert Budget(0, None).decide(None, in_flight=False) == "budget"
    assert Budget(0, 0).decide(0, in_flight=True) == "go"


def test_a_price_may_depend_on_the_request() -> None:
    """A function is asked for each; one that gives no amount is told, with the request that it was asked for."""
    assert Budget(9, lambda request: len(str(request.key or "four"))).expected_cost(WISH) == 4
    strange: Any = ("4", -1, None, True, float("nan"))
    for price in strange:
        with pytest.raises(InvalidRequestError, match="price: must be a number of credits"):
            Budget(9, lambda _, price=price: price).expected_cost(WISH)
