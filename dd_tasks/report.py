"""The HTML report of an artifact: what came in, what became of it, and what that is worth. One page, no requests.

This file computes what the page shows, as plain values; the template alone knows HTML, and escapes all of them.

Shape letters: N images, P panels, T steps, C channels (3), H x W pixels, S the side of a square image.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from math import ceil
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from torch import Tensor

from dd_tasks import pictures
from dd_tasks.axes import Axis, Mark, upper
from dd_tasks.card import size
from dd_tasks.claims import ROWS, accuracy, pairings, percent
from dd_tasks.errors import InputError
from dd_tasks.seconds import spent
from dd_tasks.types import Canvas
from dd_tasks.visible import visible
from schemas.manifest import Claim, Manifest

PER_CLASS, CLASSES_SHOWN, PAIRS_SHOWN = 10, 100, 500
GAZED_SHOWN = 12
SHARDS_SHOWN, QUARANTINED_SHOWN = 50, 20
POINTS = 300  # a curve has at most as many; longer ones are averaged
LOG_RATIO = 50  # a loss that falls by more than this factor is drawn on a logarithmic axis


@dataclass(frozen=True)
class Story:
    """What the run saw on its way. `before_NCHW`: the real images it began with, uint8, in the canvas's order.
    One `loss_T` and one `remembered_T` (hard crops in memory) a panel. `gaze_NSS`: how often exploitation looked at a
    pixel, of any numeric type; empty or zero without exploitation. `explored`: steps of the exploration phase."""

    before_NCHW: Tensor
    loss: tuple[Tensor, ...]
    remembered: tuple[Tensor, ...]
    gaze_NSS: Tensor
    explored: int

    def to_bytes(self) -> bytes:
        """Safetensors without metadata; equal stories give equal bytes. Gaze is kept as uint16, counts above it as its
        largest value."""
        gaze_NSS = torch.from_numpy(self.gaze_NSS.cpu().numpy().round().clip(0, 65535).astype(np.uint16))
        tensors = {"before": self.before_NCHW, "gaze": gaze_NSS, "explored": torch.tensor(self.explored)}
        for name, panels in (("loss", self.loss), ("remembered", self.remembered)):
            tensors |= {f"{name}.{i}": panel_T.float() for i, panel_T in enumerate(panels)}
        return safetensors.torch.save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})

    @classmethod
    def from_bytes(cls, data: bytes) -> "Story":
        """Reads what `to_bytes` wrote; gaze comes back as uint16. InputError for anything else."""
        try:
            tensors = safetensors.torch.load(data)
            before_NCHW, gaze_NSS, explored = (tensors.pop(name) for name in ("before", "gaze", "explored"))
            panels = len(tensors) // 2
            loss, remembered = (tuple(tensors[f"{name}.{i}"] for i in range(panels)) for name in ("loss", "remembered"))
            story = cls(before_NCHW, loss, remembered, gaze_NSS, int(explored))
        except Exception as error:  # whatever a broken file makes its reader raise
            raise InputError(f"these {len(data)} bytes are no story of a run: {error}") from error
        if odd := [panel for panel in (*loss, *remembered) if panel.ndim != 1 or panel.dtype != torch.float32]:
            raise InputError(f"these {len(data)} bytes are no story of a run: a curve is {tuple(odd[0].shape)}")
        return story


WIDTH, HEIGHT = 500, 262
LEFT, RIGHT, TOP, BOTTOM = 56, 488, 30, 216


@dataclass(frozen=True)
class Chart:
    """A curve over steps, ready to draw: `line` and `band` are SVG point lists, exploitation begins at `boundary`."""

    title: str
    across: list[Mark]
    up: list[Mark]
    line: str
    band: str
    boundary: float | None
    dot: tuple[float, float] | None
    notes: list[str]


def aligned(panels: Sequence[Tensor], *, carry: bool) -> np.ndarray:
    """Panels of different lengths as one (P, T): those that stopped early go on at their last value, or as NaN."""
    longest = max(map(len, panels))
    rows_PT = np.full((len(panels), longest), np.nan)
    for row_T, panel_T in zip(rows_PT, panels, strict=True):
        row_T[: len(panel_T)] = panel_T.float().cpu().numpy()
        if carry and len(panel_T):
            row_T[len(panel_T) :] = row_T[len(panel_T) - 1]
    return rows_PT


def summarised(rows_PT: np.ndarray) -> Iterator[tuple[float, float, float, float]]:
    """(step, mean, least, most) over the panels, over groups of steps where there are more than POINTS; without what is
    not a finite number."""
    group = ceil(rows_PT.shape[1] / POINTS)
    for start in range(0, rows_PT.shape[1], group):
        values = rows_PT[:, start : start + group]
        middle, finite = start + (values.shape[1] - 1) / 2, values[np.isfinite(values)]
        if finite.size:
            yield middle, float(finite.mean()), float(finite.min()), float(finite.max())


def chart(title: str, panels: Sequence[Tensor], explored: int, *, carry: bool = False) -> Chart | None:
    """The curve of some panels, mean with a band from least to most; None where no step has a value.

    `carry` says that a panel that stopped early goes on at its last value.
    """
    steps = max(map(len, panels), default=0)
    points = list(summarised(aligned(panels, carry=carry))) if steps else []
    if not points:
        return None
    low, high = min(point[2] for point in points), max(point[3] for point in points)
    log = low > 0 and high > LOG_RATIO * low
    x = Axis(0, max(steps - 1, 1), LEFT, RIGHT)
    y = Axis(low, high, BOTTOM, TOP, log) if log else Axis(-upper(-low) if low < 0 else 0, upper(high), BOTTOM, TOP)
    ceiling, floor_ = ([f"{x(point[0])},{y(point[i])}" for point in points] for i in (3, 2))
    return Chart(
        title=title + (", logarithmic" if log else ""),
        across=x.marks,
        up=y.marks,
        line=" ".join(f"{x(at)},{y(mean)}" for at, mean, _, _ in points),
        band=" ".join([*ceiling, *reversed(floor_)]),
        boundary=x(explored - 0.5) if 0 < explored < steps else None,
        dot=(x(points[0][0]), y(points[0][1])) if len(points) == 1 else None,
        notes=list(chart_notes(panels, steps)),
    )


def chart_notes(panels: Sequence[Tensor], steps: int) -> Iterator[str]:
    """What a reader must know of how the curve was drawn."""
    over = [plural(len(panels), "panel")] if len(panels) > 1 else []
    over += [f"groups of {ceil(steps / POINTS)} steps"] if steps > POINTS else []
    if over:
        yield f"Line: mean over {' and '.join(over)}; band: from the lowest to the highest."
    if early := sum(len(panel_T) < steps for panel_T in panels):
        yield f"{early} of {len(panels)} panels finished early."
    if broken := sum(int((~panel_T.isfinite()).sum()) for panel_T in panels):
        yield f"{broken} values are not finite and are left out."


@dataclass(frozen=True)
class Bar:
    """A claim as a bar; all numbers in the drawing's units but `value`."""

    claim: Claim
    label: str
    value: str
    top: float
    end: float
    error: tuple[float, float] | None
    seeds: list[float]


