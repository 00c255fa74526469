"""`sora-chars worker`: runs the workers of an application's job queue."""

from __future__ import annotations

import sys
from importlib import import_module
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any

import click

from sora_chars.cli.options import output_options
from sora_chars.cli.runner import run
from sora_chars.errors import ConfigurationError, printable
from sora_chars.logs import is_written, write_records

if TYPE_CHECKING:
    from sora_chars.cli.context import CommandContext


@click.command()
@click.option("--app", "place", required=True, metavar="MODULE:NAME", help="The `Characters` of the application.")
@click.option(
    "--concurrency",
    type=click.IntRange(1),
    default=20,
    show_default=True,
    metavar="N",
    help="Jobs at once in each queue.",
)
@click.option("--queue", "queues", multiple=True, metavar="QUEUE", help="Another queue to serve. May be repeated.")
@output_options
@click.pass_obj
def worker(context: CommandContext, /, *, place: str, concurrency: int, queues: tuple[str, ...]) -> None:
    """Run the jobs of an application until SIGINT or SIGTERM.

    --app names a `Characters` of sora_chars.contrib.procrastinate, such as
    shop.jobs:characters. Jobs that run when the signal arrives are finished,
    and the status is 0. The end of each request is logged on stderr.
    """
    if not is_written():
        write_records("debug" if context.verbose else "info")
    run(context, _find(place).run_worker(concurrency=concurrency, queues=queues))


def _find(place: str) -> Any:
    """Import the object at a place."""
    module, colon, name = place.partition(":")
    if not (module and colon and name) or module.startswith("."):
        raise click.BadParameter(f"must be MODULE:NAME, got {place!r}.", param_hint="--app")
    sys.path.insert(0, "")  # the folder in which the command was started, as `python -m` does
    try:
        found: Any = import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"--app {place}: {error}.") from error
    except Exception as error:
        raise ConfigurationError(
            f"--app {place}: the module raised {type(error).__name__}: {printable(error)}.",
            hint=f'For its traceback run: python -c "import {module}"',
        ) from error
    if isinstance(found, type):
        raise ConfigurationError(f"--app {place}: must be a Characters, got the class {found.__name__}.")
    if not iscoroutinefunction(getattr(found, "run_worker", None)):  # an App of Procrastinate has another one
        raise ConfigurationError(f"--app {place}: must be a Characters, got {type(found).__name__}.")
    return found
