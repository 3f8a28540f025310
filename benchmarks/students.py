"""Relabelling and a student, ours and written plainly: `python -m benchmarks.students --data DIR`.

On the same 100 real images of CIFAR-10, views, observers and seeds, 300 epochs each; the labels must agree. `--way` and
`--seeds` measure a part, which joins what benchmarks/results/students.json has. What is compiled, as students of other
architectures are (`--student`), counts once; building our programs, once a machine, is timed by itself.
"""

import copy
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any, TypeVar

from flows.environment import keep_freed_memory, prepare_environment

prepare_environment()
os.environ.setdefault("PREFECT_HOME", tempfile.mkdtemp(prefix="retort-"))

import torch  # noqa: E402
from prefect import flow  # noqa: E402
from torch import Tensor  # noqa: E402
from torch._dynamo.utils import calculate_time_spent  # noqa: E402

from benchmarks import plain_student as plain  # noqa: E402
from benchmarks.calls import RESULTS, keep, parser  # noqa: E402
from dd_tasks import students  # noqa: E402
from dd_tasks.feeds import Feed  # noqa: E402
from dd_tasks.label import Relabel  # noqa: E402
from dd_tasks.native import kernels  # noqa: E402
from dd_tasks.networks import build  # noqa: E402
from dd_tasks.students import StudentRecipe, batch_sizes, batches  # noqa: E402
from dd_tasks.types import Canvas, Studio, Views  # noqa: E402
from flows import console  # noqa: E402
from flows.assemble import Run, resolve  # noqa: E402
from flows.committee import train_committee  # noqa: E402
from flows.engines import ENGINE  # noqa: E402
from flows.settings import Settings  # noqa: E402
from flows.stored import get_canvas  # noqa: E402
from flows.tasks import choose_images, draw_candidates, index_shards  # noqa: E402
from flows.workspace import Data, machine, seed_of, studio_of, test_feed  # noqa: E402
from schemas.spec import RunSpec  # noqa: E402

T = TypeVar("T")
WAYS = "ours", "plain"


@flow(name="measure-students", validate_parameters=False, task_runner=ENGINE)
def begin(spec: RunSpec, settings: Settings) -> tuple[Run, Data, Canvas, Studio]:
    """The committee, trained or found in the store, and real images to label."""
    data = index_shards(spec.shards, spec.test, spec.side, spec.held_out, spec.tolerate, spec.ipc)
    run, drawn = resolve(spec, data.side, data.shape.classes), seed_of(spec.seed, "candidates")
    first = run.recipe.initialiser
    candidates = draw_candidates(first, spec.ipc, data, drawn, settings)
    seats = train_committee(run.observers, data, settings)
    canvas = choose_images(first, candidates, seats, spec.ipc, data, spec.seed, settings)
    return run, data, get_canvas(canvas, settings), studio_of(seats, data, spec.seed, settings)


def mixed(views: Views) -> list[plain.Mixed]:
    """The same views, one by one."""
    own, partners = (
        [plain.View(image, tuple(box), flip) for image, box, flip in zip(*(x.tolist() for x in some), strict=True)]
        for some in (
            (views.images_V, views.crops.boxes_N4, views.crops.flips_N),
            (views.partners_V, views.partner_crops.boxes_N4, views.partner_crops.flips_N),
        )
    )
    return [plain.Mixed(*one) for one in zip(own, partners, map(tuple, views.mix_boxes_V4.tolist()), strict=True)]


def timed(work: Callable[[], T]) -> tuple[T, dict[str, float]]:
    """What it makes, the seconds, and how many cores other processes kept busy meanwhile: near 0 where none does."""
    start, busy, mine = time.perf_counter(), busy_seconds(), time.process_time()
    made = work()
    seconds = time.perf_counter() - start
    others = (busy_seconds() - busy - (time.process_time() - mine)) / seconds
    return made, {"seconds": round(seconds, 2), "others": round(others, 2)}


