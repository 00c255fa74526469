"""The package's log records: a message that is readable by itself, and its facts as attributes.

Every record has the attribute `event`, a stable name such as "submission.failed", and one
attribute for each fact. The message is the event's sentence with the facts behind it, so
Python's stock formatters show the key and the task id too.

With the environment variable SORA_CHARS_LOG the records are written to the standard error
stream, in programs that set up no logging of their own.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

SENTENCES: Mapping[str, str] = {
    "batch.broken": "A row of the batch raised an unexpected error",
    "batch.left": "The batch was left while tasks were in flight; they continue",
    "callback.on_event_failed": "The application's `on_event` raised an error; the callback counts as taken",
    "callback.rejected": "A callback was rejected",
    "callback.unsigned": "Callbacks are verified by their token only, since there is no signing key",
    "consent.no_page": "The page on which a person consents could not be requested; the next poll requests it again",
    "exchange": "Request and response",
    "jobs.added": "A request that no job carried on has a job",
    "jobs.adopted": "The job of a worker that died runs again",
    "jobs.hook_failed": "The application's `ended` raised an error; it is called again",
    "jobs.upkeep_failed": "The search for jobs of dead workers failed; it is repeated",
    "ledger.entry_restored": "The ledger had lost an entry, which was written again",
    "ledger.indexed": "The search index is complete",
    "ledger.indexing": "The search index is being built; this can take minutes",
    "ledger.left_unfinished": "The ledger in memory was closed with unfinished tasks; keep their ids",
    "ledger.listener_lost": "The connection that listens for changes was lost; it is opened again",
    "ledger.no_search_index": "The database allows no search index, so searches read all entries",
    "ledger.poll_failed": "The ledger could not be read; it is read again",
    "ledger.unreadable": "An entry cannot be read and is skipped",
    "ledger.upgraded": "The ledger was upgraded to this version",
    "ledger.upgrading": "The ledger is being upgraded to this version; this can take minutes",
    "ledger.write_failed": "A write to the ledger failed; it is repeated until the session closes",
    "ledger.write_lost": "The session closed before the ledger could be written; keep these facts",
    "ledger.written_late": "A write to the ledger that had failed has succeeded",
    "limits.alone": "The shared rate limits cannot be reached; this process uses its own share",
    "observer.failed": "An observer of the session's events raised an error, and gets no more of them",
    "picture.not_saved": "A profile picture could not be saved",
    "polling_strategy.failed": "The polling strategy raised an error, which changes no result",
    "proxy.of_environment": "Requests go through the proxy that the environment names",
    "recovery.no_provider": "A running task is left alone, since the session lacks its provider",
    "recovery.unknown": "The outcome of a request is unknown; it is not sent again automatically",
    "recovery.unreadable": "An entry cannot be read and is left alone",
    "request.ended": "A request has ended",
    "request.repeated": "The request is sent again after a wait",
    "submission.cancelled": "The submission was cancelled with its caller",
    "submission.failed": "A submission failed after its caller was cancelled",
    "submission.outlived_its_caller": "The task keeps running although its caller was cancelled",
    "submission.second_task": "A key has a second task, which the ledger does not record",
    "submission.settled": "The provider was asked and showed the task of a request whose response was lost",
    "task.waits_for_person": "The task waits for a person, who must act on the page that its snapshot names",
    "tracker.failed": "The owners of tasks could not be checked; they are checked again",
    "upload.temporary": "The uploaded file is temporary, and a character made from it may end with it",
    "watcher.died": "The poller of a provider has ended; its waits end with an error",
    "worker.started": "The worker runs jobs",
    "worker.stopped": "The worker has stopped",
}
"""The sentence of each event."""

# The id of a Seedance asset is all that its use requires. "asset-library" is a part of icover's routes.
_ASSET = re.compile(r"\basset-(?!library\b)[\w-]+", re.IGNORECASE)
_VARIABLE = "SORA_CHARS_LOG"
_LEVELS: Mapping[str, int] = {"info": logging.INFO, "debug": logging.DEBUG}
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class RecordStream(logging.StreamHandler[TextIO]):
    """Writes the package's records to the standard error stream."""


class EventLogger(logging.LoggerAdapter[logging.Logger]):
    """Logs events by name: `log.warning("callback.rejected", extra={"status": 401})`."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[str, MutableMapping[str, Any]]:
        """Return the message of an event, and its facts as `extra`."""
        facts = {name: _without_asset(name, fact) for name, fact in (kwargs.get("extra") or {}).items()}
        shown = ", ".join(f"{name}={value}" for name, value in facts.items() if value is not None)
        kwargs["extra"] = {**facts, "event": msg}
        return f"{SENTENCES[msg]} ({shown})" if shown else SENTENCES[msg], kwargs


def _without_asset(name: str, fact: object) -> object:
    """Return a fact without the ids of Seedance assets. An idempotency key is the caller's own text."""
    if fact is None or name == "key" or not _ASSET.search(text := str(fact)):
        return fact
    return _ASSET.sub("asset-***", text)


def event_logger(name: str) -> EventLogger:
    """Return the logger of a part of the package, such as "sora_chars.session"."""
    return EventLogger(logging.getLogger(name))


def write_records(level: str) -> None:
    """Write the package's records to the standard error stream: from "info" or from "debug" on.

    Once the program sets up logging, its handlers get the records in place of the stream.
    """
    if level.lower() not in _LEVELS:
        warnings.warn(f"{_VARIABLE} must be info or debug, got {level!r}.", RuntimeWarning, stacklevel=2)
        return
    handler = RecordStream()
    handler.setFormatter(logging.Formatter(_FORMAT))
    handler.addFilter(lambda _: not logging.getLogger().handlers)
    logger = logging.getLogger("sora_chars")
    logger.addHandler(handler)
    logger.setLevel(_LEVELS[level.lower()])


def is_written() -> bool:
    """Return whether `write_records` or SORA_CHARS_LOG has the records written."""
    return any(isinstance(handler, RecordStream) for handler in logging.getLogger("sora_chars").handlers)


if _level := os.environ.get(_VARIABLE):
    write_records(_level)