BAR_STEP, BARS_LEFT, BARS_RIGHT = 48, 8, 520


def bars_of(claims: Sequence[Claim]) -> tuple[list[Bar], list[Mark]]:
    """The claims' accuracies in %, each with one std to both sides and a dot a seed; and the axis under them."""
    highest = max((max(claim.mean + claim.std, *claim.accuracies) for claim in claims), default=0.0)
    x = Axis(0, min(upper(100 * highest), 100), BARS_LEFT, BARS_RIGHT)
    bars = []
    for i, claim in enumerate(claims):
        ends = (max(claim.mean - claim.std, 0), min(claim.mean + claim.std, 1))
        error = (x(100 * ends[0]), x(100 * ends[1])) if len(claim.seeds) > 1 else None
        label = f"{ROWS[claim.row]} · {claim.student}, {claim.epochs:,} epochs"
        seeds = [x(100 * fraction) for fraction in claim.accuracies]
        bars.append(Bar(claim, label, accuracy(claim), i * BAR_STEP, x(100 * claim.mean), error, seeds))
    return bars, x.marks


@dataclass(frozen=True)
class Pair:
    """A first image and what became of it, as data URIs, and the keys of the real images it began from."""

    real: str
    distilled: str
    sources: str


@dataclass(frozen=True)
class ClassRow:
    name: str
    pairs: list[Pair]
    left_out: int


