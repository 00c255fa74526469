"""The names that the package exports, and what importing them loads."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import sora_chars
from sora_chars import CharacterSession, Kie, Kkiai
from sora_chars.transport import Transport

KEY = "sk-do-not-show-me"
PUBLIC_MODULES = (
    *("errors", "models.requests", "models.tasks", "protocols", "ratelimit.window", "batch.outcome", "batch.progress"),
    *("polling.handle", "polling.strategies", "polling.watcher"),
    *("ledger.ledger", "ledger.entry", "ledger.states", "ledger.queries"),
    *("session.session", "session.stepping", "callbacks.receiver"),
    *("providers.kie", "providers.kie_callback", "providers.kkiai"),
)
# Classes of these modules that are not exported.
INNER = {
    "ReceivingDispatcher",
    "ReceivingSession",
    "Dispatcher",
    "Cooldown",
    "Slot",
    "QuotaShare",
    "WatchedTask",
    "HandleContext",
    "Account",
    "Window",
    "ProgressCounter",
}


def test_names_are_sorted() -> None:
    """`__all__` is sorted, constants first, and names nothing twice."""
    names = list(sora_chars.__all__)
    assert names == sorted(set(names), key=lambda name: (not name.isupper(), name))


def test_names_exist() -> None:
    """Every public name can be imported and has a docstring."""
    for name in sora_chars.__all__:
        assert getattr(sora_chars, name).__doc__


@pytest.mark.parametrize("module", PUBLIC_MODULES)
def test_classes_are_exported(module: str) -> None:
    """Every public class of these modules is a public name of the package."""
    found = importlib.import_module(f"sora_chars.{module}")
    public = {
        name
        for name, kind in inspect.getmembers(found, inspect.isclass)
        if kind.__module__ == found.__name__ and not name.startswith("_")
    }
    assert public
    assert public - INNER <= set(sora_chars.__all__)


def test_exports_are_our_own() -> None:
    """Every public name is defined in this package."""
    for name in set(sora_chars.__all__) - {"GATEWAYS"}:
        assert getattr(sora_chars, name).__module__.startswith("sora_chars.")


def test_stub_matches() -> None:
    """The stub imports each public name from the same module as the package, and lists them all."""
    stub = ast.parse(Path(sora_chars.__file__).with_suffix(".pyi").read_text())
    modules = {
        node.module: tuple(name.name for name in node.names) for node in stub.body if isinstance(node, ast.ImportFrom)
    }
    (names,) = (ast.literal_eval(node.value) for node in stub.body if isinstance(node, ast.Assign))
    assert modules == vars(sora_chars)["_MODULES"]
    assert names == sora_chars.__all__


def test_dir() -> None:
    """`dir` lists public names before they are loaded; an unknown name raises AttributeError."""
    assert set(sora_chars.__all__) <= set(dir(sora_chars))
    package: Any = sora_chars
    with pytest.raises(AttributeError, match="module 'sora_chars' has no attribute 'Session'"):
        package.Session  # noqa: B018 # the access is the test


@pytest.mark.parametrize(
    ("code", "loaded"),
    [
        ("import sora_chars", set[str]()),
        ("from sora_chars import CharacterSession, Kie", {"sora_chars.session.session", "aiohttp", "backoff"}),
    ],
)
def test_imports_are_lazy(code: str, loaded: set[str]) -> None:
    """The package imports nothing; a name imports its own modules, and no optional ones."""
    code = f"import json, sys; {code}; print(json.dumps(sorted(sys.modules)))"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    modules = set(json.loads(printed.stdout))
    assert loaded == modules & {"sora_chars.session.session", "aiohttp", "backoff"}
    assert not modules & {
        "aiohttp.web",
        "click",
        "rich",
        "psycopg",
        "pytest",
        "fastapi",
        "httpx",
        "sora_chars.batch.batch",
        "sora_chars.cli",
        "sora_chars.providers.media",
        "sora_chars.session.pictures",
        "sora_chars.providers.kkiai",
        "sora_chars.ratelimit.distributed",
        "sora_chars.testing",
    }


def test_repr_hides_keys() -> None:
    """The reprs of providers, transports and sessions show no key and no proxy's password."""
    proxy = f"http://user:{KEY}@proxy:3128"
    kie = Kie(KEY, proxy=proxy)
    kkiai = Kkiai(KEY, proxy=proxy)
    transport = Transport(provider="p", base_url="https://a", api_key=KEY, proxy=proxy)
    for thing in (kie, kkiai, kie._transport, transport, transport.account, CharacterSession(kie, kkiai)):
        assert KEY not in repr(thing)
    assert repr(kie) == "Kie(name='kie', base_url='https://api.kie.ai')"
    assert repr(kkiai) == "Kkiai(name='kkiai', base_url='https://www.kkiai.com')"
