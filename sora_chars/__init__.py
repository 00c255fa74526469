"""Turn a video or images into a reusable character, through any of several providers, as one awaitable.

::

    async with CharacterSession(Kie()) as session:
        character = await session.create(from_task="7118f712...", clip="3.55,5.55", prompt="A friendly cartoon dog")
"""

from importlib import import_module
from typing import Any

_MODULES = {
    "batch.batch": ("Batch",),
    "batch.outcome": ("Outcome",),
    "batch.progress": ("Progress",),
    "callbacks.receiver": ("CallbackReceiver",),
    "errors": (
        "AuthenticationError",
        "BlockedError",
        "CharacterDeletedError",
        "ConfigurationError",
        "InsufficientCreditsError",
        "InvalidCallbackError",
        "InvalidRequestError",
        "InvalidTransitionError",
        "KeyConflictError",
        "LedgerError",
        "MissingCharacterError",
        "ModelUnavailableError",
        "NoAnswerError",
        "PermissionDeniedError",
        "ProviderError",
        "RateLimitedError",
        "RequestRejectedError",
        "ServiceUnavailableError",
        "SessionClosedError",
        "SoraCharsError",
        "StaleEntryError",
        "SubmissionUnknownError",
        "TaskFailedError",
        "TaskNotFoundError",
        "UnreadableEntryError",
        "UsageCapError",
        "WaitTimeoutError",
        "WatcherStoppedError",
        "WrongLoopError",
    ),
    "ledger": ("Attempt", "Entry", "EntryState", "Ledger", "LedgerStore", "open_ledger"),
    "ledger.postgres_ledger": ("PostgresLedger",),
    "ledger.queries": ("SavedCharacter",),
    "ledger.registration": ("Registration",),
    "media": ("CutProgress", "Cutting"),
    "models": (
        "Character",
        "CharacterFields",
        "CharacterRequest",
        "Clip",
        "Eta",
        "JobFields",
        "ModelInfo",
        "RowFields",
        "TaskFailure",
        "TaskRequest",
        "TaskSnapshot",
        "UploadProgress",
        "Voice",
        "VoiceRequest",
    ),
    "polling.handle": ("TaskHandle",),
    "polling.strategies": ("AdaptiveInterval", "FixedInterval", "SteppedInterval"),
    "polling.watcher": ("TaskWatcher",),
    "protocols": ("PollingStrategy", "Provider"),
    "providers.heygen": ("HeyGen",),
    "providers.kie": ("Kie",),
    "providers.kie_callback": ("CallbackEvent",),
    "providers.evolink": ("Evolink",),
    "providers.kling": ("Kling",),
    "providers.vidu": ("Vidu",),
    "providers.wavespeed": ("Wavespeed",),
    "providers.seedance": ("SeedanceAssets",),
    "providers.kkiai": ("GATEWAYS", "Gateway", "Kkiai"),
    "ratelimit.window": ("Limits",),
    "session.stepping": ("Step",),
    "session.session": ("CharacterSession",),
}
"""The modules of the public names, which are imported at first access. `__init__.pyi` lists them for type checkers."""

_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
# The stub has them one by one.
__all__ = sorted(_MODULE_OF, key=lambda name: (not name.isupper(), name))  # noqa: PLE0605 # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("sora-chars")  # takes longer to import than this package
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
