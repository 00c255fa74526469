"""A dump of the spans and metrics of 100 tasks, whose process is killed twice: `python benchmarks/spans.py`.

It starts the emulator, and a worker that creates the characters under fixed keys in an
SQLite ledger. The worker is ended with SIGKILL after a quarter and after 60 % of the tasks
have ended, and started again. The folder gets `spans.jsonl`, `metrics.jsonl` (the last
measurements of each process) and `summary.json`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

from sora_chars import CharacterSession, Kie
from sora_chars.contrib.opentelemetry import OpenTelemetry
from sora_chars.testing import Emulator

TASKS = 100
KILLED_AT = (0.25, 0.6)  # parts of the tasks that have ended
DURATIONS = (3.0, 12.0)  # seconds; all creates are answered before the first kill
EXPORT_INTERVAL = 500  # milliseconds


def telemetry(folder: Path) -> tuple[TracerProvider, MeterProvider]:
    """Return providers that append to files of the folder at once, so a kill loses nothing that has ended."""
    resource = Resource.create({"service.name": "spans", "process.pid": os.getpid()})
    spans = (folder / "spans.jsonl").open("a")
    measurements = (folder / f"metrics-{os.getpid()}.jsonl").open("a")
    tracers = TracerProvider(resource=resource)
    exporter = ConsoleSpanExporter(out=spans, formatter=lambda span: span.to_json(indent=None) + "\n")
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    writer = ConsoleMetricExporter(out=measurements, formatter=lambda data: data.to_json(indent=None) + "\n")
    reader = PeriodicExportingMetricReader(writer, export_interval_millis=EXPORT_INTERVAL)
    return tracers, MeterProvider([reader], resource=resource)


async def work(url: str, tasks: int, folder: Path) -> None:
    """Create all characters, each under a span of its own."""
    tracers, meters = telemetry(folder)
    observer = OpenTelemetry(tracer_provider=tracers, meter_provider=meters)
    tracer = tracers.get_tracer("spans")

    async def create(session: CharacterSession, number: int) -> None:
        with tracer.start_as_current_span("order"):
            await session.create(from_task="a" * 32, clip="1,3", prompt="A dog", key=f"order-{number}")

    kie = Kie("kie-key", base_url=url, limits=None)
    async with CharacterSession(kie, ledger=folder / "characters.db", observers=[observer]) as session:
        await asyncio.gather(*(create(session, number) for number in range(tasks)))
    meters.shutdown()
    tracers.shutdown()


def task_spans(folder: Path) -> list[dict[str, Any]]:
    """Return the spans of tasks so far."""
    path = folder / "spans.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [span for span in map(json.loads, lines) if span["name"] == "create character"]


def has_ended(folder: Path, tasks: int) -> bool:
    """Return whether this many tasks have a span."""
    return len(task_spans(folder)) >= tasks


async def run(tasks: int, folder: Path) -> dict[str, Any]:
    """Run the worker until it has ended by itself, and return the summary."""
    kills = [round(part * tasks) for part in KILLED_AT]
    async with Emulator(durations=DURATIONS) as emulator:
        emulator.add_origin("a" * 32)
        while True:
            command = (__file__, "--worker", emulator.url, "--tasks", str(tasks), "--output", str(folder))
            worker = await asyncio.create_subprocess_exec(sys.executable, *command)
            if not kills:
                await worker.wait()
                break
            await emulator.until(partial(has_ended, folder, kills.pop(0)), timeout=2 * DURATIONS[1])
            worker.kill()
            await worker.wait()
        counts = emulator.counts.creates
    gather_metrics(folder)
    return summary(folder, creates=counts)


def gather_metrics(folder: Path) -> None:
    """Keep the last measurements of each process."""
    files = sorted(folder.glob("metrics-*.jsonl"), key=lambda path: path.stat().st_mtime)
    last = [lines[-1] for path in files if (lines := path.read_text().splitlines())]
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in last))
    for path in files:
        path.unlink()


def summary(folder: Path, *, creates: int) -> dict[str, Any]:
    """Count what the files hold."""
    lines = (folder / "spans.jsonl").read_text().splitlines()
    spans = [json.loads(line) for line in lines]
    tasks = task_spans(folder)
    found = {
        "creates at the server": creates,
        "task spans": len(tasks),
        "keys with a task span": len({span["attributes"]["sora_chars.key"] for span in tasks}),
        "states": dict(Counter(span["attributes"]["sora_chars.state"] for span in tasks)),
        "task spans with a parent": sum(span["parent_id"] is not None for span in tasks),
        "processes that made them": len({span["resource"]["attributes"]["process.pid"] for span in tasks}),
        "spans by name": dict(Counter(span["name"] for span in spans)),
    }
    (folder / "summary.json").write_text(json.dumps(found, indent=1) + "\n")
    return found


def main() -> None:
    """Run the driver, or with --worker one worker."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=TASKS)
    parser.add_argument("--output", type=Path, required=True, help="a new folder")
    parser.add_argument("--worker", metavar="URL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "*"  # the emulator is on loopback
    options.output.mkdir(parents=True, exist_ok=True)
    if options.worker:
        asyncio.run(work(options.worker, options.tasks, options.output))
    else:
        print(json.dumps(asyncio.run(run(options.tasks, options.output)), indent=1))


if __name__ == "__main__":
    main()
