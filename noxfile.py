"""The project's checks, one nox session each: `nox -s tests` before every change, `nox -l` for the others."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import nox
from packaging.requirements import Requirement

HERE = Path(__file__).parent
PROJECT = nox.project.load_toml(HERE / "pyproject.toml")
SUPPORTED = ("3.11", "3.12", "3.13", "3.14")
WORKERS = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1

nox.needs_version = ">=2025.5"
nox.options.sessions = ["tests", "lint", "types", "audit"]
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = False
nox.options.stop_on_first_error = True  # the failure is the last thing on the screen


def _starts(python: str) -> bool:
    """Return whether the interpreter starts: the shim of a version manager may have none behind it."""
    return subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0  # noqa: S603 # ours


def _interpreters() -> dict[str, str]:
    """Return the supported interpreters of this machine: the one that runs nox, those on the PATH, pyenv's."""
    running = ".".join(platform.python_version_tuple()[:2])
    found: dict[str, str] = {}
    for version in SUPPORTED:
        managed = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
        candidates = [shutil.which(f"python{version}"), *(str(python) for python in managed)]
        if version == running:
            candidates.append(sys.executable)
        if python := next((python for python in candidates if python and _starts(python)), None):
            found[version] = python
    return found


INTERPRETERS = _interpreters()
# All but `speed`: the tests run both JSON parsers.
EXTRAS = ",".join(sorted(PROJECT["project"]["optional-dependencies"].keys() - {"speed"}))
OLDEST = next(iter(INTERPRETERS.values()), sys.executable)
NEWEST = list(INTERPRETERS.values())[-1] if INTERPRETERS else sys.executable
# More processes than cores, as many tests wait; all that need PostgreSQL run in one of them (tests/conftest.py).
PARALLEL = (f"--numprocesses={WORKERS * 2}", "--dist=loadgroup")
# On Windows the unit tests: the others need signals and Unix sockets.
TESTS = ("tests/unit",) if sys.platform == "win32" else ("tests",)
RETRYING = tuple(
    f"tests/integration/test_{name}.py" for name in ("transport", "create_connections", "faults_create", "faults_polls")
)
SQLITE = tuple(f"tests/integration/test_{name}.py" for name in ("process_lock", "events", "hooks"))
RANDOM_HISTORIES = "tests/unit/session/test_session_machine.py"
# Without byte code each process of the command line would compile the package anew.
ENVIRONMENT = {"PYTHONDONTWRITEBYTECODE": ""}


def _install(session: nox.Session, group: str) -> None:
    """Install this package with its extras and one dependency group, in the versions of the lock file."""
    groups = nox.project.dependency_groups(PROJECT, group)
    session.install("-c", "requirements.lock", *groups, "-e", f".[{EXTRAS}]")


@nox.session(python=OLDEST)
def tests(session: nox.Session) -> None:
    """All tests but the slow ones on one interpreter, in parallel.

    `nox -s tests -- tests/unit/providers/test_media.py` runs some.
    """
    _install(session, "tests")
    session.run("pytest", *(session.posargs or (*PARALLEL, "-m", "not slow", *TESTS)), env=ENVIRONMENT)


@nox.session(python=OLDEST)
def coverage(session: nox.Session) -> None:
    """All tests on the oldest supported Python on Linux, and the branch coverage, of which 100 % is required.

    What other systems and versions run differs by a few branches.
    """
    _install(session, "tests")
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", *PARALLEL, env=ENVIRONMENT)
    for path in HERE.glob(".coverage.*"):
        if not path.stat().st_size:  # of a process that a test killed while it wrote
            path.unlink()
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report")


@nox.session
@nox.parametrize(
    ("python", "backoff"),
    [
        *(nox.param(python, "", id=version) for version, python in INTERPRETERS.items() if python != OLDEST),
        nox.param(OLDEST, "python-backoff==3.0.0", id="python-backoff"),
    ],
)
def matrix(session: nox.Session, backoff: str) -> None:
    """The unit tests on each other interpreter of this machine, and on the newest one the integration tests.

    Once more with python-backoff, in asyncio's debug mode: the unit tests and those of retries.
    """
    _install(session, "tests")
    inside = ("tests/unit", "tests/integration") if session.python == NEWEST else ("tests/unit",)
    arguments: tuple[str, ...] = (*PARALLEL, *inside)
    environment = ENVIRONMENT
    if backoff:
        # Both packages install the same folder: uninstall both first, also on a second run.
        session.run_install(
            "python", "-m", "pip", "uninstall", "--yes", "--quiet", "python-backoff", "backoff", silent=True
        )
        session.install(backoff)
        # In debug mode some tests take four times as long, and the random histories ten times.
        arguments = (*PARALLEL, "--timeout=180", "tests/unit", f"--ignore={RANDOM_HISTORIES}", *RETRYING)
        environment = ENVIRONMENT | {"PYTHONASYNCIODEBUG": "1"}
    session.run("pytest", *(session.posargs or arguments), env=environment)


