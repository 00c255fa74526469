"""The unguessable tokens in callback URLs: which submission each belongs to."""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict

import attrs

_MOST_CLAIMS = 8


@attrs.define(eq=False)
class Owner:
    """The submission that a token was made for. `task_id` is None until createTask has answered."""

    provider: str
    task_id: str | None = None
    claims: set[str] = attrs.field(factory=set[str])  # task ids of callbacks that came before the answer


@attrs.define(eq=False)
class CallbackTokens:
    """All tokens of a session: those of living tasks, and the last `most_retired` of ended ones (late duplicates).

    Tokens are kept and looked up by their SHA-256, so that a look-up tells nothing by its time.
    """

    most_retired: int = 10_000
    _owners: dict[bytes, Owner] = attrs.field(factory=dict[bytes, Owner], repr=False)
    _retired: OrderedDict[bytes, Owner] = attrs.field(factory=OrderedDict[bytes, Owner], repr=False)

    def mint(self, provider: str) -> str:
        """A token for a submission that is about to be made."""
        token = secrets.token_urlsafe(24)
        self._owners[_digest(token)] = Owner(provider)
        return token

    def bind(self, token: str, task_id: str) -> bool:
        """Tie the token to the id that createTask answered. True when its callback has come before."""
        owner = self._owners[_digest(token)]
        owner.task_id = task_id
        return task_id in owner.claims

    def retire(self, token: str) -> None:
        """The task has ended, or was never made."""
        owner = self._owners.pop(_digest(token), None)
        if owner:
            self._retired[_digest(token)] = owner
            if len(self._retired) > self.most_retired:
                self._retired.popitem(last=False)

    def claim(self, token: str, task_id: str) -> Owner | None:
        """Whose callback this is: None when the token is unknown, or another task's."""
        owner = self.owner(token)
        if owner is None or owner.task_id not in {None, task_id}:
            return None
        if owner.task_id is None and len(owner.claims) < _MOST_CLAIMS:
            owner.claims.add(task_id)
        return owner

    def owner(self, token: str) -> Owner | None:
        """The submission of a token, if it is one of ours."""
        digest = _digest(token)
        return self._owners.get(digest) or self._retired.get(digest)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="replace")).digest()
