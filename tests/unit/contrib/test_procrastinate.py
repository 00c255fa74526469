"""`Characters` without a database: its options, and when a worker searches for requests without a job."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("procrastinate")

from sora_chars import CharacterSession, ConfigurationError, LedgerError
from sora_chars.contrib.procrastinate import Characters
from sora_chars.contrib.procrastinate_worker import check_worker
from tests.support.fake_providers import FakeProvider

if TYPE_CHECKING:
    from procrastinate import App


class Upkeep(Characters):
    """Records when each search begins, and lets it take `seconds`."""

    def __init__(self, seconds: float, *, fails: bool) -> None:
        super().__init__(lambda: pytest.fail("no session is needed"))
        self.seconds = seconds
        self.fails = fails
        self.began: list[float] = []

    async def _adopt(self, app: App) -> None:
        """Find no stalled job."""

    async def _sweep(self, app: App) -> None:
        del app
        self.began.append(asyncio.get_running_loop().time())
        await asyncio.sleep(self.seconds)
        if self.fails:
            raise LedgerError("the server is gone")


@pytest.mark.looptime
@pytest.mark.parametrize(
    ("seconds", "least", "most", "fails"),
    [
        pytest.param(0.1, 30, 33, False, id="short"),
        pytest.param(10, 210, 213, False, id="long, of many requests"),
        pytest.param(10, 30, 33, True, id="failed"),
    ],
)
async def test_a_long_search_is_followed_by_a_long_pause(
    seconds: float, least: float, most: float, *, fails: bool
) -> None:
    """A search takes at most a twentieth of a worker's time, however many requests wait."""
    characters = Upkeep(seconds, fails=fails)
    app: Any = None  # only the replaced methods use it
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(characters._keep_up(app), 1000)
    gaps = [later - earlier for earlier, later in zip(characters.began, characters.began[1:], strict=False)]
    assert gaps
    assert least <= min(gaps)
    assert max(gaps) <= most


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"queues": "mail"}, r"queues must be a list of names, such as \[\"mail\"\], got 'mail'"),
        ({"queues": [""]}, r"queues must be a list of names, .* got \[''\]"),
        ({"queues": 5}, "queues must be a list of names, .* got 5"),
        ({"concurrency": True}, "concurrency must be a whole number from 1, got True"),
        ({"heartbeat": 0}, "update_heartbeat_interval must be above 0"),
        ({"heartbeat": "1"}, "update_heartbeat_interval must be a finite number of seconds, at least 0, got '1'"),
    ],
)
def test_options_of_workers_are_checked(options: dict[str, Any], problem: str) -> None:
    """A worker with a wrong option does not start."""
    given: dict[str, Any] = {"concurrency": 1, "queues": ["mail"], "heartbeat": 1.0, **options}
    with pytest.raises(ConfigurationError, match=f"^characters: {problem}"):
        check_worker(given.pop("concurrency"), given.pop("queues"), **given, stalled_after=10.0)


async def _make_session() -> CharacterSession:
    return CharacterSession(FakeProvider())


@pytest.mark.parametrize("make_session", [_make_session, lambda: None])
async def test_what_makes_sessions_is_checked(make_session: Any) -> None:
    """A function that is async, or returns something else, is named in the error."""
    with pytest.raises(ConfigurationError, match="make_session must return a CharacterSession of sora_chars, got"):
        await Characters(make_session).session()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"patience": -1}, "patience must be a finite number of seconds, at least 0, got -1"),
        ({"idle": "60"}, "idle must be a finite number of seconds, at least 0, got '60'"),
        ({"stalled_after": math.inf}, "stalled_after must be a finite number of seconds, at least 0, got inf"),
        ({"ended": "orders.ended"}, "ended must be a function of an entry, got 'orders.ended'"),
        ({"poll_queue": "send"}, r"send_queue and poll_queue must be two names, got \['send', 'send'\]"),
        ({"send_queue": None}, r"send_queue and poll_queue must be two names, got \[None, 'poll'\]"),
        ({"make_session": CharacterSession(FakeProvider())}, "make_session must be a function that makes a session"),
        ({"patience": -1, "idle": -1}, "patience must be .*; idle must be "),
    ],
)
def test_options_are_checked(options: dict[str, Any], problem: str) -> None:
    """A wrong option is an error before any job is made, since a job would fail because of it."""
    given: dict[str, Any] = {"make_session": lambda: pytest.fail("no session is needed"), **options}
    with pytest.raises(ConfigurationError, match=f"^characters: {problem}"):
        Characters(given.pop("make_session"), **given)
