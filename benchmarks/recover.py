"""Recovery beside the plain loop, in one process: `python -m benchmarks.recover --data DIR [--device cuda]`.

Both run E2D's two phases on the same real images under the same observers, briefly trained or with fresh weights
(`--fresh`), with losses of as many images together, a batch: the plain loop on one, ours on a panel of them side by
side (`schedule.batch`). First the plain loop's crops are replayed through ours, and the pixels after 1, 2 and 3 steps
must agree; then each draws its own and is timed, compiling apart. Written to benchmarks/results/NAME.json.

Image-updates: one image through one observer, forward and back to the pixels. `peak_share`: FLOPs of the observers'
passes a second, as plain convolutions need them, over those of a matrix product on the same device.
"""

import argparse
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any

from flows.environment import keep_freed_memory

keep_freed_memory()

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from benchmarks import plain_loop  # noqa: E402
from benchmarks.calls import keep  # noqa: E402
from dd_tasks import committee, shards  # noqa: E402
from dd_tasks.committee import Observer, ObserverRecipe, seeded  # noqa: E402
from dd_tasks.distill import Recovered, distill  # noqa: E402
from dd_tasks.feeds import Feed  # noqa: E402
from dd_tasks.memory import peak_memory  # noqa: E402
from dd_tasks.networks import Shape, build  # noqa: E402
from dd_tasks.presets import e2d  # noqa: E402
from dd_tasks.schedule import Chosen, Phase  # noqa: E402
from dd_tasks.statistics import LayerStatistics, measure  # noqa: E402
from dd_tasks.types import Canvas, CropMemory, Crops, Studio  # noqa: E402
from flows.workspace import machine  # noqa: E402

FIRST_STEPS = (1, 2, 3)
TOLERANCE = 1e-5  # of pixels in [0, 1]
SOME = 200  # images that the statistics of fresh weights are taken of
SMALL = e2d(side=32)  # what the plain loop does, at any side: large images match patches as well
PRODUCT = 2048  # rows and columns of the matrix product that is the device's peak
PEAKS = 10  # times that it is measured


@dataclass
class Replayed:
    """A viewer that looks where it is told."""

    steps: list[plain_loop.Step]
    may_finish = False
    at: Iterator[plain_loop.Step] = field(init=False)

    def __post_init__(self) -> None:
        self.at = iter(self.steps)

    def choose(self, memory: CropMemory, side: int, rng: torch.Generator, progress: float = 0.0) -> Chosen:
        step, device = next(self.at), memory.flips_NM.device
        crops = Crops(torch.tensor(step.boxes, device=device), torch.tensor(step.flips, device=device))
        return Chosen(crops, torch.tensor(step.memory, device=device))

    def remember(self, memory: CropMemory, chosen: Chosen, hardness_N: Tensor) -> CropMemory:
        return memory


@dataclass(frozen=True)
class Bench:
    """The same images and observers for both loops."""

    canvas: Canvas
    observers: tuple[Observer, ...]
    shape: Shape
    device: torch.device
    batch: int = 0  # images whose losses are taken together; 0: all

    @property
    def batches(self) -> tuple[slice, ...]:
        size, images = self.batch or len(self.canvas), len(self.canvas)
        return tuple(slice(start, min(start + size, images)) for start in range(0, images, size))

    def studio(self, *, compiled: bool) -> Studio:
        rng = torch.Generator(self.device).manual_seed(0)
        shape = self.shape
        return Studio(self.observers, shape.classes, shape.mean, shape.std, rng, self.device, compiled=compiled)

    def ours(self, phases: tuple[Phase, ...], *, compiled: bool = True) -> Recovered:
        recipe = replace(SMALL, schedule=replace(SMALL.schedule, phases=phases, batch=self.batch))
        return distill(recipe, self.canvas, self.studio(compiled=compiled))

    def plain(
        self, steps: tuple[int, int], watch: Callable[[plain_loop.Step], None], batch: slice = slice(None)
    ) -> Tensor:
        """pixels_NCSS of a batch after the plain loop."""
        mean_C11, std_C11 = (
            torch.tensor(x, device=self.device).view(3, 1, 1) for x in (self.shape.mean, self.shape.std)
        )
        images_NCSS = (self.canvas.images_NCHW[batch].to(self.device).float() / 255 - mean_C11) / std_C11
        bounds = (-mean_C11 / std_C11).flatten(), ((1 - mean_C11) / std_C11).flatten()
        judges = [self.judge(observer) for observer in self.observers]
        targets_N = self.canvas.targets_N[batch].to(self.device)
        return plain_loop.explore_and_exploit(images_NCSS, targets_N, judges, bounds, steps, watch) * std_C11 + mean_C11

    def judge(self, observer: Observer) -> plain_loop.Judge:
        """Its network of normalised images, in the usual memory format."""
        net = observer.net[1].to(memory_format=torch.contiguous_format)  # type: ignore[index]
        kept = ("batch_norm", "mean_C", "variance_C", "mean_KC", "variance_KC")
        layers = [plain_loop.Layer(*(getattr(layer, name) for name in kept)) for layer in observer.statistics]
        return plain_loop.Judge(net, layers)


