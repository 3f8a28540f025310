"""What a run would make and why, by a walk through the flow's own body; nothing is made and no server is asked."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dd_tasks.artifact import read_manifest
from dd_tasks.changelog import differences
from dd_tasks.errors import InputError
from dd_tasks.recipe import plain
from dd_tasks.shards import Source
from dd_tasks.store import Ref
from dd_tasks.students import shared
from flows.assemble import Explained, Run
from flows.distill import distill_dataset
from flows.settings import Settings
from flows.walk import Step, Walk, walking
from flows.workspace import Data
from schemas.manifest import Manifest, SourceData
from schemas.spec import RunSpec

NAMED = 3  # shards, differences or inputs that one reason names
Changes = dict[str, str]  # part of a specification -> how it differs


@dataclass(frozen=True)
class Line:
    """One stage: `found`, `runs` or `follows`, and for what is not found why."""

    what: str
    fate: str
    why: str = ""

    def __str__(self) -> str:
        return f"{self.what}: {self.fate}{f': {self.why}' if self.why else ''}"


def explain(spec: RunSpec, out: Path, settings: Settings) -> tuple[Line, ...]:
    """One line a stage, in the order in which the flow asks for them, and one for the artifact.

    Reasons come from the artifact that is in `out` now: what it was made of, beside what it would be.
    """
    with walking() as walk:
        try:
            distill_dataset.fn(spec, out, settings)
        except Explained as end:
            changed = changes(_standing(out), end.run, end.data)
            return (*_lines(walk, changed), Line(f"artifact {out}", end.fate))
    raise AssertionError("the walk passed the artifact by")


def _standing(out: Path) -> Manifest | None:
    try:
        return read_manifest(out)
    except InputError:
        return None


def _lines(walk: Walk, changed: Changes) -> Iterator[Line]:
    running = walk.running
    for step in walk.steps:
        if step.ref is None:
            yield Line(step.what, "follows", "which ones it makes is known once what they learn from is there")
        elif step.runs:
            yield Line(step.what, "runs", _why(step, changed, running))
        else:
            yield Line(step.what, "found")


def _why(step: Step, changed: Changes, running: dict[Ref, str]) -> str:
    names = dict.fromkeys(part for part in step.made_of if isinstance(part, str) and part in changed)
    reasons = [f"its input {name!r} changed ({changed[name]})" for name in names]
    if inputs := list(dict.fromkeys(running[part] for part in step.made_of if part in running)):
        more = f"s {inputs[0]!r} and {len(inputs) - 1} more run" if len(inputs) > 1 else f" {inputs[0]!r} runs"
        reasons.append(f"its input{more}")
    return "; ".join(reasons) or "not in the store"


def changes(old: Manifest | None, run: Run, data: Data) -> Changes:
    """How what a run is told differs from what the artifact `old` was made of, by part; parts alike are left out."""
    if old is None:
        return {}
    recipe = {name: part for name, part in plain(run.recipe).items() if name != "type"}
    found = {name: differences("", old.recipe.get(name), part) for name, part in recipe.items()}
    found["seed"], found["ipc"] = (differences("", getattr(old, n), getattr(run.spec, n)) for n in ("seed", "ipc"))
    found["observers"] = differences(
        "",
        {each.name: each.epochs for each in old.observers},
        {each.name: getattr(each, "epochs", 0) for each in run.observers},
    )
    found["student"] = differences("", old.student, shared(run.students[0])) + differences(
        "", _epochs(old, "distilled"), {each.architecture: each.epochs for each in run.students}
    )
    found["full"] = differences(
        "", _epochs(old, "full"), {each.architecture: each.epochs for each in run.full_students}
    )
    scale = data.shape.mean, data.shape.std
    found["scale"] = ["mean and std of all pixels"] if (old.mean, old.std) != scale else []
    found["data"], found["test"] = list(_looked(old, data)), list(_shards(old.test, data.test))
    return {name: _few(lines) for name, lines in found.items() if lines}


def _epochs(old: Manifest, row: str) -> dict[str, int]:
    return {claim.student: claim.epochs for claim in old.claims if claim.row.split("_")[0] == row}


def _looked(old: Manifest, data: Data) -> Iterator[str]:
    """The shards, and what is seen of them."""
    yield from _shards(old.source, data.source)
    if old.classes != data.source.index.classes:
        now = data.source.index.classes
        was, are = set(old.classes), set(now)
        gone, new = _few([n for n in old.classes if n not in are]), _few([n for n in now if n not in was])
        yield "classes: " + "; ".join(
            f"{what}: {names}" for what, names in (("removed", gone), ("added", new)) if names
        )
    yield from differences(
        "", {"side": old.side, "held out": old.held_out}, {"side": data.side, "held out": data.held_out}
    )


def _shards(old: SourceData | None, new: Source | None) -> Iterator[str]:
    """A shard of the same name and other content is replaced; what shards are called makes no difference."""
    was = {shard.sha256: shard.name for shard in (old.shards if old else ())}
    now = {shard.sha256: shard.name for shard in (new.index.shards if new else ())}
    gone = [name for sha256, name in was.items() if sha256 not in now]
    come = [name for sha256, name in now.items() if sha256 not in was]
    parts = {
        "replaced": [name for name in come if name in gone],
        "added": [name for name in come if name not in gone],
        "removed": [name for name in gone if name not in come],
    }
    if told := [f"{len(names)} {what}: {_few(names)}" for what, names in parts.items() if names]:
        yield f"shards: {'; '.join(told)}"


def _few(lines: list[str]) -> str:
    return ", ".join(lines[:NAMED]) + (f" and {len(lines) - NAMED} more" if len(lines) > NAMED else "")
