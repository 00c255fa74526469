"""All benchmarks, or some: `python benchmarks/run.py [--quick] [--parts A,C]`, where requirements.txt is installed.

Parts are merged into results.json; RESULTS.md and results.png are made of that. With --quick (two minutes) everything
is run small, and what comes out is thrown away: it shows that the benchmarks work, not how fast anything is.
"""

from __future__ import annotations

import argparse
import importlib
import json
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import machine

if TYPE_CHECKING:
    from collections.abc import Iterable

HERE = Path(__file__).parent
PARTS = {
    "A": {"waiting": "waiting", "watched": "watched"},
    "B": {"pacing": "pacing"},
    "C": {"callbacks": "callbacks"},
    "D": {"cards": "cards", "limits": "limits"},
    "E": {"presence": "presence"},
    "L": {"records": "ledger"},
}
"""For each part the modules, each with a `figures(quick)` of its own."""


def run(parts: Iterable[str], folder: Path, *, quick: bool) -> None:
    """Run the parts one by one, and write what came out after each."""
    path = folder / "results.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for part in parts:
        for name, module in PARTS[part].items():
            if not (HERE / f"{module}.py").exists():
                print(f"{part}: {name} is not there yet", flush=True)
                continue
            print(f"{part}: {name}", flush=True)
            began = time.perf_counter()
            figures = importlib.import_module(module).figures(quick=quick)
            took = time.perf_counter() - began
            results[name] = {"part": part, "took_s": took, "machine": machine.shape(), "figures": figures}
            path.write_text(json.dumps(results, indent=1) + "\n")
            print(f"{part}: {name} took {took:.0f} s", flush=True)
    report(folder)


def report(folder: Path) -> None:
    """Make the tables and the plots."""
    results = json.loads((folder / "results.json").read_text())
    (folder / "RESULTS.md").write_text(importlib.import_module("tables").page(results))
    plots = importlib.import_module("plots")
    plots.draw(results, folder / "results.png")
    if "waiting" in results:
        plots.draw_looks(results, folder / "looks.png")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small, and nothing is kept")
    parser.add_argument("--parts", default=",".join(PARTS), help="such as A,C; none for the report alone")
    parser.add_argument("--output", type=Path, help="the folder of results.json")
    given = parser.parse_args()
    parts = [part for part in given.parts.upper().split(",") if part and part != "NONE"]
    if unknown := set(parts) - PARTS.keys():
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory() as nowhere:
        folder = given.output or (Path(nowhere) if given.quick else HERE)
        run(parts, folder, quick=given.quick)


if __name__ == "__main__":
    main()