@contextmanager
def channels_last(observers: tuple[Observer, ...]) -> Iterator[None]:
    """As ours has them; the plain loop leaves them in the usual format."""
    for observer in observers:
        observer.net.to(memory_format=torch.channels_last)
    yield


def watched(bench: Bench, steps: tuple[int, int]) -> tuple[Tensor, list[plain_loop.Step]]:
    """pixels_NCSS of all batches after the plain loop, and what its steps looked at, the batches' side by side."""
    pixels, looked = [], []
    for batch in bench.batches:
        steps_of: list[plain_loop.Step] = []
        pixels.append(bench.plain(steps, steps_of.append, batch))
        looked.append(steps_of)
    return torch.cat(pixels), [_beside(parts) for parts in zip(*looked, strict=True)]


def _beside(parts: tuple[plain_loop.Step, ...]) -> plain_loop.Step:
    boxes, flips, memory = ([x for part in parts for x in getattr(part, name)] for name in ("boxes", "flips", "memory"))
    return plain_loop.Step(boxes, flips, memory, torch.cat([part.images_NCSS for part in parts]))


def agreement(bench: Bench) -> list[dict[str, Any]]:
    """The pixels of both after the first steps on the same crops."""
    found = []
    for steps in FIRST_STEPS:
        random.seed(steps)
        torch.manual_seed(steps)
        theirs_NCSS, looked = watched(bench, (steps, 0))
        with channels_last(bench.observers):
            ours_NCSS = bench.ours((Phase(steps, Replayed(looked)),)).pixels_NCSS  # type: ignore[arg-type]
        apart = (theirs_NCSS.cpu() - ours_NCSS).abs()
        found.append({
            "steps": steps, "largest": apart.max().item(), "median": apart.median().item(),
            "beyond_tolerance": (apart > TOLERANCE).float().mean().item(),
        })  # fmt: skip
    return found


def flops(observers: tuple[Observer, ...], shape: Shape, device: torch.device) -> float:
    """Of one image-update, forward and back to the pixels, the observers' mean."""
    total = 0
    for observer in observers:
        pixels_NCSS = torch.rand(1, 3, shape.side, shape.side, device=device, requires_grad=True)
        with FlopCounterMode(display=False) as counted:
            observer.net(pixels_NCSS).sum().backward()
        total += counted.get_total_flops()
    return total / len(observers)


def peak(device: torch.device) -> float:
    """FLOPs a second of a matrix product, float32: the most of several times, between which others may disturb it."""
    one, other = torch.rand(2, PRODUCT, PRODUCT, device=device)
    one @ other

    def seconds(repeats: int = 8) -> float:
        start = clock(device)
        for _ in range(repeats):
            one @ other
        return (clock(device) - start) / repeats

    return 2 * PRODUCT**3 / min(seconds() for _ in range(PEAKS))


def clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def measured(bench: Bench, steps: tuple[int, int], repeats: int) -> dict[str, Any]:
    """Image-updates a second of both, the median of some runs in turn, and what compiling cost."""
    phases = tuple(replace(phase, steps=n) for phase, n in zip(SMALL.schedule.phases, steps, strict=True))
    first, device = bench.batches[0], bench.device
    with channels_last(bench.observers):
        start = clock(device)
        bench.ours(tuple(replace(phase, steps=2 * len(bench.observers)) for phase in phases))
        warm = clock(device) - start
    bench.plain((2, 1), lambda step: None, first)
    ways: dict[str, Callable[[], int]] = {
        "ours": lambda: bench.ours(phases).image_updates,
        "not_compiled": lambda: bench.ours(phases, compiled=False).image_updates,
        "plain": lambda: len(bench.plain(steps, lambda step: None, first)) * sum(steps),
    }
    found: dict[str, list[float]] = {way: [] for way in ways}
    most: dict[str, int] = {}
    for _ in range(repeats):
        for way, work in ways.items():
            with channels_last(bench.observers), peak_memory(device) as memory:
                start = clock(device)
                found[way].append(work() / (clock(device) - start))
            most[way] = memory()
    rates = {way: round(median(each), 1) for way, each in found.items()}
    each = [round(ours / plain, 2) for ours, plain in zip(found["ours"], found["plain"], strict=True)]
    return {
        "image_updates_a_second": rates, "ratio": round(rates["ours"] / rates["plain"], 2), "ratio_each": each,
        "ratio_not_compiled": round(rates["not_compiled"] / rates["plain"], 2), "warm_up_seconds": round(warm, 1),
        "peak_memory_bytes": {"ours": most["ours"], "plain": most["plain"]}, "steps": sum(steps), "repeats": repeats,
    }  # fmt: skip


