"""Several methods side by side: from their manifests to one table and one page."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from dd_tasks.axes import Axis, Mark
from dd_tasks.card import escape
from dd_tasks.claims import LIMITS, Pairing, accuracy, pairings, percent
from dd_tasks.redaction import redacted
from dd_tasks.report import duration, template
from dd_tasks.scores import augmentation_robust_score, label_robust_score
from schemas import comparison as schema
from schemas.manifest import Claim, Manifest

COLUMNS = (
    "factor", "IPC", "method", "student", "image-updates", "seconds", "distilled", "random", "lead", "all real",
    "class labels: distilled", "class labels: random", "LRS", "ARS",
)  # fmt: skip
OWN_STAGES = "priors", "choose", "recover"  # a method's seconds; all share observers, labels and students
LEFT_COLUMNS = 4  # the rest are numbers
NAME_WIDTH = 30  # characters of a method in a plot; a longer name is shown as its number in the table
TITLE_WIDTH = 90  # characters of all methods in the headline; more are counted
LETTER_WIDTH, LABEL_HEIGHT = 7, 11
WIDTH, HEIGHT = 500, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 410, 20, 250


def compared(
    manifests: Sequence[Manifest],
    folders: Sequence[str],
    labels: str | None,
    command: str,
    factors: Sequence[str] = (),
) -> schema.Comparison:
    """The methods of some finished artifacts; in a study, with the factor that each varies. ValueError where they are
    not of the same data and committee."""
    first = manifests[0]
    for manifest in manifests:
        if (manifest.source, manifest.test, manifest.observers) != (first.source, first.test, first.observers):
            raise ValueError(f"{manifest.name} and {first.name} differ in their data or their committee")
    none: Sequence[str | None] = [None] * len(folders)
    rows = [
        schema.ComparisonRow(
            factor=factor,
            preset=manifest.preset,
            ipc=manifest.ipc,
            folder=folder,
            identity=manifest.identity,
            image_updates=manifest.cost.image_updates,
            seconds=round(sum(manifest.cost.seconds.get(stage, 0) for stage in OWN_STAGES), 1),
            claims=manifest.claims,
        )
        for manifest, folder, factor in zip(manifests, folders, factors or none, strict=True)
    ]
    return schema.Comparison(
        labels=labels,
        rows=rows,
        observers=first.observers,
        source=first.source.digest,
        test=first.test.digest if first.test else None,
        seed=first.seed,
        command=redacted(command),
        machine=first.cost.machine,
        versions=first.versions,
    )


@dataclass(frozen=True)
class Line:
    """One method, one student: what the table says of it. `soft` and `hard` are by the labels students were given; a
    method has one of them at least. `plain` is without augmentation."""

    row: schema.ComparisonRow
    soft: Pairing | None
    hard: Pairing | None
    plain: Pairing | None
    full: Claim | None

    @property
    def main(self) -> Pairing:
        """With the labels the method is meant for."""
        found = self.soft or self.hard
        assert found is not None
        return found

    @property
    def lrs(self) -> float | None:
        if self.full is None or self.hard is None:
            return None
        return label_robust_score(
            full_hard=self.full.mean,
            distilled_hard=self.hard.distilled.mean,
            distilled=self.main.distilled.mean,
            random=self.main.random.mean,
        )

    @property
    def ars(self) -> float | None:
        if self.plain is None:
            return None
        return augmentation_robust_score(gain=self.main.lead, gain_without=self.plain.lead)

    @property
    def cells(self) -> tuple[str, ...]:
        def pair(found: Pairing | None) -> tuple[str, str]:
            return (accuracy(found.distilled), accuracy(found.random)) if found else ("", "")

        lead = f"{100 * self.main.lead:+.2f} {self.main.verdict}"
        return (
            self.row.factor or "", f"{self.row.ipc:,}", self.row.preset, self.main.distilled.student,
            f"{self.row.image_updates:,}", f"{self.row.seconds:,.0f}", *pair(self.soft), lead,
            accuracy(self.full) if self.full else "", *pair(self.hard),
            *("" if score is None else percent(score) for score in (self.lrs, self.ars)),
        )  # fmt: skip


def lines(comparison: schema.Comparison) -> Iterator[Line]:
    """Every method and student, in the order of the rows."""
    for row in comparison.rows:
        found = {(pair.distilled.student, str(pair.distilled.row)): pair for pair in pairings(row.claims)}
        full = {claim.student: claim for claim in row.claims if claim.row == "full"}
        for student in dict.fromkeys(student for student, _ in found):
            soft, hard, plain = (found.get((student, kind)) for kind in LIMITS)
            yield Line(row, soft, hard, plain, full.get(student))


def shown_columns(found: Sequence[Line]) -> list[int]:
    """The columns that some line fills."""
    return [i for i in range(len(COLUMNS)) if any(line.cells[i] for line in found)]


def markdown(comparison: schema.Comparison) -> str:
    """The table; accuracies in %, mean ± sample standard deviation over seeds, last epoch."""
    found = list(lines(comparison))
    columns = shown_columns(found)
    rule = ["---" if i < LEFT_COLUMNS else "---:" for i in columns]
    rows = [[COLUMNS[i] for i in columns], rule, *([escape(line.cells[i]) for i in columns] for line in found)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


@dataclass(frozen=True)
class Spot:
    """A method in a plot, in the drawing's units: its mean, one std to both sides, and how high its label stands."""

    name: str
    x: float
    y: float
    error: tuple[float, float] | None
    label_y: float


