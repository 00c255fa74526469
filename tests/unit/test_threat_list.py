"""The threat list of docs/security.md names real tests, and leaves no threat without one."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/security.md").read_text()
THREATS: dict[str, list[tuple[str, str]]] = {
    section.partition("\n")[0]: re.findall(r"^- `([\w/]+\.py)::(\w+)`$", section, re.MULTILINE)
    for section in TEXT.partition("\n## ")[0].split("\n### ")[1:]
}


def names_in(path: Path) -> set[str]:
    """The names of the test functions in a file."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, functions)}
    return {name for name in found if name.startswith("test_")}


def test_there_are_threats() -> None:
    """The list is found, and every mention of a test in it is one of its lines."""
    assert len(THREATS) >= 10
    assert TEXT.count("::") == sum(map(len, THREATS.values()))


@pytest.mark.parametrize("threat", THREATS)
def test_every_threat_has_its_tests(threat: str) -> None:
    """Each threat names at least one test, none twice, and all of them exist."""
    named = THREATS[threat]
    assert named
    assert len(set(named)) == len(named)
    assert not [(file, name) for file, name in named if name not in names_in(ROOT / file)]
