"""`sora-chars emulate`: serves the emulator until it is interrupted."""

from __future__ import annotations

import asyncio
import math
import textwrap
from typing import TYPE_CHECKING, Any

import click

from sora_chars.cli.options import PROVIDERS, output_options, seconds
from sora_chars.cli.runner import CommandInterruptedError, run
from sora_chars.errors import ConfigurationError
from sora_chars.responses import parse_json
from sora_chars.testing import Emulator
from sora_chars.testing.emulator.faults import KINDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sora_chars.cli.context import CommandContext

_WIDTH = 80  # columns
_GREETING = """\
Emulating {providers}
at {url}
Dashboard of requests and tasks:  {url}/

In another shell, every command and every program then uses the emulator:

  export SORA_CHARS_EMULATOR={url}
  sora-chars create --provider kling --video https://example.com/dog.mp4 \\
    --name Dog --prompt "A friendly dog"
  sora-chars create --provider vidu --image https://example.com/dog.jpg \\
    --name Dog
  sora-chars create --provider kie --clip 1,3 --prompt "A friendly dog" \\
    --from-task 0123456789abcdef0123456789abcdef
  sora-chars create --provider kkiai --video https://example.com/dog.mp4 \\
    --clip 1,3

No real key is sent with that variable. One provider alone, in Python:

  Kling("any", base_url="{url}")
  Kie("any", base_url="{url}",
      upload_url="{url}")

To try a pair of Kling's keys with base_url=, add --kling-secret-key KEY.
Press Ctrl-C to stop."""


def seconds_range(text: str) -> tuple[float, float]:
    """Parse LOW,HIGH in seconds."""
    low, _, high = text.partition(",")
    try:
        bounds = float(low), float(high)
    except ValueError:
        bounds = math.nan, math.nan
    if not 0 <= bounds[0] <= bounds[1] < math.inf:
        raise click.BadParameter(f"{text!r} is not LOW,HIGH in seconds, such as 5,20.")
    return bounds


def fault(text: str) -> tuple[str, dict[str, Any]]:
    """Parse KIND[:NAME=VALUE,...] into the kind and its settings, which the emulator validates."""
    kind, _, settings = text.partition(":")
    known = KINDS[kind].settings if kind in KINDS else {}
    values: dict[str, Any] = {}
    for setting in filter(None, settings.split(",")):
        name, _, value = setting.partition("=")
        is_text = name == "on" or isinstance(known.get(name), str)
        try:
            values[name] = value if is_text else parse_json(value)
        except ValueError as error:
            raise click.BadParameter(f"{text!r} is not KIND[:NAME=VALUE,...]: {setting!r} is not a number.") from error
    return kind, values


@click.command()
@click.option("--host", metavar="HOST", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    default=8765,
    show_default=True,
    help="Port to listen on; 0 selects a free one.",
)
@click.option(
    "--seed",
    type=int,
    metavar="N",
    default=0,
    show_default=True,
    help="Seed of the ids, the durations and the random faults.",
)
@click.option(
    "--speed",
    type=seconds,
    default="1",
    show_default=True,
    metavar="FACTOR",
    help="Emulated seconds per real second.",
)
@click.option(
    "--durations",
    type=seconds_range,
    default="5,20",
    show_default=True,
    metavar="LOW,HIGH",
    help="How many emulated seconds a task takes.",
)
@click.option(
    "--strict-limits", is_flag=True, help="Reject more than 20 creates in 10 seconds or 10 polls in 1 second."
)
@click.option("--hmac-key", metavar="KEY", help="Sign kie's callbacks with this key.")
@click.option(
    "--kling-secret-key",
    metavar="KEY",
    help="Accept the JWTs of a pair of Kling's keys with this secret key, beside any API key.",
)
@click.option(
    "--fault",
    "faults",
    type=fault,
    multiple=True,
    metavar="KIND[:NAME=VALUE,...]",
    help="Inject a fault, such as lost_response:on=create,rate=0.1,times=null. May be repeated.",
)
@output_options
@click.pass_obj
def emulate(context: CommandContext, /, *, faults: Sequence[tuple[str, dict[str, Any]]], **settings: Any) -> None:
    """Serve an emulator of the providers on this machine.

    It emulates every provider until Ctrl-C. Other commands and programs use it with
    SORA_CHARS_EMULATOR=URL, or with --base-url and --upload-url; any API key is accepted.
    The page at its address shows the requests, the tasks and all kinds of faults.
    """
    emulator = Emulator(**settings)
    for kind, values in faults:
        try:
            emulator.fault(kind, **values)
        except (TypeError, ValueError) as error:
            raise click.BadParameter(str(error), param_hint="--fault") from error
    try:
        run(context, _serve(context, emulator))
    except CommandInterruptedError:
        context.output.note("Stopped.")


async def _serve(context: CommandContext, emulator: Emulator) -> None:
    try:
        await _start(emulator)
        if context.output.as_json:
            context.output.show_json({"url": emulator.url})
        else:
            providers = textwrap.fill(", ".join(PROVIDERS), _WIDTH - len("Emulating "))
            click.echo(_GREETING.format(url=emulator.url, providers=providers))
        await asyncio.Event().wait()
    finally:
        await emulator.aclose()


async def _start(emulator: Emulator) -> None:
    try:
        await emulator.start()
    except OSError as error:
        hint = "Choose another --port; 0 selects a free one."
        raise ConfigurationError(f"The emulator cannot listen: {error}.", hint=hint) from error
