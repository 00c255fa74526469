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
MET = (
    *("errors", "models", "protocols", "ratelimit.window", "batch.outcome", "batch.progress"),
    *("polling.handle", "polling.strategies", "polling.watcher"),
    *("ledger.ledger", "ledger.entry", "ledger.states", "ledger.queries"),
    *("session.session", "session.stepping", "callbacks.receiver"),
    *("providers.kie", "providers.kkiai"),
)
# What the parts of one module are made of.
INNER = {
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


def test_the_public_names_are_sorted() -> None:
    """`__all__` is sorted, constants first, and names nothing twice."""
    names = list(sora_chars.__all__)
    assert names == sorted(set(names), key=lambda name: (not name.isupper(), name))


def test_the_public_names_exist() -> None:
    """Every public name can be imported, and is what it says."""
    for name in sora_chars.__all__:
        assert getattr(sora_chars, name).__doc__


@pytest.mark.parametrize("module", MET)
def test_every_class_that_users_meet_is_exported(module: str) -> None:
    """A public class of a module that users meet is a public name of the package: every error, value and protocol."""
    found = importlib.import_module(f"sora_chars.{module}")
    public = {
        name
        for name, kind in inspect.getmembers(found, inspect.isclass)
        if kind.__module__ == found.__name__ and not name.startswith("_")
    }
    assert public
    assert public - INNER <= set(sora_chars.__all__)


def test_nothing_is_exported_that_is_not_met() -> None:
    """No public name comes from anywhere but this package."""
    for name in set(sora_chars.__all__) - {"GATEWAYS"}:
        assert getattr(sora_chars, name).__module__.startswith("sora_chars.")


def test_type_checkers_are_told_the_same() -> None:
    """The stub imports each public name from the room that the package takes it from, and lists them all."""
    stub = ast.parse(Path(sora_chars.__file__).with_suffix(".pyi").read_text())
    rooms = {
        node.module: tuple(name.name for name in node.names) for node in stub.body if isinstance(node, ast.ImportFrom)
    }
    (names,) = (ast.literal_eval(node.value) for node in stub.body if isinstance(node, ast.Assign))
    assert rooms == vars(sora_chars)["_MODULES"]
    assert names == sora_chars.__all__


def test_every_public_name_can_be_found() -> None:
    """A shell that completes names offers them before they are loaded, and a wrong one is said as usual."""
    assert set(sora_chars.__all__) <= set(dir(sora_chars))
    package: Any = sora_chars
    with pytest.raises(AttributeError, match="module 'sora_chars' has no attribute 'Session'"):
        package.Session  # noqa: B018 # asked for


@pytest.mark.parametrize(
    ("code", "loaded"),
    [
        ("import sora_chars", set[str]()),
        ("from sora_chars import CharacterSession, Kie", {"sora_chars.session.session", "aiohttp", "backoff"}),
    ],
)
def test_importing_the_package_imports_what_is_needed(code: str, loaded: set[str]) -> None:
    """Neither the command line, nor the emulator, nor batches, nor another provider; for no name, nothing at all."""
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


def test_no_key_shows_in_a_repr() -> None:
    """Neither a provider nor its transport, nor a session of them, shows its key or a proxy's password."""
    proxy = f"http://user:{KEY}@proxy:3128"
    kie, kkiai = Kie(KEY, proxy=proxy), Kkiai(KEY, proxy=proxy)
    transport = Transport(provider="p", base_url="https://a", api_key=KEY, proxy=proxy)
    for thing in (kie, kkiai, kie._transport, transport, transport.account, CharacterSession(kie, kkiai)):
        assert KEY not in repr(thing)
    assert repr(kie) == "Kie(name='kie', base_url='https://api.kie.ai')"
    assert repr(kkiai) == "Kkiai(name='kkiai', base_url='https://www.kkiai.com')"
