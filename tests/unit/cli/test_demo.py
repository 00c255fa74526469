"""`sora-chars demo`: checked scenarios, and an emulator that does not start."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import attrs
import pytest

from sora_chars.cli import app
from sora_chars.cli.commands import demo
from sora_chars.errors import ConfigurationError
from sora_chars.models import Clip
from sora_chars.providers.kling_codec import ACCEPTS
from sora_chars.providers.media import probe

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sora_chars.cli.context import CommandContext
    from sora_chars.models import MediaRule
    from sora_chars.testing import Emulator


async def test_reports_failed_scenarios(sora_emulator_factory: Callable[..., Emulator]) -> None:
    """A scenario fails by an error, by the wrong end of its wait and by a wrong number of requests."""
    emulator = sora_emulator_factory(durations=(0.0, 0.0), hmac_key="k")
    target = demo.Target(url=emulator.url, hmac_key="k")
    (scenario,) = (scenario for scenario in demo.SCENARIOS if scenario.name.startswith("vidu"))

    good = await demo._run_scenario(scenario, target)
    wrong_end = await demo._run_scenario(attrs.evolve(scenario, woken_by="callback"), target)
    wrong_count = await demo._run_scenario(attrs.evolve(scenario, requests={"subjects": 2}), target)
    emulator.fault("unauthorized", on="subject")
    rejected = await demo._run_scenario(scenario, target)

    assert good.problem is None
    assert good.row().plain.startswith("ok ")
    assert wrong_end.problem == "the wait was ended by a poll, expected a callback"
    assert wrong_count.problem == "expected the requests {'subjects': 2}"
    assert "401" in str(rejected.problem)
    assert rejected.row().plain.startswith("FAIL ")


@pytest.mark.parametrize("written", [b"", b"{}\n", b"Traceback\n"])
async def test_emulator_does_not_start(written: bytes) -> None:
    """The demo stops if the emulator prints no address."""
    stdout = asyncio.StreamReader()
    stdout.feed_data(written)
    stdout.feed_eof()

    with pytest.raises(ConfigurationError, match="did not start"):
        await demo._read_url(stdout)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [(["demo"], "Not every scenario ended as expected."), (["demo", "--json"], '"problem": "lost"')],
)
def test_failed_scenario_ends_with_1(
    arguments: list[str], text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit status is 0 only if every scenario is as expected."""

    async def run_scenarios(_: CommandContext) -> list[demo.ScenarioResult]:
        return [demo.ScenarioResult(name="kie", seconds=1.0, requests={}, problem="lost")]

    monkeypatch.setattr(demo, "_run_scenarios", run_scenarios)

    assert app.main(arguments) == 1
    assert text in capsys.readouterr().out


@pytest.mark.parametrize("is_cut", [True, False])
async def test_clip_is_cut_where_pyav_is(
    sora_emulator_factory: Callable[..., Emulator],
    monkeypatch: pytest.MonkeyPatch,
    *,
    is_cut: bool,
) -> None:
    """The clip is cut as Kling requires it, or uploaded as it is without the extra."""
    emulator = sora_emulator_factory(durations=(0.0, 0.0))
    scenario = demo.SCENARIOS[0]
    cuts: list[tuple[Clip, MediaRule]] = []

    async def cut(source: Path, output: Path, *, clip: Clip, rule: MediaRule) -> Path:
        cuts.append((clip, rule))
        output.write_bytes(source.read_bytes())
        return output

    monkeypatch.setattr("sora_chars.media.is_installed", lambda: is_cut)
    monkeypatch.setattr("sora_chars.media.cut", cut)
    result = await demo._run_scenario(scenario, demo.Target(url=emulator.url, hmac_key="k"))
    assert result.problem is None
    assert cuts == ([(Clip(1, 5), ACCEPTS.video)] if is_cut else [])
    assert probe(demo._CLIP).duration == pytest.approx(6.0, abs=0.1)
