"""What the providers of Kling's elements at gateways share: checks, polls and callback URLs, as coroutines."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from .base import PolledProvider, clean_url
from .local_files import request_problems

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sora_chars.models import Accepts, Request, TaskSnapshot
    from sora_chars.transport import Transport


class ElementGateway(PolledProvider):
    """A provider whose tasks are polled by their ids. It cannot be asked for the task of a key.

    Args:
        transport: The connections.
        callback_url: Public URL under which a `CallbackReceiver` is mounted.
        accepts: What the gateway accepts.
        task_path: Returns the path of a poll, from the quoted id of the task.
        read_record: Returns the snapshot in the response to a poll.
    """

    settles = None

    def __init__(
        self,
        transport: Transport,
        *,
        callback_url: str | None,
        accepts: Accepts,
        task_path: Callable[[str], str],
        read_record: Callable[..., TaskSnapshot],
    ) -> None:
        super().__init__(transport)
        self.callback_url = None if callback_url is None else clean_url(callback_url, field="callback_url")
        self.accepts = accepts
        self._accepts = accepts
        self._task_path = task_path
        self._read_record = read_record

    def check(self, request: Request) -> Sequence[str]:
        """See `Provider.check`. Checks size, format, and the declared duration or pixels of local files."""
        return request_problems(self._accepts, request)

    async def _poll(self, task_id: str, seen: TaskSnapshot | None) -> TaskSnapshot:
        return await self._transport.request(
            "GET",
            self._transport.base_url + self._task_path(quote(task_id, safe="")),
            lambda response: self._read_record(response, task_id=task_id, provider=self.name, seen=seen),
            kind="poll",
        )
