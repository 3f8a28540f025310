"""Panels a second by engine and number of workers, and with one killed: `python -m benchmarks.engines --data DIR`.

E2D on CIFAR-10 in panels of 10 images, on one thread each: here, on Ray with one worker and with two, and with two of
which one is killed on the way. A first round of panels, which is not counted, starts the workers. The checksums of the
images must agree. Written to benchmarks/results/engines.json.
"""

import hashlib
import os
import shutil
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from flows.environment import keep_freed_memory, prepare_environment

prepare_environment()
os.environ.setdefault("PREFECT_HOME", tempfile.mkdtemp(prefix="retort-"))

from prefect import flow  # noqa: E402

from benchmarks.calls import keep, parser  # noqa: E402
from dd_tasks.store import Ref  # noqa: E402
from flows import console  # noqa: E402
from flows.assemble import resolve  # noqa: E402
from flows.committee import committee_from_shards, train_committee  # noqa: E402
from flows.engines import ENGINE  # noqa: E402
from flows.recover import recover  # noqa: E402
from flows.settings import Settings  # noqa: E402
from flows.stored import get_canvas  # noqa: E402
from flows.tasks import choose_images, draw_candidates, index_shards  # noqa: E402
from flows.workspace import begun_of, machine, panels_of, seed_of  # noqa: E402
from schemas.spec import RunSpec  # noqa: E402

WAYS: dict[str, dict[str, Any]] = {
    "local": {"threads": 1},
    "ray, 1 worker": {"engine": "ray", "workers": 1},
    "ray, 2 workers": {"engine": "ray", "workers": 2},
    "ray, 2 workers, one killed": {"engine": "ray", "workers": 2},
}


@flow(name="measure-engine", validate_parameters=False, task_runner=ENGINE)
def measured(spec: RunSpec, settings: Settings, kill: bool) -> dict[str, Any]:
    """Panels a second, after as many of another seed."""
    data = index_shards(spec.shards, (), spec.side, spec.held_out, spec.tolerate, spec.ipc)
    run = resolve(spec, data.side, data.shape.classes)
    begin, drawn = run.recipe.initialiser, seed_of(spec.seed, "candidates")
    candidates = draw_candidates(begin, spec.ipc, data, drawn, settings)
    seats = train_committee(run.observers, data, settings)
    first = choose_images(begin, candidates, seats, spec.ipc, data, spec.seed, settings)
    begun = begun_of(begin, spec.ipc, data, (drawn, spec.seed), seats)
    warm, panels = (panels_of(spec.ipc, begun, data.shape.classes, spec.panel, seed) for seed in (1, 0))
    recover(run.recipe, first, warm[:2], seats, data, 1, settings)
    killed = threading.Timer(5, kill_one) if kill else None
    if killed:
        killed.start()
    start = time.perf_counter()
    _, canvas = recover(run.recipe, first, panels, seats, data, 0, settings)
    seconds = time.perf_counter() - start
    return {"panels": len(panels), "seconds": round(seconds, 1), "sha256": checksum(canvas, settings)}


def checksum(canvas: Ref, settings: Settings) -> str:
    return hashlib.sha256(get_canvas(canvas, settings).images_NCHW.numpy().tobytes()).hexdigest()


def kill_one() -> None:
    """A worker of Ray that is recovering a panel."""
    for process in Path("/proc").iterdir():
        if process.name.isdecimal() and (process / "cmdline").read_bytes().startswith(b"ray::recover_panel"):
            os.kill(int(process.name), signal.SIGKILL)
            return
    raise RuntimeError("no worker to kill")


def main() -> None:
    arguments = parser(__doc__, "runs/engines").parse_args()
    keep_freed_memory()
    console.start()
    spec = RunSpec(
        preset="e2d", shards=(f"{arguments.data}/cifar10-train-{{0000..0009}}.tar",), ipc=arguments.ipc, panel=10,
        set={"observers.epochs": "1"},
    )  # fmt: skip
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        observers = resolve(spec, 32, 10).observers
        trained = Path(folder) / "observers"
        committee_from_shards(observers, spec.shards, spec.side, spec.held_out, 0, Settings(store=str(trained)))
        for number, (way, settings) in enumerate(WAYS.items()):
            store = shutil.copytree(trained, Path(folder) / str(number))
            found = measured(spec, Settings(store=str(store), **settings), "killed" in way)
            rows.append({"engine": way, **found, "panels_a_second": round(found["panels"] / found["seconds"], 3)})
            print(rows[-1], flush=True)
    one, two = rows[1]["panels_a_second"], rows[2]["panels_a_second"]
    assert len({row["sha256"] for row in rows}) == 1
    keep("engines", {"machine": machine(), "rows": rows, "speed_up": round(two / one, 2)})


if __name__ == "__main__":
    main()
