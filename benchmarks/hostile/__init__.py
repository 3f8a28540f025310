"""Hostile input: what a stranger, a bad disk or a bad network may hand to Retort, drawn by hypothesis, and the calls of
users that must stand it. `python -m benchmarks.fuzz` runs them."""

import sys
from pathlib import Path

TESTS = Path(__file__).parents[2] / "tests"  # the sample artifact and the Hub on loopback are the tests'
if str(TESTS) not in sys.path:
    sys.path.append(str(TESTS))

from benchmarks.hostile import place  # noqa: E402, F401  # before anything imports a client of the Hub