def class_rows(classes: Sequence[str], canvas: Canvas, before_NCHW: Tensor) -> list[ClassRow]:
    """The images by class: at most CLASSES_SHOWN classes, PER_CLASS images of each and PAIRS_SHOWN in all."""
    present = sorted(set(canvas.targets_N.tolist()))[:CLASSES_SHOWN]
    limit = max(1, min(PER_CLASS, PAIRS_SHOWN // max(len(present), 1)))
    shown = []
    for target in present:
        slots = (canvas.targets_N == target).nonzero()[:, 0].tolist()
        pairs = [
            Pair(_uri(before_NCHW[i]), _uri(canvas.images_NCHW[i]), ", ".join(canvas.sources[i]) or "noise")
            for i in slots[:limit]
        ]
        shown.append(ClassRow(classes[target], pairs, len(slots) - len(pairs)))
    return shown


def _uri(image_CHW: Tensor) -> str:
    return pictures.data_uri(pictures.thumbnail(image_CHW))


@dataclass(frozen=True)
class Gazed:
    """An image that was revisited, and where; `looks` is how often its most seen pixel was looked at."""

    name: str
    image: str
    heat: str
    looks: int


def gazed(classes: Sequence[str], canvas: Canvas, gaze_NSS: Tensor) -> list[Gazed]:
    """The GAZED_SHOWN images that exploitation looked at most, by their most seen pixel, without those never seen."""
    if not gaze_NSS.numel():
        return []
    looks_N = gaze_NSS.cpu().numpy().max(axis=(1, 2)).round().astype(int)
    most = np.argsort(-looks_N, kind="stable")[:GAZED_SHOWN]
    return [
        Gazed(
            name=classes[int(canvas.targets_N[i])],
            image=_uri(canvas.images_NCHW[i]),
            heat=pictures.data_uri(pictures.heat(canvas.images_NCHW[i], gaze_NSS[i])),
            looks=int(looks_N[i]),
        )
        for i in most.tolist()
        if looks_N[i] > 0
    ]


def duration(seconds: float) -> str:
    """Seconds, readable: 4.2 s, 3 min 5 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600:,} h {whole % 3600 // 60} min"


def plural(count: int, one: str, many: str | None = None) -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


@cache
def template(name: str) -> Template:
    """A page, escaping whatever it is given, and writing out what would not be seen of it."""
    folder = FileSystemLoader(Path(__file__).parent / "templates")
    environment = Environment(loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.lstrip_blocks = True
    environment.finalize = lambda value: visible(value) if type(value) is str else value
    environment.filters.update(accuracy=accuracy, percent=percent, size=size, duration=duration, plural=plural)
    return environment.get_template(name)


def check(manifest: Manifest, canvas: Canvas, story: Story) -> None:
    """InputError where the three are not of one run."""
    if story.before_NCHW.shape != canvas.images_NCHW.shape:
        shapes = tuple(story.before_NCHW.shape), tuple(canvas.images_NCHW.shape)
        raise InputError("the story began with images of shape {}, the canvas holds {}".format(*shapes))
    if story.gaze_NSS.numel() and story.gaze_NSS.shape[0] != len(canvas):
        raise InputError(f"gaze for {story.gaze_NSS.shape[0]} images, the canvas holds {len(canvas)}")
    if (highest := max(canvas.targets_N.tolist(), default=0)) >= len(manifest.classes):
        raise InputError(f"class {highest} is on the canvas, the manifest names {len(manifest.classes)}")


@spent("report")
def render(manifest: Manifest, canvas: Canvas, story: Story) -> str:
    """The whole page, self-contained; equal arguments give equal text. InputError where they are not of one run."""
    check(manifest, canvas, story)
    rows, compared = class_rows(manifest.classes, canvas, story.before_NCHW), pairings(manifest.claims)
    bars, bar_marks = bars_of(manifest.claims)
    charts = [
        chart("loss", story.loss, story.explored),
        chart("hard crops in memory, a panel", story.remembered, story.explored, carry=True),
    ]
    values = {
        "manifest": manifest,
        "images": len(canvas),
        "began_as": canvas.began_as,
        "rows": rows,
        "shown": sum(len(row.pairs) for row in rows),
        "tile": max(1, round(pictures.TILE / manifest.side)) * manifest.side if manifest.side < 96 else 96,
        "charts": [one for one in charts if one],
        "steps": max(map(len, story.loss), default=0),
        "explored": story.explored,
        "panels": len(story.loss),
        "gazed": gazed(manifest.classes, canvas, story.gaze_NSS),
        "heat_colours": ", ".join(pictures.HEAT),
        "names": ROWS,
        "compared": compared,
        "bars": bars,
        "bar_marks": bar_marks,
        "bars_height": len(bars) * BAR_STEP,
        "seconds": sum(manifest.cost.seconds.values()),
        "shards_shown": SHARDS_SHOWN,
        "quarantined_shown": QUARANTINED_SHOWN,
        "box": (WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM),
    }
    return template("report.html.j2").render(values) + "\n"
