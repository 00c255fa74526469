"""Turns a piece of video into a reusable character, through any of several providers, as one awaitable.

::

    async with CharacterSession(Kie()) as session:
        character = await session.create(from_task="7118f712...", clip="3.55,5.55", prompt="A friendly cartoon dog")
"""

from .batch import Outcome, Outcomes
from .callbacks import CallbackEvent, CallbackReceiver
from .desk import Step
from .errors import (
    AuthenticationError,
    ConfigurationError,
    EntryMovedError,
    IllegalMoveError,
    InsufficientCreditsError,
    InvalidCallbackError,
    InvalidRequestError,
    KeyConflictError,
    LedgerError,
    MissingCharacterError,
    ModelUnavailableError,
    NoAnswerError,
    PermissionDeniedError,
    ProviderError,
    RateLimitedError,
    RequestRefusedError,
    ServiceUnavailableError,
    SessionClosedError,
    SoraCharsError,
    SubmissionUnknownError,
    TaskFailedError,
    TaskNotFoundError,
    UsageCapError,
    WaitTimeoutError,
    WatcherStoppedError,
    WrongLoopError,
)
from .handle import TaskHandle
from .ledger import Entry, Ledger, State, Store, open_ledger
from .limits import Limits
from .models import (
    Character,
    CharacterRequest,
    Clip,
    Eta,
    ModelInfo,
    OmniCharacterRequest,
    TaskFailure,
    TaskRequest,
    TaskSnapshot,
    UploadProgress,
)
from .pacing import FixedPace, LadderPace, LearnedPace
from .progress import Progress
from .protocols import Pace, Provider
from .providers import GATEWAYS, Gateway, Kie, Kkiai
from .records import SavedCharacter
from .session import CharacterSession
from .watcher import TaskWatcher

__all__ = [
    "GATEWAYS",
    "AuthenticationError",
    "CallbackEvent",
    "CallbackReceiver",
    "Character",
    "CharacterRequest",
    "CharacterSession",
    "Clip",
    "ConfigurationError",
    "Entry",
    "EntryMovedError",
    "Eta",
    "FixedPace",
    "Gateway",
    "IllegalMoveError",
    "InsufficientCreditsError",
    "InvalidCallbackError",
    "InvalidRequestError",
    "KeyConflictError",
    "Kie",
    "Kkiai",
    "LadderPace",
    "LearnedPace",
    "Ledger",
    "LedgerError",
    "Limits",
    "MissingCharacterError",
    "ModelInfo",
    "ModelUnavailableError",
    "NoAnswerError",
    "OmniCharacterRequest",
    "Outcome",
    "Outcomes",
    "Pace",
    "PermissionDeniedError",
    "Progress",
    "Provider",
    "ProviderError",
    "RateLimitedError",
    "RequestRefusedError",
    "SavedCharacter",
    "ServiceUnavailableError",
    "SessionClosedError",
    "SoraCharsError",
    "State",
    "Step",
    "Store",
    "SubmissionUnknownError",
    "TaskFailedError",
    "TaskFailure",
    "TaskHandle",
    "TaskNotFoundError",
    "TaskRequest",
    "TaskSnapshot",
    "TaskWatcher",
    "UploadProgress",
    "UsageCapError",
    "WaitTimeoutError",
    "WatcherStoppedError",
    "WrongLoopError",
    "open_ledger",
]
