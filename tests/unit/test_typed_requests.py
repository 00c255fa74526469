"""Type checkers refuse misspelt and mistyped fields.

Each refused call carries the comment that silences both checkers, and both report a
comment that silences nothing. The calls never run.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, assert_type

from sora_chars import Batch, Character, CharacterRequest, CharacterSession, TaskRequest, TaskSnapshot

if TYPE_CHECKING:
    from sora_chars import Entry, RowFields, TaskHandle


async def accepted(session: CharacterSession, row: RowFields) -> None:
    """Fields of every allowed type, and what the calls return."""
    assert_type(await session.create(from_task="t", clip="1,3", provider="kie", timeout=5), Character)
    assert_type(await session.create(video=Path("rex.mp4"), clip=(1, 3.5), key="k"), Character)
    assert_type(await session.create(images=["https://a.example/b.png", Path("c.png")], voice="v"), Character)
    assert_type(await session.create(CharacterRequest(video="rex.mp4")), Character)
    assert_type(await session.create(TaskRequest(model="m")), TaskSnapshot)
    handle: TaskHandle[Character] = await session.submit(video="rex.mp4", name=None)
    entry: Entry = await session.register(video="rex.mp4", safety="none")
    session.create_many([{"model": "m", "input": {"prompt": "a"}, "key": "k", "provider": "kie"}])
    batch = session.create_many([row, {"video": "rex.mp4", "provider": "kie"}, TaskRequest(model="m")])
    assert_type(batch, Batch)
    assert entry.key == handle.key


async def refused(session: CharacterSession) -> None:
    """Fields that do not exist, and fields of another type."""
    await session.create(from_tsk="t")  # type: ignore[call-overload]
    await session.create(from_task=5)  # type: ignore[call-overload]
    await session.create(video="a.mp4", clip=5)  # type: ignore[call-overload]
    await session.submit(image="a.png")  # type: ignore[call-overload]
    await session.submit(images=[5])  # type: ignore[list-item]
    await session.register(model="m")  # type: ignore[call-arg]
    session.create_many([{"from_tsk": "t"}])  # type: ignore[list-item]
    session.create_many([{"video": 5}])  # type: ignore[list-item]
    session.create_many([{"model": "m", "prompt": "a"}])  # type: ignore[list-item]


def test_the_calls_are_checked() -> None:
    """`nox -s types` checks this file; here it is only loaded."""
    assert accepted.__doc__ != refused.__doc__
