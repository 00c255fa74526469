"""Lists of accounts whose servers send no answer: a question about a lost answer ends within two short waits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from sora_chars import HeyGen, NoAnswerError, SeedanceAssets, Vidu
from sora_chars.transport import _TIMEOUTS
from tests.support.raw_server import KEY, never_respond, serving_raw

if TYPE_CHECKING:
    from collections.abc import Callable

PROVIDERS: list[Callable[..., Any]] = [HeyGen, Vidu, SeedanceAssets]


@pytest.mark.parametrize("make", PROVIDERS)
async def test_a_silent_list(make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The list is requested twice, each time for as long as a poll may take, and not for the time of an upload."""
    monkeypatch.setattr("sora_chars.transport._TIMEOUTS", {**_TIMEOUTS, "poll": 0.5})
    async with serving_raw(never_respond) as server, make(KEY, base_url=server.url) as provider:
        with pytest.raises(NoAnswerError, match=r"no answer within 0\.5 s"):
            await provider.lookup("order-17")
    assert server.connections == 2