def busy_seconds() -> float:
    """Of all cores since the machine started, without idling and waiting for files."""
    ticks = [int(part) for part in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Bench:
    """What both ways work on."""

    recipe: StudentRecipe
    canvas: Canvas
    studio: Studio
    data: Data
    test: Feed

    def ours(self, views: Views, seed: int) -> dict[str, Any]:
        before, test = compiling(), self.test
        train = partial(students.train, seed=seed, device=torch.device("cpu"))
        top1, took = timed(lambda: train(self.recipe, self.data.shape, self.canvas, views, test))
        return {**took, "compile_seconds": round(compiling() - before, 2), "accuracy": top1}

    def plainly(self, views: Views, seed: int) -> dict[str, Any]:
        recipe, rng = self.recipe, torch.Generator().manual_seed(seed)
        targets, each = self.canvas.targets_N.tolist(), len(batch_sizes(len(self.canvas), self.recipe.batch))
        lessons = plain.Lessons(self.canvas.images_NCHW, targets, mixed(views), views.logits_VK)
        rows = [part.tolist() for part in batches(views, recipe.batch, recipe.epochs, rng)]
        epochs = [rows[start : start + each] for start in range(0, len(rows), each)]
        net = students.seeded(lambda: build(recipe.architecture, self.data.shape), seed)
        every = list(self.test.batches(500, seed=None))
        tested = torch.cat([batch.images_NCHW for batch in every]), torch.cat([batch.labels_N for batch in every])
        losses: list[float] = []
        top1, took = timed(lambda: plain.top1(plain.student(net, lessons, epochs, len(rows), losses.append), *tested))
        return {**took, "compile_seconds": 0.0, "accuracy": top1}

    def plain_labels(self, views: Views) -> list[Tensor]:
        drawn, n = mixed(views), len(self.canvas)
        observers = [copy.deepcopy(o.net) for o in self.studio.observers]  # type: ignore[attr-defined]
        observers = [net.to(memory_format=torch.contiguous_format) for net in observers]
        epochs = [drawn[start : start + n] for start in range(0, len(drawn), n)]
        return plain.relabel(self.canvas.images_NCHW, epochs, observers)


def compiling() -> float:
    """Seconds that this process has spent on it."""
    return float(calculate_time_spent().get("total_wall_time", 0.0))


def labels(bench: Bench, labeller: Relabel, ways: Sequence[str]) -> tuple[Views, dict[str, Any]]:
    """The views, and of each way what labelling them takes. AssertionError where they do not label the same."""
    before = compiling()
    views, took = timed(lambda: labeller.label(bench.canvas, bench.studio))
    took["compile_seconds"] = round(compiling() - before, 2)
    found: dict[str, Any] = {way: {"relabel": took} for way in ways}
    if "plain" in ways:
        theirs, took = timed(lambda: bench.plain_labels(views))
        apart = (torch.cat(theirs).float() - views.logits_VK.float()).abs().max().item()
        assert apart < 0.05, apart
        found["plain"] = {"relabel": {**took, "compile_seconds": 0.0}, "labels_apart": round(apart, 4)}
    return views, found


def ratio(found: dict[str, Any]) -> dict[str, float]:
    """Of the seconds of labels and one student, by the mean over its seeds, plainly over ours."""
    if not all(way in found and found[way]["seeds"] for way in WAYS):
        return {}

    def spent(way: str) -> float:
        parts = [found[way]["relabel"], *found[way]["seeds"].values()]
        working = [part["seconds"] - part["compile_seconds"] for part in parts]
        compiled = sum(part["compile_seconds"] for part in parts[:2])  # once, whatever number of seeds
        return float(working[0] + mean(working[1:]) + compiled)

    return {"ratio": round(spent("plain") / spent("ours"), 2)}


def main() -> None:
    options = parser(__doc__, "runs/students")
    options.add_argument("--way", choices=WAYS, nargs="+", default=WAYS)
    options.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    options.add_argument("--observer-epochs", type=int, help="default: as many as the committee's recipe has")
    arguments = options.parse_args()
    keep_freed_memory()
    console.start()
    spec = RunSpec(
        preset="e2d", shards=(f"{arguments.data}/cifar10-train-{{0000..0009}}.tar",), ipc=arguments.ipc,
        test=(f"{arguments.data}/cifar10-test-{{0000..0001}}.tar",), committee="small", students=(arguments.student,),
        codec="exact",
        set={"observers.epochs": str(arguments.observer_epochs)} if arguments.observer_epochs else {},
    )  # fmt: skip
    settings = Settings(store=arguments.store)
    run, data, canvas, studio = begin(spec, settings)
    assert isinstance(run.recipe.labeller, Relabel)
    for _ in (test := test_feed(data, settings)).batches(500, seed=None):  # decoded before anything is timed
        pass
    path = RESULTS / "students.json"
    command = "python -m benchmarks.students --data CIFAR10"
    for name in ("student", "ipc", "observer_epochs"):
        if (chosen := getattr(arguments, name)) != options.get_default(name):
            command += f" --{name.replace('_', '-')} {chosen}"
    found = json.loads(path.read_text()) if path.exists() else {}
    if found.get("command") != command:
        found = {}
    _, building = timed(kernels)
    bench = Bench(run.students[0], canvas, replace(studio, rng=torch.Generator().manual_seed(0)), data, test)
    views, labelled = labels(bench, run.recipe.labeller, arguments.way)
    for way in arguments.way:  # in turn, seed by seed: a machine has slower and faster hours
        found[way] = {"seeds": {}} | found.get(way, {}) | labelled[way] | {"building": building}
    for seed, way in product(arguments.seeds, arguments.way):
        found[way]["seeds"][str(seed)] = (bench.plainly if way == "plain" else bench.ours)(views, seed)
    ways = {way: found[way] for way in WAYS if way in found}
    keep("students", ways | ratio(ways) | {"command": command, "machine": machine()})


if __name__ == "__main__":
    main()
