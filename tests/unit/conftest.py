"""A provider for tests in virtual time."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import attrs
import pytest

from sora_chars.errors import MissingCharacterError, NoAnswerError, RequestRefusedError
from sora_chars.models import Character, CharacterRequest, TaskFailure, TaskSnapshot
from sora_chars.protocols import Provider

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager
    from typing import Any

    from sora_chars.limits import Window
    from sora_chars.models import Request


pytest.register_assert_rewrite("tests.unit.world")  # it asserts as a test does


@attrs.define(eq=False)
class Shop(Provider):
    """Answers a create after 1 s. The wish, as "fails 20", says how many seconds later the task ends, and how."""

    name: str = "shop"
    synchronous: bool = False
    callback_url: str | None = None
    window: Window | None = None
    credits: float | None = 2.0
    posts: list[str] = attrs.field(factory=list[str])
    sending: int = 0
    running: int = 0
    peaks: Counter[str] = attrs.field(factory=Counter[str])
    _ends: dict[str, tuple[str, float]] = attrs.field(factory=dict[str, "tuple[str, float]"])

    async def submit(
        self, request: Request, *, callback_url: str | None, sending: Callable[[], AbstractAsyncContextManager[None]]
    ) -> TaskSnapshot:
        """See `Provider`."""
        del callback_url
        if self.window:
            async with self.window.place() as place:
                place.use(asyncio.get_running_loop().time())
                return await self._make(request, sending)
        return await self._make(request, sending)

    async def _make(self, request: Request, sending: Callable[[], AbstractAsyncContextManager[None]]) -> TaskSnapshot:
        how, _, seconds = words(request)
        async with sending():
            self.posts.append(str(request.key))
            self.sending += 1
            self.peaks["sending"] = max(self.sending, self.peaks["sending"])
            await asyncio.sleep(1)
            self.sending -= 1
            if how == "refused":
                raise RequestRefusedError("no cats", provider=self.name)
            if how == "lost":
                raise NoAnswerError("reset by peer")
            if how == "bug":
                raise ZeroDivisionError(how)
        task_id = f"task of {request.key}"
        if self.synchronous:
            return self.snapshot(task_id, "success")
        loop = asyncio.get_running_loop()
        self._ends[task_id] = how, loop.time() + float(seconds or 0)
        self.running += 1
        self.peaks["running"] = max(self.running, self.peaks["running"])
        loop.call_at(self._ends[task_id][1], self._end)
        return self.snapshot(task_id, "waiting")

    def _end(self) -> None:
        self.running -= 1

    async def fetch(self, task_id: str) -> TaskSnapshot:
        """See `Provider`."""
        how, end = self._ends[task_id]
        if asyncio.get_running_loop().time() < end:
            return self.snapshot(task_id, "generating")
        if how == "missing":
            raise MissingCharacterError("no id", provider=self.name, task_id=task_id)
        return self.snapshot(task_id, "fail" if how == "fails" else "success")

    def snapshot(self, task_id: str, state: str) -> TaskSnapshot:
        """A task as it is shown."""
        return TaskSnapshot(
            task_id=task_id,
            provider=self.name,
            state=state,
            character=Character(id=f"made by {task_id}", provider=self.name) if state == "success" else None,
            failure=TaskFailure("500", "too dark") if state == "fail" else None,
            credits=self.credits if state in {"success", "fail"} else None,
        )


def words(request: Request) -> tuple[str, str, str]:
    """How a request's task ends, and when."""
    return (request.from_task or "").partition(" ") if isinstance(request, CharacterRequest) else ("ends", " ", "10")


@pytest.fixture
def make_shop() -> Callable[..., Any]:
    """Give the maker of such providers."""
    return Shop
