"""Shows on which page a person must act, while a command waits for a task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .output import print_line
from .render import one_line

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from sora_chars.models import TaskSnapshot
    from sora_chars.polling.handle import TaskHandle

    from .context import CommandContext


async def updates_with_pages(
    context: CommandContext, handle: TaskHandle[Any], timeout: float
) -> AsyncGenerator[TaskSnapshot, None]:
    """Yield the changes of a task, and write each page on which a person must act to stderr, also with --json.

    Raises:
        SoraCharsError: As `TaskHandle.updates`.
    """
    context.shows_pages = True
    shown: str | None = None
    async for snapshot in handle.updates(timeout):
        if snapshot.waiting_for and snapshot.waiting_for != shown:
            shown = snapshot.waiting_for
            text = (
                f"Task {one_line(handle.task_id)} at {handle.provider} waits for a person, who must act on this page:"
            )
            print_line(context.output.err, f"{text} {one_line(shown)}")
        yield snapshot
