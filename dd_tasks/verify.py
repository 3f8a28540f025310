"""Does an artifact keep its promises? What is asked of it, what came of it, and the results as JUnit XML.

A claim is measured again where the artifact alone suffices: on its own images and labels. Nothing here trains.
"""

import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from dd_tasks.card import columns, rows
from dd_tasks.claims import percent
from dd_tasks.errors import InputError, unknown
from schemas.card import ClassLabelType, ClassNames, Feature
from schemas.manifest import Claim, Manifest, SourceData

SPREADS = 2  # how many standard deviations a measured mean may lie from the claimed one
MEASURED = ("distilled", "distilled_hard")
NOT_HERE = {
    "distilled_plain": "the labels of its views are not in the artifact",
    "full": "needs the source images",
    "jpeg": "needs the source images",
}
REMOTE = ("https", "http", "s3", "gs", "gcs", "az", "hf")
OPTIONS = {"test": "--test", "held-out": "--shards"}
Split = Literal["test", "held-out"]


@dataclass(frozen=True)
class Check:
    """One thing that was asked of an artifact, and what came of it."""

    name: str
    outcome: Literal["passed", "failed", "skipped"]
    message: str
    seconds: float = 0.0


@dataclass(frozen=True)
class Scope:
    """What to measure: architectures (none: all that are claimed), the first seed alone if `quick`, and where the test
    images are, or the training shards whose held-out part was tested on (none: where the manifest says)."""

    students: tuple[str, ...] = ()
    quick: bool = False
    test: tuple[str, ...] = ()
    shards: tuple[str, ...] = ()


# ---- claims


def plan(manifest: Manifest, scope: Scope) -> list[tuple[Claim, str]]:
    """Every claim, and why it is not measured again; an empty reason means that it is.

    InputError for a student that no claim names.
    """
    claimed = sorted({claim.student for claim in manifest.claims})
    for name in scope.students:
        if name not in claimed:
            raise unknown("student in --students", name, claimed)
    return [(claim, _why_not(claim, scope)) for claim in manifest.claims]


def _why_not(claim: Claim, scope: Scope) -> str:
    if scope.students and claim.student not in scope.students:
        return "not among --students"
    if claim.row in MEASURED:
        return ""
    return f"not measured here: {NOT_HERE.get(claim.row, 'needs the source images and the committee')}"


def named(claim: Claim) -> str:
    return f"{claim.row}, {claim.student}, {claim.epochs} epochs"


def allowed(claim: Claim, images: int, seeds: int) -> float:
    """How far the measured mean of so many seeds may lie from the claimed one, as a fraction: 2 std.

    std is the claimed spread over seeds, or that of one test on so many images, sqrt(p (1 - p) / images), where this is
    larger. Of more than two seeds it is that of the difference between two such means: sqrt(2 / seeds) of it.
    """
    chance = math.sqrt(claim.mean * (1 - claim.mean) / images)
    return SPREADS * max(claim.std, chance) * min(1, math.sqrt(2 / seeds))


def judge(claim: Claim, accuracies: Sequence[float], images: int, seconds: float) -> Check:
    """Whether a claim holds, given the accuracies of its first seeds on `images` test images.

    Of fewer seeds than were claimed, the mean is compared with that of the same seeds.
    """
    whole, measured = len(accuracies) == len(claim.seeds), statistics.fmean(accuracies)
    claimed = claim.mean if whole else statistics.fmean(claim.accuracies[: len(accuracies)])
    apart, most = abs(measured - claimed), allowed(claim, images, len(accuracies))
    seeds = ", ".join(map(str, claim.seeds[: len(accuracies)]))
    return Check(
        named(claim),
        "passed" if apart <= most else "failed",
        f"claimed {percent(claimed)} %, measured {percent(measured)} %: {percent(apart)} points apart, "
        f"{percent(most)} allowed ({'seeds' if len(accuracies) > 1 else 'seed'} {seeds}{'' if whole else ' alone'})",
        seconds,
    )


# ---- where the images lie


def portable(pattern: str) -> bool:
    """Whether a shard pattern may stand in a manifest, and be followed from one: no path of one machine, no variable,
    and no URL that holds a password or a signature."""
    if "$" in pattern or "::" in pattern:
        return False
    if "://" not in pattern:
        return not re.search(r"(?:^|[{,])(?:[/\\~]|[A-Za-z]:)", pattern)
    try:
        url = urlsplit(pattern)
    except ValueError:
        return False
    return url.scheme in REMOTE and not ("@" in url.netloc or url.query or url.fragment)


def images_of(manifest: Manifest, split: Split) -> SourceData:
    """The real data behind the claims of this split. InputError where the manifest says none."""
    if split == "held-out":
        return manifest.source
    if manifest.test is None:
        raise InputError("retort.json: claims are of test images, and it names none")
    return manifest.test


def patterns_of(manifest: Manifest, split: Split, scope: Scope) -> tuple[str, ...]:
    """The shards to test on: those given, else those of the manifest. InputError where there are neither."""
    given = {"test": scope.test, "held-out": scope.shards}
    other: Split = "held-out" if split == "test" else "test"
    if given[other] and not given[split]:
        raise InputError(f"{OPTIONS[other]}: the claims are of {split} images; give their shards by {OPTIONS[split]}")
    data = images_of(manifest, split)
    if found := given[split] or tuple(filter(portable, data.patterns)):
        return found
    names = ", ".join(shard.name for shard in data.shards[:2]) + (" ..." if len(data.shards) > 2 else "")
    raise InputError(f"retort.json does not say where the {split} images lie; give {OPTIONS[split]} ({names})")