@dataclass(frozen=True)
class Plot:
    """Accuracy in % over a cost; `random` is the mean of random images, where all methods share it."""

    title: str
    cost: str
    across: list[Mark]
    up: list[Mark]
    spots: list[Spot]
    random: float | None
    note: str


def plot(title: str, cost: str, names: Sequence[str], found: Sequence[Line], costs: Sequence[float]) -> Plot:
    """The lines of one IPC and student. A cost of zero stands at the left edge of the logarithmic axis."""
    positive = [cost for cost in costs if cost > 0] or [1.0]
    edge = min(positive) / 3
    claims = [line.main.distilled for line in found]
    randoms = {line.main.random.mean for line in found}
    values = [100 * v for c in claims for v in (c.mean - c.std, c.mean + c.std)] + [100 * mean for mean in randoms]
    pad = max(0.05 * (max(values) - min(values)), 0.5)
    x = Axis(edge, 1.5 * max(positive), LEFT, RIGHT, log=True)
    y = Axis(max(min(values) - pad, 0), max(values) + pad, BOTTOM, TOP)
    centres = [(x(max(spent, edge)), y(100 * claim.mean)) for claim, spent in zip(claims, costs, strict=True)]
    spots = [
        Spot(
            name, *centre,
            (y(100 * (claim.mean - claim.std)), y(100 * (claim.mean + claim.std))) if len(claim.seeds) > 1 else None,
            label_y,
        )
        for name, centre, claim, label_y in zip(
            names, centres, claims, apart(names, centres), strict=True
        )
    ]  # fmt: skip
    note = f"At the left edge: no {cost} at all." if min(costs) <= 0 else ""
    return Plot(title, cost, x.marks, y.marks, spots, y(100 * randoms.pop()) if len(randoms) == 1 else None, note)


def apart(names: Sequence[str], centres: Sequence[tuple[float, float]]) -> list[float]:
    """How high each label stands, so that none covers another: at its spot, or below a label that is in the way."""
    placed: dict[int, tuple[float, float, float]] = {}  # left, right, height
    for i in sorted(range(len(centres)), key=lambda i: centres[i][1]):
        left, height = centres[i]
        right = left + LETTER_WIDTH * (len(names[i]) + 1)
        for other_left, other_right, other in sorted(placed.values(), key=lambda at: at[2]):
            if left < other_right and other_left < right and abs(height - other) < LABEL_HEIGHT:
                height = other + LABEL_HEIGHT
        placed[i] = left, right, height
    return [placed[i][2] for i in range(len(centres))]


def plots(comparison: schema.Comparison) -> list[Plot]:
    """Accuracy over image-updates and over seconds, for each IPC and student."""

    def of(numbered: tuple[int, Line]) -> tuple[int, str]:
        return numbered[1].row.ipc, numbered[1].main.distilled.student

    drawn = []
    for (ipc, student), group in groupby(sorted(enumerate(lines(comparison), 1), key=of), key=of):
        once: dict[str, tuple[str, Line]] = {}  # in a study a method stands beside several others
        for number, line in group:
            preset = line.row.preset
            once.setdefault(preset, (preset if len(preset) <= NAME_WIDTH else f"#{number}", line))
        names, found = zip(*once.values(), strict=True)
        title = f"{ipc:,} per class, {student}"
        drawn.append(plot(title, "image-updates", names, found, [f.row.image_updates for f in found]))
        drawn.append(plot(title, "seconds", names, found, [f.row.seconds for f in found]))
    return drawn


def render(comparison: schema.Comparison) -> str:
    """The page, self-contained but for links to the reports of the artifacts beside it."""
    found = list(lines(comparison))
    columns = shown_columns(found)
    presets = list(dict.fromkeys(row.preset for row in comparison.rows))
    title = ", ".join(presets)
    values = {
        "comparison": comparison,
        "title": title if len(title) <= TITLE_WIDTH else f"{len(presets)} methods",
        "columns": [(COLUMNS[i], i >= LEFT_COLUMNS) for i in columns],
        "table": [(line, [(line.cells[i], i >= LEFT_COLUMNS) for i in columns]) for line in found],
        "plots": plots(comparison),
        "box": (WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM),
        "seconds": duration(sum(row.seconds for row in comparison.rows)),
    }
    return template("comparison.html.j2").render(values) + "\n"
