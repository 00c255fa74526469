"""The base class of providers that send their requests through a `Transport`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sora_chars.protocols import Provider

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from sora_chars.transport import Transport


class HTTPProvider(Provider):
    """A provider that takes its connections, name and account from a transport."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.name = transport.provider
        self.account = transport.account

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self.name!r}, base_url={self._transport.base_url!r})"

    async def __aenter__(self) -> Self:
        await self._transport.enter()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._transport.leave()
