"""The state of one emulator, which its route handlers read and change."""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING, NamedTuple

import attrs

from .files import FileStore

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .callbacks import CallbackSender
    from .counters import Counts
    from .faults import Fault, FaultRegistry
    from .gateway_tasks import GatewayAccount
    from .heygen_looks import LookStore
    from .kling_callbacks import KlingCallbacks
    from .kling_tasks import KlingStore
    from .seedance_assets import AssetStore
    from .tasks import EmulatedTask, TaskStore

MAX_LOGGED_REQUESTS = 1000


class LoggedRequest(NamedTuple):
    """A request in the log.

    `status` is the status that the server chose, even if a fault destroyed the response;
    `fault` is the kind of the fault that hit the request.
    """

    method: str
    path: str
    status: int
    fault: str | None


@attrs.define(eq=False, slots=False, kw_only=True, repr=False)
class EmulatorState:
    """Everything that one emulator knows.

    Attributes:
        models: What each existing model makes.
        kkiai_model: The model that kkiai.com's route requires; None forbids one.
        task_store: The tasks and the credits.
        faults: The active faults.
        callback_sender: Sends the callbacks.
        kling: Kling's tasks and elements.
        kling_callbacks: Sends Kling's callbacks.
        wavespeed: Wavespeed's tasks and callbacks.
        evolink: Evolink's tasks and callbacks.
        seedance: The assets of icover and Ark.
        heygen: The avatars of HeyGen.
        ark_keys: The access key and the secret key that Ark accepts; None for any.
        counts: What the emulator received.
        subjects: Vidu's subjects by their ids, oldest first.
        files: The files that the emulator serves.
        requests: The latest requests, oldest first.
        request_counts: The number of requests by method and path.
        url: Where the emulator listens.
    """

    models: Mapping[str, str]
    kkiai_model: str | None
    task_store: TaskStore
    faults: FaultRegistry
    callback_sender: CallbackSender
    kling: KlingStore
    kling_callbacks: KlingCallbacks
    wavespeed: GatewayAccount
    evolink: GatewayAccount
    seedance: AssetStore
    heygen: LookStore
    ark_keys: tuple[str, str] | None
    counts: Counts
    subjects: dict[str, dict[str, object]] = attrs.field(factory=dict)
    files: FileStore = attrs.field(factory=FileStore)
    requests: deque[LoggedRequest] = attrs.field(factory=lambda: deque[LoggedRequest](maxlen=MAX_LOGGED_REQUESTS))
    request_counts: Counter[tuple[str, str]] = attrs.field(factory=Counter)
    url: str = ""

    @property
    def tasks(self) -> Mapping[str, EmulatedTask]:
        """Every task by its id, oldest first."""
        return self.task_store.tasks

    def fault(
        self,
        kind: str,
        *,
        on: str | None = None,
        times: int | None = 1,
        rate: float = 1.0,
        **settings: object,
    ) -> Fault:
        """Make requests, tasks or callbacks fail.

            emulator.fault("http_500", on="poll", times=3)
            emulator.fault("delay", on="callback", seconds=0.1)

        Args:
            kind: The failure; `sora_chars.testing.emulator.faults.KINDS` lists them all.
            on: create, poll, callback, upload, character, omni, element, element_poll, other or any. Defaults to
                the first target of the kind.
            times: After how many hits the fault ends; None for never.
            rate: The share of the matching requests that the fault hits.
            settings: The settings of the kind, such as `seconds=0.1`.

        Returns:
            The fault; `hits` counts what it hit, and `remove()` ends it.

        Raises:
            ValueError: The kind, the target or a setting is unknown.
        """
        return self.faults.add(kind, on=on, times=times, rate=rate, settings=settings)
