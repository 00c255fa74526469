"""The options of a session and of its calls, checked before anything is sent."""

from __future__ import annotations

from collections.abc import Iterable
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any

from sora_chars.errors import ConfigurationError, printable
from sora_chars.models import check_seconds, seconds_problems

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sora_chars.events import Observer


def check_options(providers: Sequence[object], polling: object, *, timeout: object, shutdown_timeout: object) -> None:
    """Check the options of a session before anything is sent.

    Raises:
        ConfigurationError: An option is invalid; the message lists all that are.
    """
    problems = [
        f"providers must be passed one by one, such as CharacterSession(Kie(), Kkiai()), got {printable(repr(one))}"
        for one in providers
        if isinstance(one, type) or not isinstance(getattr(one, "name", None), str)
    ]
    names = [getattr(one, "name", None) for one in providers]
    if not problems and (not names or len(set(names)) < len(names)):
        problems.append(f"providers: one or more with different names are needed, got {names}")
    if not (polling is None or (callable(getattr(polling, "delay", None)) and not isinstance(polling, type))):
        problems.append(f"polling must be a polling strategy, such as FixedInterval(5), got {printable(repr(polling))}")
    problems += seconds_problems("timeout", timeout) + seconds_problems("shutdown_timeout", shutdown_timeout)
    if problems:
        raise ConfigurationError(f"{'; '.join(problems)}.")


def checked_observers(observers: Iterable[Observer]) -> tuple[Observer, ...]:
    """Return the observers of a session.

    Raises:
        ConfigurationError: One of them is no function, or is async.
    """
    given: object = observers  # callers without a type checker pass anything
    if not isinstance(given, Iterable):
        raise ConfigurationError(f"observers must be a list of functions, got {printable(repr(given))}.")
    found = tuple(observers)
    each: Any
    for each in found:
        if not callable(each) or iscoroutinefunction(each):
            raise ConfigurationError(
                f"observers: each must be a function of one event that is not async, got {printable(repr(each))}.",
                hint="Await in a loop over session.events().",
            )
    return found


def seconds_to_wait(timeout: float | None, default: float) -> float:
    """Return the time-out of a call, or the session's for None.

    Raises:
        InvalidRequestError: It is not a number of seconds, 0 or more.
    """
    if timeout is None:
        return default
    check_seconds("timeout", timeout)
    return float(timeout)
