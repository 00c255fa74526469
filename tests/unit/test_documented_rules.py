"""docs/rules.md and docs/security.md name existing tests for every rule and every threat."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXTS = [(ROOT / "docs" / name).read_text() for name in ("security.md", "rules.md")]
CLAIMS: dict[str, list[tuple[str, str]]] = {
    section.partition("\n")[0]: re.findall(r"^- `([\w/]+\.py)::(\w+)`$", section, re.MULTILINE)
    for text in TEXTS
    for section in text.partition("\n## ")[0].split("\n### ")[1:]
}


def names_in(path: Path) -> set[str]:
    """Return the names of the test functions in a file."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, functions)}
    return {name for name in found if name.startswith("test_")}


def test_lists_are_found() -> None:
    """Every test that the two pages mention stands on a list line of a rule or a threat."""
    assert len(CLAIMS) >= 20
    assert sum(text.count("::") for text in TEXTS) == sum(map(len, CLAIMS.values()))


@pytest.mark.parametrize("claim", CLAIMS)
def test_claim_names_existing_tests(claim: str) -> None:
    """Each rule and each threat names at least one test, none twice, and all exist."""
    named = CLAIMS[claim]
    assert named
    assert len(set(named)) == len(named)
    assert not [(file, name) for file, name in named if name not in names_in(ROOT / file)]
