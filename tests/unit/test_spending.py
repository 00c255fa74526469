from __future__ import annotations

from typing import Any

import pytest

from sora_chars.batch.budget import Purse
from sora_chars.errors import InvalidRequestError
from sora_chars.ledger import State
from sora_chars.models import CharacterRequest

WISH = CharacterRequest(from_task="t", name="four")


def test_without_a_budget_all_may_go() -> None:
    """Nothing is asked, whatever it costs."""
    assert Purse(None, 1e9).verdict(1e9, in_flight=True) == "go"
    assert Purse(None, None).verdict(None, in_flight=True) == "go"


def test_what_is_in_flight_holds_its_price() -> None:
    """A request waits while those in flight may use up the budget, and goes if they cost less than expected."""
    purse = Purse(10.0, 4)
    for _ in range(2):
        assert purse.verdict(purse.expect(WISH), in_flight=False) == "go"
        purse.hold(4)
    assert purse.verdict(4, in_flight=True) == "wait"
    purse.settle(4, 1.0, State.SUCCEEDED)
    assert purse.verdict(4, in_flight=True) == "go"
    purse.hold(4)
    purse.settle(4, 4.0, State.SUCCEEDED)
    assert purse.verdict(4, in_flight=True) == "wait"
    purse.settle(4, 4.0, State.SUCCEEDED)
    assert purse.verdict(4, in_flight=False) == "budget"
    assert purse.verdict(1, in_flight=False) == "go"


def test_a_budget_may_be_spent_to_its_end() -> None:
    """Sums of decimal fractions do not stop the last one."""
    purse = Purse(0.3, 0.1)
    for _ in range(3):
        assert purse.verdict(0.1, in_flight=False) == "go"
        purse.hold(0.1)
        purse.settle(0.1, 0.1, State.SUCCEEDED)
    assert purse.verdict(0.1, in_flight=False) == "budget"


@pytest.mark.parametrize(
    ("state", "told", "spent"),
    [
        (State.SUCCEEDED, None, 4.0),
        (State.FAILED, None, 4.0),
        (State.FAILED, 0.0, 0.0),
        (State.RUNNING, None, 4.0),
        (State.UNKNOWN, None, 4.0),
        (State.REFUSED, None, 0.0),
    ],
)
def test_an_end_counts_as_told_or_as_expected(state: State, told: float | None, spent: float) -> None:
    """What may have cost something counts; only what was refused is free without being told."""
    purse = Purse(10.0, 4)
    purse.hold(4)
    purse.settle(4, told, state)
    assert (purse.spent, purse.held) == (spent, 0.0)


def test_without_a_price_one_goes_at_a_time_until_one_has_told() -> None:
    """Then each is taken to cost as much as the dearest success; a failure that was free teaches nothing."""
    purse = Purse(10.0, None)
    assert (purse.expect(WISH), purse.verdict(None, in_flight=True)) == (None, "wait")
    for told, state in ((0.0, State.FAILED), (None, State.FAILED), (None, State.REFUSED)):
        purse.settle(None, told, state)
        assert (purse.expect(WISH), purse.verdict(None, in_flight=False)) == (None, "go")
    purse.settle(None, 3.0, State.SUCCEEDED)
    purse.settle(None, 2.0, State.SUCCEEDED)
    assert purse.expect(WISH) == 3.0
    assert purse.verdict(3.0, in_flight=True) == "go"


@pytest.mark.parametrize("state", [State.SUCCEEDED, State.RUNNING, State.UNKNOWN])
def test_without_any_price_the_batch_stops(state: State) -> None:
    """A budget cannot be kept when nobody tells what the first one cost."""
    purse = Purse(10.0, None)
    purse.settle(None, None, state)
    assert purse.verdict(None, in_flight=False) == "price"


def test_a_budget_that_is_spent_ends_the_search_for_a_price() -> None:
    """With nothing to spend not even the first one goes; with a price of nothing all do."""
    assert Purse(0, None).verdict(None, in_flight=False) == "budget"
    assert Purse(0, 0).verdict(0, in_flight=True) == "go"


def test_a_price_may_depend_on_the_request() -> None:
    """A function is asked for each; one that gives no amount is told, with the request that it was asked for."""
    assert Purse(9, lambda request: len(str(request.key or "four"))).expect(WISH) == 4
    strange: Any = ("4", -1, None, True, float("nan"))
    for price in strange:
        with pytest.raises(InvalidRequestError, match="price: must be a number of credits"):
            Purse(9, lambda _, price=price: price).expect(WISH)
