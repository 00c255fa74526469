"""Turns a piece of video into a reusable character, through any of several providers, as one awaitable.

::

    async with CharacterSession(Kie()) as session:
        character = await session.create(from_task="7118f712...", clip="3.55,5.55", prompt="A friendly cartoon dog")
"""

from importlib import import_module
from typing import Any

_MODULES = {
    "batch.batch": ("Outcomes",),
    "callbacks.receiver": ("CallbackEvent", "CallbackReceiver"),
    "session.dispatcher": ("Step",),
    "errors": (
        "AuthenticationError",
        "ConfigurationError",
        "EntryMovedError",
        "IllegalMoveError",
        "InsufficientCreditsError",
        "InvalidCallbackError",
        "InvalidRequestError",
        "KeyConflictError",
        "LedgerError",
        "MissingCharacterError",
        "ModelUnavailableError",
        "NoAnswerError",
        "PermissionDeniedError",
        "ProviderError",
        "RateLimitedError",
        "RequestRefusedError",
        "ServiceUnavailableError",
        "SessionClosedError",
        "SoraCharsError",
        "SubmissionUnknownError",
        "TaskFailedError",
        "TaskNotFoundError",
        "UsageCapError",
        "WaitTimeoutError",
        "WatcherStoppedError",
        "WrongLoopError",
    ),
    "polling.handle": ("TaskHandle",),
    "ledger": ("Entry", "Ledger", "State", "Store", "open_ledger"),
    "ratelimit.window": ("Limits",),
    "models": (
        "Character",
        "CharacterRequest",
        "Clip",
        "Eta",
        "ModelInfo",
        "OmniCharacterRequest",
        "TaskFailure",
        "TaskRequest",
        "TaskSnapshot",
        "UploadProgress",
    ),
    "batch.outcome": ("Outcome",),
    "polling.strategies": ("FixedPace", "LadderPace", "LearnedPace"),
    "batch.progress": ("Progress",),
    "protocols": ("Pace", "Provider"),
    "providers.kie": ("Kie",),
    "providers.kkiai": ("GATEWAYS", "Gateway", "Kkiai"),
    "ledger.serialize": ("SavedCharacter",),
    "session.session": ("CharacterSession",),
    "polling.watcher": ("TaskWatcher",),
}
"""Where the public names live; `__init__.pyi` tells type checkers the same. Each is loaded when first asked for."""

_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
# The stub has them one by one.
__all__ = sorted(_MODULE_OF, key=lambda name: (not name.isupper(), name))  # noqa: PLE0605 # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