@dataclass(frozen=True)
class Case:
    """What is measured: side, committee, images in a batch."""

    side: int
    committee: str
    batch: int

    @classmethod
    def of(cls, said: str) -> "Case":
        side, name, batch = said.split(":")
        if name not in committee.COMMITTEES:
            raise ValueError(f"committee {name!r} is none of {', '.join(committee.COMMITTEES)}")
        return cls(int(side), name, int(batch))


def seated(case: Case, data: str, device: torch.device, *, fresh: bool) -> tuple[tuple[Observer, ...], Shape, Feed]:
    """The committee, one epoch old or with fresh weights, and the real images."""
    source = shards.open_source((f"{data}/cifar10-train-0000.tar",), quarantine=shards.Quarantine())
    shape = Shape(len(source.index.classes), case.side, source.index.mean, source.index.std)
    feed = shards.feed(source, side=case.side, quarantine=shards.Quarantine())
    observers = []
    for recipe in committee.COMMITTEES[case.committee]:
        assert isinstance(recipe, ObserverRecipe)
        if fresh:
            net = seeded(lambda name=recipe.architecture: build(name, shape), recipe.seed).to(device)
        else:
            made = committee.train(replace(recipe, epochs=1), shape, feed, feed, device=device)
            net = committee.restore(recipe.architecture, made.weights, shape, device)
        net.eval()
        observers.append(Observer(recipe.name, net, statistics_of(net, feed, shape, device, fresh=fresh)))
    return tuple(observers), shape, feed


def statistics_of(
    net: nn.Module, feed: Feed, shape: Shape, device: torch.device, *, fresh: bool
) -> tuple[LayerStatistics, ...]:
    """Over all images; of fresh weights over some, which cost the same to match."""
    if not fresh:
        return committee.statistics(net, feed, shape.classes, device)
    some = next(iter(feed.batches(SOME, seed=0)))
    return measure(net, [(some.images_NCHW.to(device).float() / 255, some.labels_N)], shape.classes)[0]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--data", required=True, help="folder of the CIFAR-10 shards")
    options.add_argument("--device", default="cpu")
    options.add_argument(
        "--cases", type=Case.of, nargs="+", default=[Case(32, "small", 10), Case(32, "small", 100)],
        metavar="SIDE:COMMITTEE:BATCH",
    )  # fmt: skip
    options.add_argument("--panel", type=int, default=100, help="images of ours side by side, at least a batch")
    options.add_argument("--steps", type=int, nargs=2, default=[42, 18], metavar=("EXPLORE", "EXPLOIT"))
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--fresh", action="store_true", help="observers with fresh weights: as fast, at once")
    options.add_argument("--name", default="recover")
    arguments = options.parse_args()
    device = torch.device(arguments.device)
    most, rows = peak(device), []
    for case in arguments.cases:
        observers, shape, feed = seated(case, arguments.data, device, fresh=arguments.fresh)
        each, images = flops(observers, shape, device), max(case.batch, arguments.panel)
        real = next(iter(feed.batches(images, seed=0)))
        canvas = Canvas(real.images_NCHW, real.labels_N, ((),) * images)
        bench = Bench(canvas, observers, shape, device, case.batch if case.batch < images else 0)
        with channels_last(observers):
            found = {**asdict(case), "panel": images, **measured(bench, tuple(arguments.steps), arguments.repeats)}
            found["agreement"] = agreement(bench)
        found |= {"flops": each, "peak_share": round(each * found["image_updates_a_second"]["ours"] / most, 3)}
        print(found, flush=True)
        rows.append(found)
        keep(arguments.name, {
            "machine": machine(), "command": called(arguments), "fresh": arguments.fresh,
            "matrix_product_flops": most, "rows": rows,
        })  # fmt: skip


def called(arguments: argparse.Namespace) -> str:
    """The command, without the paths of this machine."""
    cases = " ".join(f"{case.side}:{case.committee}:{case.batch}" for case in arguments.cases)
    steps = " ".join(map(str, arguments.steps))
    told = f"--cases {cases} --panel {arguments.panel} --steps {steps} --repeats {arguments.repeats}"
    more = (" --fresh" if arguments.fresh else "") + (f" --device {arguments.device}" * (arguments.device != "cpu"))
    return f"python -m benchmarks.recover --data CIFAR10 {told}{more}"


if __name__ == "__main__":
    main()
