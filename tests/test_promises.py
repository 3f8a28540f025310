"""What the README promises is held by tests that are there."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
README = (TESTS.parent / "README.md").read_text(encoding="utf-8")
SECTION = README.split("## What Retort promises\n", 1)[1].split("\n## ", 1)[0]
ROWS = [row for row in SECTION.splitlines() if row.startswith("| ")][1:]
HELD = re.compile(r"`(test_\w+\.py)((?:::\w+)+)`")


def defined(file: Path) -> set[str]:
    """The tests of a file that pytest collects, as `::name` or `::Class::name`."""
    found = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            found.add(f"::{node.name}")
        elif isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            found |= {f"::{node.name}::{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return {name for name in found if name.rpartition("::")[2].startswith("test_")}


def test_every_promise_names_tests_that_are_there() -> None:
    for row in ROWS:
        promise, held = row.strip("| ").split(" | ")
        named = HELD.findall(held)
        assert named and HELD.sub("", held).replace(",", "").strip() == "", f"{promise}: held by {held}"
        missing = [file + name for file, name in named if name not in defined(TESTS / file)]
        assert missing == [], promise


def test_resume_atomicity_determinism_and_safety_are_all_promised() -> None:
    assert re.findall(r"\*\*(.*?)\.\*\*", SECTION) == ["Resume", "Atomicity", "Determinism", "Safety of input"]
    assert len(ROWS) >= 15
