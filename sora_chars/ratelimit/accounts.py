"""The accounts whose limits a process keeps: one for each address, API key and limits."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import attrs

from .window import Cooldown, Limits, Window

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sora_chars.errors import RateLimitedError
    from sora_chars.kinds import Kind

_MAX_ACCOUNTS = 1000  # a web application may hold an API key for each of its users


@attrs.define(eq=False, repr=False)
class Account:
    """Windows of one API key of one provider, shared by all sessions of this process.

    Attributes:
        cooldown: Cooldown that applies to requests of every kind.
        windows: A window for each kind of request.
        name: Digest of the base URL and the API key; the same in every process.
    """

    cooldown: Cooldown
    windows: Mapping[Kind, Window]
    name: str = ""

    @classmethod
    def with_limits(cls, limits: Limits, name: str = "") -> Account:
        """Return a new account, which has sent nothing yet."""
        cooldown = Cooldown()
        kinds: dict[Kind, tuple[int, float] | None] = {
            "create": limits.creates,
            "poll": limits.polls,
            "other": None,
        }
        return cls(cooldown, {kind: Window(limit, cooldown) for kind, limit in kinds.items()}, name)

    def paused_by(self, error: RateLimitedError) -> Cooldown:
        """Return the cooldown that an error starts: of the account, or of creates alone."""
        return self.windows["create"].own_cooldown if error.creates_only else self.cooldown

    def on_success(self, kind: Kind, *, sent: float) -> None:
        """Record a response other than 429 to a request of a kind that was sent at `sent`."""
        self.cooldown.on_success(sent=sent)
        self.windows[kind].own_cooldown.on_success(sent=sent)


_ACCOUNTS: dict[tuple[str, Limits], Account] = {}


def account(base_url: str, api_key: str, limits: Limits) -> Account:
    """Return this process's account for an address, an API key and these limits.

    The account outlives sessions and event loops, because the provider continues to
    count after they end.
    """
    name = hashlib.sha256(f"{base_url} {api_key}".encode()).hexdigest()
    while len(_ACCOUNTS) >= _MAX_ACCOUNTS and (name, limits) not in _ACCOUNTS:
        del _ACCOUNTS[next(iter(_ACCOUNTS))]  # the oldest; sessions that use it keep their reference
    return _ACCOUNTS.setdefault((name, limits), Account.with_limits(limits, name))
