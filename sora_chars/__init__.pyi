from .batch.batch import Batch
from .batch.outcome import Outcome
from .batch.progress import Progress
from .callbacks.receiver import CallbackReceiver
from .errors import (
    AuthenticationError,
    BlockedError,
    CharacterDeletedError,
    ConfigurationError,
    InsufficientCreditsError,
    InvalidCallbackError,
    InvalidRequestError,
    InvalidTransitionError,
    KeyConflictError,
    LedgerError,
    MissingCharacterError,
    ModelUnavailableError,
    NoAnswerError,
    PermissionDeniedError,
    ProviderError,
    RateLimitedError,
    RequestRejectedError,
    ServiceUnavailableError,
    SessionClosedError,
    SoraCharsError,
    StaleEntryError,
    SubmissionUnknownError,
    TaskFailedError,
    TaskNotFoundError,
    UnreadableEntryError,
    UsageCapError,
    WaitTimeoutError,
    WatcherStoppedError,
    WrongLoopError,
)
from .ledger import Attempt, Entry, EntryState, Ledger, LedgerStore, open_ledger
from .ledger.postgres_ledger import PostgresLedger
from .ledger.queries import SavedCharacter
from .ledger.registration import Registration
from .media import CutProgress, Cutting
from .models import (
    Character,
    CharacterFields,
    CharacterRequest,
    Clip,
    Eta,
    JobFields,
    ModelInfo,
    RowFields,
    TaskFailure,
    TaskRequest,
    TaskSnapshot,
    UploadProgress,
    Voice,
    VoiceRequest,
)
from .polling.handle import TaskHandle
from .polling.strategies import AdaptiveInterval, FixedInterval, SteppedInterval
from .polling.watcher import TaskWatcher
from .protocols import PollingStrategy, Provider
from .providers.evolink import Evolink
from .providers.heygen import HeyGen
from .providers.kie import Kie
from .providers.kie_callback import CallbackEvent
from .providers.kkiai import GATEWAYS, Gateway, Kkiai
from .providers.kling import Kling
from .providers.seedance import SeedanceAssets
from .providers.vidu import Vidu
from .providers.wavespeed import Wavespeed
from .ratelimit.window import Limits
from .session.session import CharacterSession
from .session.stepping import Step

__version__: str

__all__ = [
    "GATEWAYS",
    "AdaptiveInterval",
    "Attempt",
    "AuthenticationError",
    "Batch",
    "BlockedError",
    "CallbackEvent",
    "CallbackReceiver",
    "Character",
    "CharacterDeletedError",
    "CharacterFields",
    "CharacterRequest",
    "CharacterSession",
    "Clip",
    "ConfigurationError",
    "CutProgress",
    "Cutting",
    "Entry",
    "EntryState",
    "Eta",
    "Evolink",
    "FixedInterval",
    "Gateway",
    "HeyGen",
    "InsufficientCreditsError",
    "InvalidCallbackError",
    "InvalidRequestError",
    "InvalidTransitionError",
    "JobFields",
    "KeyConflictError",
    "Kie",
    "Kkiai",
    "Kling",
    "Ledger",
    "LedgerError",
    "LedgerStore",
    "Limits",
    "MissingCharacterError",
    "ModelInfo",
    "ModelUnavailableError",
    "NoAnswerError",
    "Outcome",
    "PermissionDeniedError",
    "PollingStrategy",
    "PostgresLedger",
    "Progress",
    "Provider",
    "ProviderError",
    "RateLimitedError",
    "Registration",
    "RequestRejectedError",
    "RowFields",
    "SavedCharacter",
    "SeedanceAssets",
    "ServiceUnavailableError",
    "SessionClosedError",
    "SoraCharsError",
    "StaleEntryError",
    "Step",
    "SteppedInterval",
    "SubmissionUnknownError",
    "TaskFailedError",
    "TaskFailure",
    "TaskHandle",
    "TaskNotFoundError",
    "TaskRequest",
    "TaskSnapshot",
    "TaskWatcher",
    "UnreadableEntryError",
    "UploadProgress",
    "UsageCapError",
    "Vidu",
    "Voice",
    "VoiceRequest",
    "WaitTimeoutError",
    "WatcherStoppedError",
    "Wavespeed",
    "WrongLoopError",
    "open_ledger",
]
