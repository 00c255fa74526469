"""What the unit tests need of pytest before it loads them."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

pytest.register_assert_rewrite("tests.support.simulated_world")  # it asserts as a test does

# These modules test ledgers in SQLite files, which need fcntl; Windows has none.
collect_ignore = [
    *("ledger/test_ledger_machine.py", "ledger/test_open_ledger.py"),
    *("session/test_learned_durations.py", "session/test_wall_clock.py"),
]
if find_spec("fcntl"):
    collect_ignore.clear()
