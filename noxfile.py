"""The project's checks, one word each: tests, lint, types, audit, bench. A newcomer needs `nox -s tests`."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import nox

HERE = Path(__file__).parent
PROJECT = nox.project.load_toml(HERE / "pyproject.toml")
SUPPORTED = ("3.11", "3.12", "3.13", "3.14")

nox.needs_version = ">=2025.5"
nox.options.sessions = ["tests", "lint", "types", "audit"]
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = False
nox.options.stop_on_first_error = True  # what failed is what is read last


def _works(python: str) -> bool:
    """Whether the interpreter really starts: a version manager may put a name on the PATH and nothing behind it."""
    return subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0  # noqa: S603 # ours


def _interpreters() -> dict[str, str]:
    """The supported interpreters of this machine: those on the PATH, and those that pyenv keeps."""
    found: dict[str, str] = {}
    for version in SUPPORTED:
        kept = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
        candidates = [shutil.which(f"python{version}"), *(str(python) for python in kept)]
        if python := next((python for python in candidates if python and _works(python)), None):
            found[version] = python
    return found


INTERPRETERS = _interpreters()
OLDEST = next(iter(INTERPRETERS.values()))
NEWEST = list(INTERPRETERS.values())[-1]
RETRYING = [f"tests/integration/test_{name}.py" for name in ("transport", "sessions", "faults_create", "faults_polls")]


def _install(session: nox.Session, group: str) -> None:
    """This package with all its extras and one dependency group, in the versions of the lock file."""
    session.install("-c", "requirements.lock", *nox.project.dependency_groups(PROJECT, group), "-e", ".[cli,postgres]")


@nox.session
@nox.parametrize(
    ("python", "backoff"),
    [
        *(nox.param(python, "python-backoff", id=version) for version, python in INTERPRETERS.items()),
        nox.param(OLDEST, "backoff", id="backoff-2.2.1"),
    ],
)
def tests(session: nox.Session, backoff: str) -> None:
    """All tests on the oldest interpreter here, those without whole processes on the newest, unit tests between.

    And unit tests and those that retry once more with the archived backoff 2.2.1, in debug mode. With arguments, as
    in `nox -s tests -- tests`, these are run everywhere.
    """
    _install(session, "tests")
    if backoff == "backoff":
        # Both wheels own the same folder: away with either of them first, also on a second run.
        session.run("python", "-m", "pip", "uninstall", "--yes", "--quiet", "python-backoff", "backoff", silent=True)
        session.install("backoff==2.2.1")
        inside = ["tests/unit", "--ignore=tests/unit/test_session_machine.py", *RETRYING]  # whose random lives are long
        session.run("pytest", *(session.posargs or inside), env={"PYTHONASYNCIODEBUG": "1"})
    elif session.python == OLDEST and not session.posargs:
        session.run("coverage", "erase")
        session.run("coverage", "run", "-m", "pytest")
        session.run("coverage", "combine", "--quiet")
        session.run("coverage", "report")
    else:
        inside = ["tests/unit", "tests/integration"] if session.python == NEWEST else ["tests/unit"]
        session.run("pytest", *(session.posargs or inside))


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
    """Known vulnerabilities of the locked versions; "skipped" where the service that knows them cannot be asked."""
    session.install("-c", "requirements.lock", *nox.project.dependency_groups(PROJECT, "audit"))
    report = Path(session.create_tmp(), "audit.json")
    report.unlink(missing_ok=True)
    options = ("--no-deps", "--disable-pip", "--progress-spinner=off", "--format=json", f"--output={report}")
    command = ("pip-audit", "--requirement=requirements.lock", *options)
    said = str(session.run(*command, silent=True, success_codes=[0, 1]))
    if not report.exists():
        if "requests.exceptions." in said or "your network may be blocking" in said:
            session.skip("NOTHING WAS AUDITED: the vulnerability service cannot be reached from here")
        session.error(said)
    packages = json.loads(report.read_text())["dependencies"]
    if found := [f"{one['name']} {one['version']}: {flaw['id']}" for one in packages for flaw in one.get("vulns", ())]:
        session.error(f"Known vulnerabilities: {', '.join(found)}")
    # A mirror of the index may answer in the service's place, and pip-audit passes over what is unknown there.
    if missed := [one["name"] for one in packages if "skip_reason" in one]:
        session.skip(f"NOT AUDITED, {len(missed)} of {len(packages)}, unknown to the service: {', '.join(missed)}")


@nox.session(python=OLDEST)
def bench(session: nox.Session) -> None:
    """Parts A to E beside the peers, into benchmarks/results.json, RESULTS.md and results.png.

    `nox -s bench -- --quick` takes two minutes and keeps and judges nothing; `--parts A,C` runs some.
    """
    session.install("-c", "requirements.lock", "-r", "benchmarks/requirements.txt", "-e", ".[postgres]")
    session.run("python", "benchmarks/run.py", *session.posargs)
