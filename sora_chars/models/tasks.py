"""What providers report: the state of a task, its result, and the models on offer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import attrs

from sora_chars.errors import TaskFailedError, printable
from sora_chars.redaction import masked_repr

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sora_chars.errors import Charged

SUCCESS = "success"
FAIL = "fail"

TaskStatus: TypeAlias = Literal["running", "succeeded", "failed"]
"""The package's own words for the status of a task. `EntryState` has the same words for the same facts."""

_FINISHED: Mapping[str, TaskStatus] = {SUCCESS: "succeeded", FAIL: "failed"}


@attrs.frozen(kw_only=True)
class Character:
    """A character that a provider has created.

    Attributes:
        id: The provider's id of the character.
        provider: Name of the provider.
        username: The provider's user name of the character; see `mention`.
        name: Name that the request gave the character, or its display name.
        permalink: Public page of the character.
        picture_url: Signed link to the profile picture. It expires within days and is
            left out of the repr.
        task_id: Id of the task that created the character; None at providers without tasks.
        usage: How this character is named in a request at its provider: the members to put
            into the request, and in `prompt` how the prompt mentions it. Each provider's
            page in docs/providers.md states the source. None where nothing is known.
        expires_at: When the character may end with the upload that it was made from, at the
            earliest, in epoch seconds. None if nothing is known to end it.
        raw: The provider's response, parsed from JSON.
    """

    id: str
    provider: str
    username: str | None = None
    name: str | None = None
    permalink: str | None = None
    picture_url: str | None = attrs.field(default=None, repr=False)
    task_id: str | None = None
    usage: Mapping[str, Any] | None = None
    expires_at: float | None = None
    raw: Any = attrs.field(default=None, repr=False)

    @property
    def mention(self) -> str | None:
        """The user name with "@", for prompts, where spaces must surround it.

        None where the provider gives no user name; use `id` there.
        """
        return f"@{self.username}" if self.username else None


@attrs.frozen(kw_only=True)
class Voice:
    """A voice that a provider has created.

    Attributes:
        id: The provider's id of the voice, for `CharacterRequest.voice`.
        provider: Name of the provider.
        name: Name of the voice.
        task_id: Id of the task that created it.
        raw: The provider's record of the voice, parsed from JSON.
    """

    id: str
    provider: str
    name: str | None = None
    task_id: str | None = None
    raw: Any = attrs.field(default=None, repr=False)


@attrs.frozen
class TaskFailure:
    """The reason for a failed task: the provider's code, in digits or as a word, and its message."""

    code: str | None
    message: str = attrs.field(repr=masked_repr)


@attrs.frozen(kw_only=True)
class TaskSnapshot:
    """The state of a task as one response reported it.

    Attributes:
        task_id: The provider's id of the task.
        provider: Name of the provider.
        state: The provider's word for the state of the task, such as "waiting",
            "generating" or "success". See `status` for the package's own word.
        model: Name of the model.
        result: Result of a finished task, parsed from JSON.
        character: Character of a finished task, for models that create one.
        voice: Voice of a finished task that creates one.
        failure: Reason for a failed task.
        created_at: Creation time in seconds since the epoch, by the provider's clock.
        completed_at: Completion time in seconds since the epoch, by the provider's clock.
        credits: Credits that the task has cost.
        progress: Progress from 0 to 100.
        waiting_for: URL of the page on which a person must act before the task goes on,
            such as HeyGen's page of consent. None if nothing but the provider is
            waited for.
        retry_after: Seconds to wait before the next poll, where the provider states them.
        raw: The provider's response, parsed from JSON. A handle drops it while the task
            is running.
        digest: Hash of the response. An equal digest means an unchanged response, which
            is not parsed again.
    """

    task_id: str
    provider: str
    state: str
    model: str | None = None
    result: Any = attrs.field(default=None, repr=False)
    character: Character | None = None
    voice: Voice | None = None
    failure: TaskFailure | None = None
    created_at: float | None = None
    completed_at: float | None = None
    credits: float | None = None
    progress: float | None = None
    waiting_for: str | None = attrs.field(default=None, repr=masked_repr)
    retry_after: float | None = attrs.field(default=None, repr=False, eq=False)
    raw: Any = attrs.field(default=None, repr=False, eq=False)
    digest: int | None = attrs.field(default=None, repr=False, eq=False)

    @property
    def status(self) -> TaskStatus:
        """The status of the task, in the same words at every provider: "running", "succeeded" or "failed".

        A state that is not known counts as "running".
        """
        return _FINISHED.get(self.state, "running")

    @property
    def finished(self) -> bool:
        """Whether the task has succeeded or failed."""
        return self.state in _FINISHED

    @property
    def duration(self) -> float | None:
        """Seconds from creation to completion; None until both times are known."""
        if self.created_at is None or self.completed_at is None:
            return None
        return max(0.0, self.completed_at - self.created_at)

    def outcome(self) -> Character | Voice | TaskSnapshot:
        """Return the character or the voice of the finished task; for a model that creates none, return this snapshot.

        Raises:
            TaskFailedError: The task failed.
        """
        if self.status != "failed":
            return self.character or self.voice or self
        failure = self.failure or TaskFailure(None, "")
        code = f" with code {printable(failure.code, limit=50)}" if failure.code else ""
        reason = printable(failure.message) or "no reason was given"
        raise TaskFailedError(
            f"{f'Task {self.task_id}' if self.task_id else 'The request'} failed at {self.provider}{code}: {reason}",
            provider=self.provider,
            task_id=self.task_id or None,
            code=failure.code,
            snapshot=attrs.evolve(self, raw=None),  # `raw` may repeat the secret callback URL
            charged=_charged(self.credits),
        )


def _charged(amount: float | None) -> Charged:
    if amount is None:
        return "maybe"
    return "yes" if amount else "no"


@attrs.frozen(kw_only=True)
class Eta:
    """An estimate of the seconds that a running task still needs.

    It is based on the durations of finished tasks of the same model, given that this
    task is still running at its age.

    Attributes:
        low: Quantile of 10 percent: 9 of 10 tasks need this long or longer.
        median: Quantile of 50 percent.
        high: Quantile of 90 percent: 1 of 10 tasks needs this long or longer.
    """

    low: float
    median: float
    high: float


@attrs.frozen
class ModelInfo:
    """A model that a provider offers.

    Attributes:
        model: Name of the model, for `TaskRequest.model`.
        title: Display name.
        provider: Vendor of the model.
        task_type: Kind of the task, such as "text-to-video".
        raw: The provider's record of the model, parsed from JSON.
    """

    model: str
    title: str | None = None
    provider: str | None = None
    task_type: str | None = None
    raw: Mapping[str, Any] = attrs.field(factory=dict, repr=False)


@attrs.frozen
class UploadProgress:
    """The progress of the upload of a local file.

    Attributes:
        path: The local file.
        sent: Bytes sent so far.
        total: Size of the file in bytes.
    """

    path: Path
    sent: int
    total: int
