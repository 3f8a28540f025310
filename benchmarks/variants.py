"""What was tried for `retort`: `python -m benchmarks.variants --data DIR [--variants VARIANT...]`.

Each variant changes one thing of it; all but `fewer` and `fewest` about at its image-updates. They are compared on
training images that are held out, under e2d's labels; the comparison goes to
benchmarks/results/cifar10-variants-ipcN.json. A run that was stopped continues. Further options go to `retort compare`.
"""

from dataclasses import replace

from benchmarks.calls import compared, keep, parser
from dd_tasks.guides import Guides
from dd_tasks.initialise import Collage, Representatives
from dd_tasks.presets import retort
from dd_tasks.recipe import Ballot, Recipe
from dd_tasks.schedule import Adam, Phase, RandomCrops, Revisit, Schedule
from dd_tasks.terms import CrossEntropy, SmoothedStatistics
from dd_tasks.voters import Everyone, RoundRobin


def of_300(*, side: int) -> Recipe:
    """Fewer candidates for the k-means."""
    return replace(retort(side=side), initialiser=Representatives())


def of_4000(*, side: int) -> Recipe:
    """Nearly all of CIFAR-10's images as candidates."""
    return replace(retort(side=side), initialiser=Representatives(candidates=4000))


def easiest(*, side: int) -> Recipe:
    """From the images that the whole committee finds easiest."""
    return replace(retort(side=side), initialiser=Collage(candidates=1000, judges=Everyone()))


def tiles(*, side: int) -> Recipe:
    """From four representatives in an image."""
    return replace(retort(side=side), initialiser=Representatives(candidates=1000, factor=2))


def tighter(*, side: int) -> Recipe:
    """Crops of a quarter of the area and more."""
    return _seen(side, (0.25, 1.0))


def wider(*, side: int) -> Recipe:
    """Crops of seven tenths of the area and more."""
    return _seen(side, (0.7, 1.0))


def widest(*, side: int) -> Recipe:
    """Crops of nine tenths of the area and more."""
    return _seen(side, (0.9, 1.0))


def whole(*, side: int) -> Recipe:
    """No crops, flips alone."""
    return _seen(side, (1.0, 1.0))


def slower(*, side: int) -> Recipe:
    """Half the pixels' rate."""
    parent = retort(side=side)
    return replace(parent, schedule=replace(parent.schedule, optimiser=Adam(rate=0.05)))


def statistics(*, side: int) -> Recipe:
    """Ten times the weight of the layer statistics."""
    return _judged(side, Ballot(RoundRobin(), (CrossEntropy(), SmoothedStatistics(0.1))))


def together(*, side: int) -> Recipe:
    """The whole committee in every step, in a third of the steps."""
    everyone = Ballot(Everyone(), retort(side=side).ballots[0].terms)
    return replace(_judged(side, everyone), schedule=_shorter(side, 3))


def guided(*, side: int) -> Recipe:
    """Beside the committee a network of the student's kind after two epochs of training; in half of the steps."""
    guide = Ballot(Guides("convnet3_w64@epoch=2 seeds=0..2"), (CrossEntropy(),))
    return replace(_judged(side, retort(side=side).ballots[0], guide), schedule=_shorter(side, 2))


def fewer(*, side: int) -> Recipe:
    """Less than half of the image-updates: half of the steps, and images with no hard crop left leave the batch."""
    parent = retort(side=side)
    explore, exploit = (replace(phase, steps=phase.steps * 47 // 100) for phase in parent.schedule.phases)
    phases = explore, replace(exploit, viewer=Revisit(active=True))
    return replace(parent, schedule=replace(parent.schedule, phases=phases))


def fewest(*, side: int) -> Recipe:
    """Images leave the batch after ten easy crops in a row, and where no hard crop is left."""
    parent = retort(side=side)
    explore, exploit = parent.schedule.phases
    phases = replace(explore, viewer=RandomCrops(patience=10)), replace(exploit, viewer=Revisit(active=True))
    return replace(parent, schedule=replace(parent.schedule, phases=phases))


def _seen(side: int, scale: tuple[float, float]) -> Recipe:
    parent = retort(side=side)
    explore, exploit = parent.schedule.phases
    phases = Phase(explore.steps, RandomCrops(scale)), Phase(exploit.steps, Revisit(scale))
    return replace(parent, schedule=replace(parent.schedule, phases=phases))


def _judged(side: int, *ballots: Ballot) -> Recipe:
    return replace(retort(side=side), ballots=ballots)


def _shorter(side: int, times: int) -> Schedule:
    """Retort's schedule in so many times fewer steps."""
    full = retort(side=side).schedule
    return replace(full, phases=tuple(replace(phase, steps=phase.steps // times) for phase in full.phases))


VARIANTS = (
    of_300, of_4000, easiest, tiles, tighter, wider, widest, whole, slower, statistics, together,
    guided, fewer, fewest,
)  # fmt: skip


def main() -> None:
    options = parser(__doc__, "runs/cifar10/variants")
    options.add_argument("--variants", nargs="+", default=[variant.__name__ for variant in VARIANTS])
    options.add_argument("--name", help="of the result; default: cifar10-variants-ipcN")
    arguments, further = options.parse_known_args()
    presets = ["e2d", "retort", *(f"benchmarks.variants:{name}" for name in arguments.variants)]
    found = compared(presets, arguments, further, held_out=True)
    keep(arguments.name or f"cifar10-variants-ipc{arguments.ipc}", found)


if __name__ == "__main__":
    main()
