"""DREAM+ over its iterations on CIFAR-10, class labels, against matching of random samples:
`python -m benchmarks.matching --data DIR [--iterations 0,10,50] [--guided POOL]`.

Runs `retort compare` once for every number of iterations and keeps all rows as benchmarks/results/
cifar10-matching-ipcN.json. Further options go to `retort compare`: on two cores a smaller network in training, say
`--set ballots.0.voters.architecture=convnet3_w32`. A run that was stopped continues.
"""

from dataclasses import replace
from typing import Any

from benchmarks.calls import compared, keep, parser
from dd_tasks.initialise import Representatives
from dd_tasks.learners import Learners
from dd_tasks.presets import dream_plus
from dd_tasks.recipe import Ballot, Recipe
from dd_tasks.terms import GradientMatching

RANDOM, OURS = "benchmarks.matching:random_sampling", "dream_plus"


def random_sampling(*, side: int) -> Recipe:
    """What DREAM+ improves on (IDC): random tiles to begin from, random real batches, gradients alone."""
    return replace(
        dream_plus(side=side),
        initialiser=Representatives(factor=2, candidates=1),  # no more candidates than tiles: all are taken
        ballots=(Ballot(Learners(choose="random"), (GradientMatching(),)),),
    )


def main() -> None:
    options = parser(__doc__, "runs/cifar10/matching")
    options.add_argument("--iterations", default="0,5,10,20,50")
    options.add_argument("--guided", help="pool of guides: adds clom(dream_plus) with it")
    arguments, further = options.parse_known_args()
    presets = [OURS, RANDOM] + ([f"clom({OURS}, {arguments.guided})"] if arguments.guided else [])
    made, rows = [], []
    for iterations in map(int, arguments.iterations.split(",")):
        steps = ["--set", f"schedule.phases.0.steps={iterations}", "--labels", "own", "--full-epochs", "0"]
        made.append(found := compared(presets, arguments, [*steps, *further]))
        rows += [{"iterations": iterations, **row} for row in found["rows"]]
    result = {"machine": found["machine"], "observers": found["observers"], "rows": rows, "reached": reached(rows)}
    result |= {"commands": [m["command"] for m in made], "wall_seconds": sum(m["wall_seconds"] for m in made)}
    keep(f"cifar10-matching-ipc{arguments.ipc}", result)


def top1(row: dict[str, Any], of: str = "distilled_hard") -> float:
    """Mean over seeds, a fraction."""
    return next(claim["mean"] for claim in row["claims"] if claim["row"] == of)


def reached(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The level of random sampling at its last iteration, and the first iteration at which DREAM+ has it (None: never
    here)."""
    level = top1(max((row for row in rows if row["preset"] == RANDOM), key=lambda row: row["iterations"]))
    there = [row["iterations"] for row in rows if row["preset"] == OURS and top1(row) >= level]
    return {"level": level, "iterations": min(there, default=None)}


if __name__ == "__main__":
    main()
