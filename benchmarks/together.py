"""Three students of other seeds, one after another and together: `python -m benchmarks.together`.

Seconds of a training step of all three on one thread, of the processor's own time, which others on the machine disturb
least, on random views of 32 px: one after another as `dd_tasks.students` trains them; stacked by `torch.func`, whose
convolutions are then grouped ones, as they are and compiled; and one after another in each of two processes at a time,
which have students all the time and a core each. Stacked students must learn what lone ones do.
`--architecture` and `--batch` measure a part, which joins what benchmarks/results/together.json has.
"""

import argparse
import copy
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import itemgetter
from statistics import median
from typing import Any

from flows.environment import keep_freed_memory, prepare_environment

prepare_environment()

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from benchmarks.calls import RESULTS, keep  # noqa: E402
from dd_tasks.committee import as_one, seeded  # noqa: E402
from dd_tasks.compiling import for_training  # noqa: E402
from dd_tasks.networks import Shape, build  # noqa: E402
from dd_tasks.students import Average, StudentRecipe, objective  # noqa: E402
from flows.workspace import machine  # noqa: E402

STUDENTS, PROCESSES = 3, 2
SHAPE = Shape(10, 32)
LONG = 10**6  # image-updates, enough for whatever pays off in a long training
WARM, STEPS, SECONDS = 3, 8, 3.0
Step = Callable[[], Tensor]  # a step of training; the students' losses


@dataclass(frozen=True)
class Bench:
    """The same views and labels, of each student its own."""

    architecture: str
    batch: int

    def fresh(self, seed: int) -> nn.Module:
        return seeded(lambda: build(self.architecture, SHAPE), seed).to(memory_format=torch.channels_last)

    def lesson(self, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """pixels_VCSS, labels_VK, and shares_VK of the areas by class."""
        rng, n = torch.Generator().manual_seed(seed), self.batch
        pixels_VCSS = torch.rand(n, 3, SHAPE.side, SHAPE.side, generator=rng)
        labels_VK = torch.randn(n, SHAPE.classes, generator=rng)
        shares_VK = torch.rand(n, SHAPE.classes, generator=rng)
        shares_VK /= shares_VK.sum(1, keepdim=True)
        return pixels_VCSS.contiguous(memory_format=torch.channels_last), labels_VK, shares_VK

    def alone(self, seed: int) -> Step:
        """As `dd_tasks.students` does it."""
        net, lesson = self.fresh(seed), self.lesson(seed)
        fast, weights = for_training(net, LONG, SHAPE.side), as_one(net)
        return _step(lambda: objective(RECIPE, fast(lesson[0]), *lesson[1:])[None], [weights])

    def stacked(self, compile_it: bool) -> Step:
        """All students as one network with a further dimension."""
        nets = [self.fresh(seed) for seed in range(STUDENTS)]
        weights, buffers = torch.func.stack_module_state(nets)  # type: ignore[arg-type]
        shell = copy.deepcopy(nets[0]).to("meta")

        def one(weights: dict[str, Tensor], buffers: dict[str, Tensor], pixels_VCSS: Tensor) -> Tensor:
            return torch.func.functional_call(shell, (weights, buffers), (pixels_VCSS,))  # type: ignore[no-any-return]

        every = torch.vmap(one)
        look = torch.compile(every) if compile_it else every
        lessons = [self.lesson(seed) for seed in range(STUDENTS)]
        pixels_EVCSS = torch.stack([lesson[0] for lesson in lessons])

        def losses() -> Tensor:
            logits_EVK = look(weights, buffers, pixels_EVCSS)
            each = [objective(RECIPE, own, *lesson[1:]) for own, lesson in zip(logits_EVK, lessons, strict=True)]
            return torch.stack(each)

        return _step(losses, list(weights.values()))


RECIPE = StudentRecipe()


def _step(losses: Callable[[], Tensor], weights: list[Tensor]) -> Step:
    optimiser = torch.optim.AdamW(weights, RECIPE.rate, weight_decay=RECIPE.weight_decay, fused=True)
    average = Average([tensor.detach() for tensor in weights], RECIPE.ema)

    def step() -> Tensor:
        found = losses()
        optimiser.zero_grad(set_to_none=False)
        found.sum().backward()
        optimiser.step()
        average.update()
        return found.detach()

    return step


def seconds(step: Step) -> float:
    """Of a step, the median over SECONDS."""
    for _ in range(WARM):
        step()
    found: list[float] = []
    while sum(found) < SECONDS or len(found) < STEPS:
        start = time.process_time()
        step()
        found.append(time.process_time() - start)
    return median(found)


_barrier: Any = None


def _begin(barrier: Any) -> None:
    global _barrier
    _barrier = barrier


def _in_process(bench: Bench) -> float:
    keep_freed_memory()
    torch.set_num_threads(1)
    step = bench.alone(0)
    for _ in range(WARM):
        step()
    _barrier.wait()
    return seconds(step)


def side_by_side(bench: Bench) -> float:
    """Seconds of a student's step in each of PROCESSES at a time."""
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(PROCESSES, _begin, (spawn.Barrier(PROCESSES),)) as pool:
        return max(pool.map(_in_process, [bench] * PROCESSES, chunksize=1))


def agreement(bench: Bench) -> float:
    """The largest gap, of the losses, between lone and stacked students' after three steps."""
    lone, stacked = [bench.alone(seed) for seed in range(STUDENTS)], bench.stacked(False)
    for _ in range(3):
        theirs, ours = torch.cat([step() for step in lone]), stacked()
    return (theirs - ours).abs().max().item() / theirs.abs().max().item()


def ways(bench: Bench) -> Iterator[tuple[str, float]]:
    """Seconds of a step of all students."""
    yield "one after another", STUDENTS * seconds(bench.alone(0))
    yield "stacked", seconds(bench.stacked(False))
    yield "stacked, compiled", seconds(bench.stacked(True))
    yield "two processes", STUDENTS / PROCESSES * side_by_side(bench)


def measured(bench: Bench) -> dict[str, Any]:
    apart = agreement(bench)
    assert apart < 1e-3, apart
    found = {way: round(each, 5) for way, each in ways(bench)}
    first = found["one after another"]
    faster = {way: round(first / each, 2) for way, each in found.items()}
    return {
        "architecture": bench.architecture, "batch": bench.batch, "seconds_a_step": found, "times_as_fast": faster,
        "losses_apart": apart,
    }  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--architecture", nargs="+", default=["convnet3", "convnet3_w32"])
    options.add_argument("--batch", type=int, nargs="+", default=[10, 100])
    arguments = options.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    for architecture in arguments.architecture:
        for batch in arguments.batch:
            row = measured(Bench(architecture, batch))
            print(row, flush=True)
            joined(row)


def joined(row: dict[str, Any]) -> None:
    """With the rows there are of others."""
    path, key = RESULTS / "together.json", itemgetter("architecture", "batch")
    known = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = sorted([*(other for other in known if key(other) != key(row)), row], key=key)
    about = {"students": STUDENTS, "processes": PROCESSES, "side": SHAPE.side, "machine": machine()}
    keep("together", {"command": "python -m benchmarks.together", **about, "rows": rows})


if __name__ == "__main__":
    main()