def expect_digest(data: SourceData, digest: str, split: Split) -> None:
    """InputError unless the shards found are those that the claims were measured on."""
    if digest != data.digest:
        raise InputError(
            f"{OPTIONS[split]}: the shards found are {digest}, the claims were measured on {data.digest} "
            f"({len(data.shards)} shards, {data.samples} images): their content or classes differ"
        )


# ---- as a stranger opens it

STRANGER = """
import json, sys, time
from datasets import load_dataset
folder, cache, *tables = sys.argv[1:]
for table in tables:
    start = time.perf_counter()
    try:
        opened = load_dataset(folder, table, split="train", cache_dir=cache)
        opened[0]
        found = {"rows": len(opened), "features": opened.features.to_dict()}
    except Exception as error:
        found = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(found | {"seconds": time.perf_counter() - start}))
assert not {"dd_tasks", "flows", "schemas"} & set(sys.modules)
"""


def opened(folder: Path, manifest: Manifest) -> list[Check]:
    """Whether `datasets.load_dataset`, in a process of its own without our code, finds what the manifest says."""
    tables = list(columns(manifest))
    with tempfile.TemporaryDirectory() as cache:
        ran = subprocess.run(
            [sys.executable, "-c", STRANGER, str(folder.resolve()), cache, *tables],
            cwd=cache, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False,
        )  # fmt: skip
    if ran.returncode:
        said = [line for line in ran.stderr.splitlines() if line.strip()]
        return [Check("load_dataset", "failed", said[-1] if said else f"ended with exit code {ran.returncode}")]
    answers = map(json.loads, ran.stdout.splitlines()[-len(tables) :])
    return [_as_found(found, table, manifest) for table, found in zip(tables, answers, strict=True)]


def _as_found(found: Mapping[str, Any], table: str, manifest: Manifest) -> Check:
    problem = " ".join(found["error"].split()) if "error" in found else _unlike(found, table, manifest)
    said = problem or f"{rows(manifest)[table]} rows"
    return Check(f"load_dataset opens {table}", "failed" if problem else "passed", said, found["seconds"])


def _unlike(found: Mapping[str, Any], table: str, manifest: Manifest) -> str:
    """How what was loaded differs from the manifest; empty if it does not."""
    wanted = {feature.name: feature for feature in columns(manifest)[table]}
    features = {name: _feature(name, entry) for name, entry in found["features"].items()}
    if list(features) != list(wanted):
        return f"columns are {', '.join(features)}, by retort.json they should be {', '.join(wanted)}"
    for name, feature in features.items():
        if feature != wanted[name]:
            return f"column {name} is not of the type, or the classes, that retort.json gives"
    if found["rows"] != rows(manifest)[table]:
        return f"has {found['rows']} rows, by retort.json it should be {rows(manifest)[table]}"
    return ""


def _feature(name: str, entry: Mapping[str, Any]) -> Feature:
    """A column's type as `datasets` writes it, in the form of the card's header."""
    if entry["_type"] == "ClassLabel":
        names = ClassNames(names={str(i): label for i, label in enumerate(entry["names"])})
        return Feature(name=name, dtype=ClassLabelType(class_label=names))
    if entry["_type"] == "List":
        length = entry.get("length", -1)
        return Feature(name=name, list=entry["feature"].get("dtype", "?"), length=length if length > 0 else None)
    return Feature(name=name, dtype=entry.get("dtype", entry["_type"].lower()))


# ---- results


def failed(checks: Sequence[Check]) -> bool:
    return any(check.outcome == "failed" for check in checks)


class NotAsPromised(Exception):
    """An artifact is not what it says: the checks that failed, in one line."""

    def __init__(self, target: str, checks: Sequence[Check]) -> None:
        super().__init__(f"{target}: " + "; ".join(f"{c.name}: {c.message}" for c in checks if c.outcome == "failed"))


def junit(suite: str, checks: Sequence[Check]) -> bytes:
    """The checks as JUnit XML: one test suite, one test case a check."""
    counts = {outcome: sum(check.outcome == outcome for check in checks) for outcome in ("failed", "skipped")}
    root = ET.Element("testsuites")
    about = {"failures": counts["failed"], "skipped": counts["skipped"], "errors": 0, "tests": len(checks)}
    within = ET.SubElement(root, "testsuite", {"name": _xml(suite), **{k: str(v) for k, v in about.items()}})
    within.set("time", f"{sum(check.seconds for check in checks):.3f}")
    for check in checks:
        case = ET.SubElement(within, "testcase", classname="retort.verify", name=_xml(check.name))
        case.set("time", f"{check.seconds:.3f}")
        if check.outcome == "passed":
            ET.SubElement(case, "system-out").text = _xml(check.message)
        else:
            ET.SubElement(case, {"failed": "failure"}.get(check.outcome, "skipped"), message=_xml(check.message))
    ET.indent(root)
    return ET.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n"


def _xml(text: str) -> str:
    """Without the characters that XML 1.0 cannot hold; names in an artifact may have any."""
    return re.sub("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)
