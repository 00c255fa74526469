"""Runs the benchmarks: `python benchmarks/run.py [--quick] [--parts A,C]`.

Install requirements.txt first. The results of the parts are merged into results.json, from
which RESULTS.md and the plots are made. With --quick (some minutes) every part runs
with small numbers and the results are discarded: this shows that the benchmarks work.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
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
    "F": {"growth": "growth"},
    "G": {"fleet": "fleet", "temporal": "fleet_temporal", "web": "web"},
    "L": {"records": "ledger"},
}
"""The modules of each part, by the name of their results; each has a function `figures(quick=)`."""


def run(parts: Iterable[str], folder: Path, *, quick: bool) -> None:
    """Run the parts one after the other, and write the results after each."""
    path = folder / "results.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for part in parts:
        for name, module in PARTS[part].items():
            if not (HERE / f"{module}.py").exists():
                print(f"{part}: {name} does not exist", flush=True)
                continue
            print(f"{part}: {name}", flush=True)
            started = time.perf_counter()
            figures = importlib.import_module(module).figures(quick=quick)
            took = time.perf_counter() - started
            results[name] = {"part": part, "took_s": took, "machine": machine.shape(), "figures": figures}
            path.write_text(json.dumps(results, indent=1) + "\n")
            print(f"{part}: {name} took {took:.0f} s", flush=True)
    report(folder)


def report(folder: Path) -> None:
    """Write the tables and the plots."""
    results = json.loads((folder / "results.json").read_text())
    (folder / "RESULTS.md").write_text(importlib.import_module("tables").page(results))
    plots = importlib.import_module("plots")
    plots.draw(results, folder / "results.png")
    if "waiting" in results:
        plots.draw_polls(results, folder / "polls.png")


def main() -> None:
    """Run the parts that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "*"  # every server is on loopback
    parser.add_argument("--quick", action="store_true", help="run with small numbers and discard the results")
    parser.add_argument("--parts", default=",".join(PARTS), help="such as A,C; none writes the report only")
    parser.add_argument("--output", type=Path, help="folder of results.json")
    options = parser.parse_args()
    parts = [part for part in options.parts.upper().split(",") if part and part != "NONE"]
    if unknown := set(parts) - PARTS.keys():
        parser.error(f"unknown part: {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory() as discarded:
        folder = options.output or (Path(discarded) if options.quick else HERE)
        run(parts, folder, quick=options.quick)


if __name__ == "__main__":
    main()
