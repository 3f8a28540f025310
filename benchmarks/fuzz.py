"""Hostile input by the thousand: `python -m benchmarks.fuzz [--seed N] [--only FAMILY [--case N]]`.

Every case is handed to what users call, and must end in success or in a refusal of our own: within 10 s and 1 GiB of
memory beyond what the process had, with no traceback. Cases run in batches, each batch in a process of its own, so that
one that hangs or kills its process is counted too. Written to benchmarks/results/fuzz.json.
"""

import argparse
import hashlib
import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.calls import keep
from benchmarks.hostile import artifacts, hubs, parquets, pictures, stores, tars, texts
from benchmarks.hostile.batches import BATCH, LIMITS, OUTCOMES, Batch, supervised
from benchmarks.hostile.family import Family
from benchmarks.hostile.place import SCRATCH

FAMILIES = (
    tars.FAMILY,
    pictures.FAMILY,
    *texts.FAMILIES,
    *artifacts.FAMILIES,
    parquets.FAMILY,
    stores.FAMILY,
    hubs.FAMILY,
)
CASES = 10_200


def imported() -> None:
    """All that any case needs, once: a batch's process begins with it."""
    import datasets  # noqa: F401
    import safetensors.torch  # noqa: F401
    import torch
    import torchvision.io  # noqa: F401

    from dd_tasks import garbage, packing, pixels, publish, report, validate  # noqa: F401

    torch.set_num_threads(1)


def shares(cases: int, families: Sequence[Family] = FAMILIES) -> dict[str, int]:
    """How many cases each family gets, at least one."""
    whole = sum(family.cost for family in families)
    return {family.name: max(1, round(cases * family.cost / whole)) for family in families}


def fuzzed(family: Family, cases: range, seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The row of a family, and what went wrong."""
    scratch = Path(SCRATCH.name) / family.name
    shutil.rmtree(scratch, ignore_errors=True)
    (scratch / "prepared").mkdir(parents=True)
    counts, found, begun, digest = Counter[str](), list[dict[str, Any]](), time.monotonic(), hashlib.sha256()
    seconds, memory = 0.0, 0
    for first in range(cases.start, cases.stop, BATCH):
        wanted = range(first, min(first + BATCH, cases.stop))
        for case in supervised(Batch(family, seed, wanted, scratch)):
            counts[case["outcome"]] += 1
            seconds, memory = max(seconds, case["seconds"]), max(memory, case["bytes"])
            digest.update(case["sha256"].encode())
            if case["what"]:
                found.append({"family": family.name, **{name: case[name] for name in ("case", "outcome", "what")}})
                print(json.dumps(found[-1]), flush=True)
    row = {
        "family": family.name, "cases": counts.total(), **{outcome: counts[outcome] for outcome in OUTCOMES},
        "worst_seconds": round(seconds, 2), "worst_bytes": memory, "seconds": round(time.monotonic() - begun, 1),
        "inputs_sha256": digest.hexdigest(),
    }  # fmt: skip
    print(json.dumps(row), flush=True)
    return row, found


def found_of(family: Family, given: argparse.Namespace) -> dict[str, Any]:
    """The row of a family and its failures: run now, or where that was done before."""
    cases = range(shares(given.cases)[family.name]) if given.case is None else range(given.case, given.case + 1)
    place = given.parts / f"{family.name}-{given.seed}-{len(cases)}.json" if given.parts else None
    if place and place.exists():
        found: dict[str, Any] = json.loads(place.read_text())
        return found
    row, failures = fuzzed(family, cases, given.seed)
    found = {"row": row, "failures": failures}
    if place:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(found))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    from flows.workspace import machine

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=CASES)
    parser.add_argument("--only", choices=[family.name for family in FAMILIES])
    parser.add_argument("--case", type=int, help="of the family of --only: this one alone")
    parser.add_argument(
        "--parts", type=Path, help="folder of what single families found; what is there is not run again"
    )
    parser.add_argument("--json", type=Path, help="write the result here instead")
    given = parser.parse_args(arguments)
    imported()
    every = [found_of(family, given) for family in FAMILIES if given.only in (None, family.name)]
    rows, failures = [found["row"] for found in every], [failure for found in every for failure in found["failures"]]
    result = {
        "seed": given.seed, "cases": sum(row["cases"] for row in rows), "limits": LIMITS, "rows": rows,
        "failures": failures, "seconds": round(sum(row["seconds"] for row in rows), 1), "machine": machine(),
        "command": f"python -m benchmarks.fuzz --seed {given.seed}",
    }  # fmt: skip
    if given.json:
        given.json.write_text(json.dumps(result))
    elif given.only is None:
        keep("fuzz", result)
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
