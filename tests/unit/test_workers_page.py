"""The table of docs/workers.md counts the lines of the programs as they are."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parent.parent.parent / "docs"
ENGINES = {"Temporal", "pydocket", "Celery", "FastAPI", "Django"}


def lines_of(text: str) -> int:
    """Count the lines of the Python programs in a text, without empty lines and comments."""
    programs = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line.strip() for program in programs for line in program.splitlines()]
    return sum(1 for line in lines if line and not line.startswith("#"))


def test_lines_of_each_engine() -> None:
    """Each engine's row has the number of lines on its page."""
    page = (DOCS / "workers.md").read_text()
    counted = {name: int(lines) for name, lines in re.findall(r"^\| \[(\w+)\]\(\S+\) \| (\d+) \|", page, re.MULTILINE)}
    sections = dict(re.findall(r"^## (\w+)[^\n]*\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    found = {name: lines_of(text) for name, text in sections.items() if name in ENGINES}
    assert counted == found | {"Procrastinate": lines_of((DOCS / "procrastinate.md").read_text())}