@nox.session(python=OLDEST)
def windows(session: nox.Session) -> None:
    """The command line and the unit tests of ledgers in a process that lacks what Windows lacks.

    `tests/support/simulated_windows` takes it away: fcntl, forks, and event loops that handle signals.
    """
    _install(session, "tests")
    simulated = ENVIRONMENT | {"PYTHONPATH": str(HERE / "tests/support/simulated_windows")}
    session.run("pytest", "tests/acceptance/test_simulated_windows.py", env=ENVIRONMENT)
    session.run("pytest", *PARALLEL, "tests/unit/ledger", "tests/unit/session", *SQLITE, env=simulated)


@nox.session(python=OLDEST)
def lowest(session: nox.Session) -> None:
    """The unit tests with the lowest allowed version of each direct dependency."""
    floors = _floors()
    del floors["opentelemetry-api"]  # the SDK of the tests needs the API of its own version, and FastAPI a newer one
    tools = {Requirement(text).name for text in nox.project.dependency_groups(PROJECT, "tests")} - floors.keys()
    # Not what the dependencies depend on: an old version may not work with what the newest one needs.
    locked = [line for line in Path("requirements.lock").read_text().splitlines() if Requirement(line).name in tools]
    constraints = Path(session.create_tmp(), "lowest.txt")
    constraints.write_text("\n".join([*floors.values(), *locked]))
    session.install("-c", str(constraints), *tools, "-e", ".[cli,postgres,procrastinate,speed]")
    session.run("pytest", "tests/unit", *PARALLEL, env=ENVIRONMENT)


def _floors() -> dict[str, str]:
    """Return for the name of each direct dependency, extras included, the requirement of its lowest version."""
    project = PROJECT["project"]
    listed = [Requirement(text) for text in project["dependencies"]]
    listed += [Requirement(text) for extra in project["optional-dependencies"].values() for text in extra]
    floors: dict[str, str] = {}
    for one in listed:
        (floor,) = (limit.version for limit in one.specifier if limit.operator == ">=")
        floors[one.name] = f"{one.name}=={floor}" + (f" ; {one.marker}" if one.marker else "")
    return floors


@nox.session(python=OLDEST)
def recipes(session: nox.Session) -> None:
    """The programs of docs/workers.md, on the engines and the framework that `tests` does not install."""
    _install(session, "recipes")
    files = sorted(str(path.relative_to(HERE)) for path in HERE.glob("tests/acceptance/test_recipes_*.py"))
    session.run("pytest", *PARALLEL, *(session.posargs or files), env=ENVIRONMENT)


@nox.session(python=OLDEST)
def lint(session: nox.Session) -> None:
    """Style and layers."""
    _install(session, "lint")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports", "--no-cache")


@nox.session(python=OLDEST)
def types(session: nox.Session) -> None:
    """Two type checkers in their strict modes."""
    _install(session, "types")
    session.run("mypy")
    session.run("basedpyright")


@nox.session(python=OLDEST)
def audit(session: nox.Session) -> None:
    """Known vulnerabilities of the locked versions; "skipped" where the service that lists them cannot be reached."""
    session.install("-c", "requirements.lock", *nox.project.dependency_groups(PROJECT, "audit"))
    report = Path(session.create_tmp(), "audit.json")
    report.unlink(missing_ok=True)
    options = ("--no-deps", "--disable-pip", "--progress-spinner=off", "--format=json", f"--output={report}")
    command = ("pip-audit", "--requirement=requirements.lock", *options)
    output = str(session.run(*command, silent=True, success_codes=[0, 1]))
    if not report.exists():
        if "requests.exceptions." in output or "your network may be blocking" in output:
            session.skip("NOTHING WAS AUDITED: the vulnerability service cannot be reached from here")
        session.error(output)
    packages = json.loads(report.read_text())["dependencies"]
    if found := [f"{one['name']} {one['version']}: {flaw['id']}" for one in packages for flaw in one.get("vulns", ())]:
        session.error(f"Known vulnerabilities: {', '.join(found)}")
    # A mirror of the index may answer in the service's place, and pip-audit passes over what is unknown there.
    if missed := [one["name"] for one in packages if "skip_reason" in one]:
        session.skip(f"NOT AUDITED, {len(missed)} of {len(packages)}, unknown to the service: {', '.join(missed)}")


@nox.session(python=OLDEST)
def build(session: nox.Session) -> None:
    """The sdist and the wheel, into dist/."""
    session.install("-c", "requirements.lock", *nox.project.dependency_groups(PROJECT, "build"))
    shutil.rmtree(HERE / "dist", ignore_errors=True)
    session.run("python", "-m", "build")


@nox.session(python=OLDEST)
def bench(session: nox.Session) -> None:
    """Parts A to G and L, with the peers where they apply, into four files of benchmarks/.

    They are results.json, RESULTS.md, results.png and polls.png.
    `nox -s bench -- --quick` takes some minutes and keeps and judges nothing; `--parts A,C` runs some.
    """
    session.install(
        "-c", "requirements.lock", "-r", "benchmarks/requirements.txt", "-e", ".[postgres,procrastinate,temporal]"
    )
    session.run("python", "benchmarks/run.py", *session.posargs)
