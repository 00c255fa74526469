"""Who is notified of a changed entry."""

from __future__ import annotations

import pytest

from sora_chars.ledger.notifier import ChangeNotifier


@pytest.fixture
def notifier() -> ChangeNotifier:
    """A notifier without subscribers."""
    return ChangeNotifier()


@pytest.fixture
def calls() -> list[str]:
    """The keys whose callbacks have run, in order."""
    return []


def test_callback_runs_once_per_version(notifier: ChangeNotifier, calls: list[str]) -> None:
    """A callback runs for each version that is newer than the last, and for a change of unknown version."""
    notifier.subscribe("k-1", 3, lambda: calls.append("k-1"))
    for version in (3, 4, 4, 2):
        notifier.notify("k-1", version)
    assert calls == ["k-1"]
    notifier.notify("k-1", 6)
    notifier.notify("k-1")
    notifier.notify("k-1", 6)
    assert calls == ["k-1"] * 3


def test_own_change_runs_no_callback(notifier: ChangeNotifier, calls: list[str]) -> None:
    """A change by this process wakes waiters and runs no callback, not even when the store reports it."""
    notifier.subscribe("k-1", 3, lambda: calls.append("k-1"))
    with notifier.waiting("k-1") as event:
        notifier.changed_here("k-1", 4)
        assert event.is_set()
    notifier.notify("k-1", 4)
    assert calls == []


def test_other_keys_are_not_notified(notifier: ChangeNotifier, calls: list[str]) -> None:
    """Only the waiters and callbacks of the changed key are notified."""
    notifier.subscribe("k-1", 1, lambda: calls.append("k-1"))
    notifier.subscribe("k-2", 1, lambda: calls.append("k-2"))
    with notifier.waiting("k-1") as event:
        notifier.notify("k-2", 2)
        assert not event.is_set()
    assert calls == ["k-2"]


def test_notify_all(notifier: ChangeNotifier, calls: list[str]) -> None:
    """After missed changes every callback runs and every waiter wakes."""
    notifier.subscribe("k-1", 5, lambda: calls.append("k-1"))
    with notifier.waiting("k-2") as event:
        notifier.notify_all()
        assert event.is_set()
    assert calls == ["k-1"]


def test_has_subscribers_until_the_last_has_left(notifier: ChangeNotifier) -> None:
    """`has_subscribers` and `keys` count waiters and subscriptions, two of the same key too."""
    end = notifier.subscribe("k-1", 1, lambda: None)
    with notifier.waiting("k-1"), notifier.waiting("k-2"):
        assert notifier.keys == {"k-1", "k-2"}
        end()
        assert (notifier.keys, notifier.has_subscribers.is_set()) == ({"k-1", "k-2"}, True)
    assert (notifier.keys, notifier.has_subscribers.is_set()) == (set(), False)


def test_a_follower_gets_each_change_once(notifier: ChangeNotifier, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each follower is called once for each version that another process wrote, and not after it has left."""
    monkeypatch.setattr("sora_chars.ledger.notifier._MAX_KNOWN", 1)
    first: list[tuple[str, int]] = []
    second: list[tuple[str, int]] = []
    leave = notifier.follow(lambda *change: first.append(change))
    stay = notifier.follow(lambda *change: second.append(change))
    for key, version in (("a", 2), ("a", 2), ("b", 3)):
        notifier.notify(key, version)
    leave()
    assert notifier.is_followed
    notifier.writing("c", 4)
    notifier.notify("c", 4)
    notifier.notify("c", 5)
    stay()
    notifier.notify("c", 6)
    assert first == [("a", 2), ("b", 3)]
    assert second == [*first, ("c", 5)]
    assert not notifier.has_subscribers.is_set()
