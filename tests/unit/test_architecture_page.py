"""docs/architecture.md describes the package as it is: packages, layers, files and states."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from sora_chars.ledger import EntryState
from sora_chars.ledger.states import TRANSITIONS

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "sora_chars"
PAGE = (ROOT / "docs" / "architecture.md").read_text()
SECTIONS = {text.partition("\n")[0]: text for text in PAGE.split("\n## ")[1:]}


def rows(section: str) -> list[list[str]]:
    """Return the cells of a section's table, without its head."""
    lines = [line.strip("|").split("|") for line in SECTIONS[section].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in lines[2:]]


def test_tree_names_each_package_and_module() -> None:
    """The tree lists every package and every top-level module, each once."""
    tree = re.findall(r"^([\w.]+/?) ", SECTIONS["Packages"].split("```")[1], re.MULTILINE)
    packages = [f"{path.parent.name}/" for path in PACKAGE.glob("*/__init__.py")]
    modules = [path.name for path in PACKAGE.glob("*.py") if not path.name.startswith("__")]
    assert sorted(tree) == sorted(packages + modules)


def test_layers_are_those_of_the_contract() -> None:
    """The table lists the layers that import-linter checks, in the same order."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (contract,) = [contract for contract in contracts if contract["type"] == "layers"]
    expected = [set(layer.split(" | ")) for layer in contract["layers"]]
    assert [set(re.findall(r"`(\w+)`", cells)) for _, cells in rows("Layers")] == expected


def test_states_are_those_of_the_ledger() -> None:
    """The table lists every state of an entry with the states that may follow it."""
    table = {
        state.strip("`"): set(re.findall(r"`(\w+)`", following))
        for state, _, following in rows("The states of an entry")
    }
    assert table == {str(state): set(map(str, TRANSITIONS[state])) for state in EntryState}


def test_files_exist() -> None:
    """Every file that the page names exists, in the package or in the repository."""
    named = set(re.findall(r"`((?:\w+/)*[\w.]+\.pyi?)(?::[\w.]+)?`", PAGE))
    assert len(named) > 20
    assert not [name for name in named if not ((PACKAGE / name).exists() or (ROOT / name).exists() or "NAME" in name)]
