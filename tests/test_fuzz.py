"""Hostile input, 500 cases of it: each ends in success or in a refusal of our own, within time and memory. And what
watches over the cases notices each way in which one can go wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[1]
PLANTED = """
import os, signal, sys, time
import benchmarks.hostile
import flows.cli
from hypothesis import strategies as st
from benchmarks.hostile import batches
from benchmarks.hostile.family import Family, asked, told
from dd_tasks.errors import InputError

batches.SECONDS, batches.GRACE, batches.BYTES = 5, 25, 1 << 28

def refused():
    raise InputError("no")

def run(case, room, prepared):
    what = ["fine", "refused", "raises", "hangs", "sleeps", "grows", "ends", "exits", "litters", "shows"][turn()]
    if what == "raises":
        raise ValueError("not ours")
    if what == "hangs":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
        time.sleep(6000)
    if what == "sleeps":
        time.sleep(batches.SECONDS + 0.2)
    if what == "grows":
        bytearray(1 << 29)
    if what == "ends":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "exits":
        sys.exit(3)
    if what == "litters":
        (room.parent / "evil").write_text("")
    if what == "shows":
        return [told("validate", str(room), "--nothing")]
    return [asked(refused if what == "refused" else lambda: None)]

def turn():
    with open(sys.argv[1] + "/turn", "a") as file:
        file.write("x")
        return file.tell() - 1

from pathlib import Path
family = Family("planted", st.integers(), run, lambda folder: (folder / "ready").write_text(""))
(scratch := Path(sys.argv[1]) / "scratch" / "prepared").mkdir(parents=True)
for case in batches.supervised(batches.Batch(family, 0, range(10), scratch.parent)):
    print(case["case"], case["outcome"], "|", case["what"].replace("\\n", " ")[:60])
"""


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    found = tmp_path_factory.mktemp("fuzz") / "fuzz.json"
    ran = run("-m", "benchmarks.fuzz", "--cases", "500", "--seed", "7", "--json", found)
    assert found.exists(), ran.stderr
    return json.loads(found.read_text())


def test_hostile_input_is_taken_or_refused_in_our_own_words(fuzzed: dict[str, object]) -> None:
    assert fuzzed["failures"] == [] and fuzzed["cases"] >= 490


def test_hostile_input_of_most_kinds_is_sometimes_taken_and_sometimes_refused(fuzzed: dict) -> None:
    rows = {row["family"]: row for row in fuzzed["rows"]}
    assert len(rows) == 14 and all(row["refused"] for row in rows.values())
    assert sum(row["accepted"] > 0 for row in rows.values()) >= 10


def test_a_case_that_goes_wrong_is_counted_and_the_others_still_run(tmp_path: Path) -> None:
    ran = run("-c", PLANTED, tmp_path)
    told = [line.split(" | ") for line in ran.stdout.splitlines()]
    assert [said.strip() for said, _ in told] == [
        "0 accepted", "1 refused", "2 escaped", "3 hung", "4 slow", "5 large", "6 died", "7 escaped", "8 escaped",
        "9 refused",
    ], ran.stdout + ran.stderr  # fmt: skip
    assert "ValueError: not ours" in told[2][1] and "SystemExit: 3" in told[7][1] and "evil" in told[8][1]


def test_a_case_is_drawn_again_by_its_number() -> None:
    code = (
        "from benchmarks.hostile import tars\nfrom benchmarks.hostile.batches import drawn\n"
        "whole, part = drawn(tars.FAMILY, 5, 0, 12), drawn(tars.FAMILY, 5, 0, 7)\n"
        "assert part == whole[:7] and len(set(map(repr, whole))) > 6\nprint('same')"
    )
    ran = run("-c", code)
    assert ran.stdout == "same\n", ran.stderr
