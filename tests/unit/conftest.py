"""What the unit tests need of pytest before it loads them."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("tests.support.simulated_world")  # it asserts as a test does
