"""Relabelling and a student, ours and written plainly: `python -m benchmarks.students --data DIR --seed 0`.

Both in one process, on the same 100 real images of CIFAR-10, views, observers and seed, 300 epochs each; the labels
must agree. A call adds its seed's row to benchmarks/results/students.json. Of our seconds those of compiling are told
apart: what the first call compiles, later ones find on disk.
"""

import copy
import json
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any, TypeVar

from flows.environment import keep_freed_memory, prepare_environment

prepare_environment()
os.environ.setdefault("PREFECT_HOME", tempfile.mkdtemp(prefix="retort-"))

import torch  # noqa: E402
from prefect import flow  # noqa: E402
from torch._dynamo.utils import calculate_time_spent  # noqa: E402

from benchmarks import plain_student as plain  # noqa: E402
from benchmarks.calls import RESULTS, keep, parser  # noqa: E402
from dd_tasks import students  # noqa: E402
from dd_tasks.label import Relabel  # noqa: E402
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


class Clock:
    """Seconds by what took them."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, what: str, work: Callable[[], T]) -> T:
        start = time.perf_counter()
        made = work()
        self.seconds[what] = round(time.perf_counter() - start, 2)
        return made

    def told(self, **besides: Any) -> dict[str, Any]:
        return {"seconds": self.seconds, "all_seconds": round(sum(self.seconds.values()), 2), **besides}


def plainly(
    recipe: StudentRecipe, canvas: Canvas, views: Views, studio: Studio, data: Data, seed: int
) -> dict[str, Any]:
    """Seconds and top-1 of the plain way, its labels and its losses."""
    clock, drawn, n = Clock(), mixed(views), len(canvas)
    observers = [copy.deepcopy(o.net).to(memory_format=torch.contiguous_format) for o in studio.observers]  # type: ignore
    epochs = [drawn[start : start + n] for start in range(0, len(drawn), n)]
    labels = clock("relabel", lambda: plain.relabel(canvas.images_NCHW, epochs, observers))
    lessons = plain.Lessons(canvas.images_NCHW, canvas.targets_N.tolist(), drawn, torch.cat(labels))
    each = len(batch_sizes(n, recipe.batch))
    rows = [part.tolist() for part in batches(views, recipe.batch, recipe.epochs, torch.Generator().manual_seed(seed))]
    order = [rows[start : start + each] for start in range(0, len(rows), each)]
    net, losses = students.seeded(lambda: build(recipe.architecture, data.shape), seed), []
    average = clock("student", lambda: plain.student(net, lessons, order, len(rows), losses.append))
    images = torch.cat([batch.images_NCHW for batch in test_feed(data).batches(500, seed=None)])
    classes = torch.cat([batch.labels_N for batch in test_feed(data).batches(500, seed=None)])
    top1 = clock("score", lambda: plain.top1(average, images, classes))
    return clock.told(accuracy=top1) | {"labels": labels, "losses": losses[:5]}


def ours(
    recipe: StudentRecipe, canvas: Canvas, labeller: Relabel, studio: Studio, data: Data, seed: int
) -> dict[str, Any]:
    """Seconds and top-1 of our way, of them those of compiling; and its views."""
    clock, test = Clock(), test_feed(data)
    views = clock("relabel", lambda: labeller.label(canvas, studio))
    top1 = clock(
        "student and score",
        lambda: students.train(recipe, data.shape, canvas, views, test, seed=seed, device=torch.device("cpu")),
    )
    compiling = sum(calculate_time_spent().values())
    return clock.told(accuracy=top1, compile_seconds=round(compiling, 2)) | {"views": views}


def row(spec: RunSpec, settings: Settings, seed: int) -> dict[str, Any]:
    """Both ways of one seed. AssertionError where they do not see or say the same."""
    run, data, canvas, studio = begin(spec, settings)
    assert isinstance(run.recipe.labeller, Relabel)
    sum(1 for _ in test_feed(data).batches(500, seed=None))  # decoded
    mine = ours(run.students[0], canvas, run.recipe.labeller, studio, data, seed)
    views = mine.pop("views")
    theirs = plainly(run.students[0], canvas, views, studio, data, seed)
    labels, losses = theirs.pop("labels"), theirs.pop("losses")
    apart = (torch.cat(labels).float() - views.logits_VK.float()).abs().max().item()
    assert apart < 0.02, apart
    steady = mine["all_seconds"] - mine["compile_seconds"]
    return {
        "seed": seed, "ours": mine, "plain": theirs, "labels_apart": apart, "first_losses": losses,
        "ratio": round(theirs["all_seconds"] / mine["all_seconds"], 2),
        "ratio_without_compiling": round(theirs["all_seconds"] / steady, 2),
    }  # fmt: skip


def main() -> None:
    options = parser(__doc__, "runs/students")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--held-out", action="store_true", help="score on training images that were held out")
    arguments = options.parse_args()
    keep_freed_memory()
    console.start()
    test = () if arguments.held_out else (f"{arguments.data}/cifar10-test-{{0000..0001}}.tar",)
    spec = RunSpec(
        preset="e2d", shards=(f"{arguments.data}/cifar10-train-{{0000..0009}}.tar",), test=test, ipc=arguments.ipc,
        committee="small", students=(arguments.student,),
    )  # fmt: skip
    made = row(spec, Settings(store=arguments.store), arguments.seed)
    print(json.dumps(made, indent=1))
    path = RESULTS / "students.json"
    before = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = sorted([*(r for r in before if r["seed"] != arguments.seed), made], key=lambda r: r["seed"])
    command = f"python -m benchmarks.students --data CIFAR10 --seed {arguments.seed}"
    keep(
        "students",
        {"command": command, "machine": machine(), "split": "held-out" if not test else "test", "rows": rows},
    )


if __name__ == "__main__":
    main()
