"""What a run will write before it runs: the bytes of its store and of its artifact.

N distilled images of K classes at S x S pixels; V labelled views of these; T steps.
"""

from collections.abc import Iterator
from itertools import chain
from typing import Literal

from dd_tasks.anatomy import anatomy
from dd_tasks.committee import ObserverRecipe
from dd_tasks.compact import COARSEST, FEWEST, FINEST
from dd_tasks.feeds import MEMORY_BYTES
from dd_tasks.job import Job, grouped
from dd_tasks.plan import LOGIT_BYTES, compact_label_bytes, exact_label_bytes, labelled_views
from dd_tasks.recipe import voters_in
from schemas.plan import Bytes

PNG_SHARE, REAL_SHARE, PNG_BYTES = 0.91, 0.7, 50  # of an optimised, of a real image's pixel values; of the file itself
VIEW_FIELDS = 86  # bytes of a view in the store but its logits
IMAGE_ROW, TABLE_BYTES = 50, 5000  # of a row of the table images but its PNG file and soft label; of the file itself
PAGE_BYTES = 75_000  # of report, card, manifest and Croissant but the pictures
CANDIDATE = 16  # bytes of a candidate but its file
KEY_BYTES = 32  # of a decoded image's key and label
JPEG_SHARE = 0.2  # of a JPEG file of an image's pixel values
SHOWN, ENLARGED = (4, 10), 1.25  # images a class and classes in the preview; its bytes over those of their own files
FLOAT = 4
LAYER_BYTES = 400  # of the names of a layer's five tensors


def png_bytes(job: Job) -> int:
    """Of one distilled image's file."""
    share = PNG_SHARE if job.recipe.schedule.steps and job.recipe.ballots else REAL_SHARE
    return round(3 * job.data.side**2 * share) + PNG_BYTES


def label_bytes(job: Job) -> int:
    """Of the labels as they are published: exact, or compact within their budget. The finest step ends it before."""
    exact = exact_label_bytes(job.images, job.data.classes, job.recipe.labeller.epochs)
    if not job.compact:
        return exact
    top = round(FEWEST * COARSEST / FINEST)
    finest = compact_label_bytes(job.images, job.data.classes, job.recipe.labeller.epochs, top, FINEST)
    return min(job.images * (job.label_bytes or png_bytes(job)), finest)


def footprint(job: Job) -> tuple[Bytes, ...]:
    """Every line of the bytes, of the store and of the artifact."""
    store = chain(_networks(job), _decoded(job), _drawn(job), _canvases(job), _labels(job))
    places: tuple[tuple[Literal["store", "artifact"], Lines], ...] = (("store", store), ("artifact", _artifact(job)))
    return tuple(
        Bytes(where=where, kind=kind, bytes=count, formula=grouped(text))
        for where, lines in places
        for kind, count, text in lines
    )


Lines = Iterator[tuple[str, int, str]]  # kind, bytes, formula


def _networks(job: Job) -> Lines:
    """Weights of the observers, and what their layers see of every class."""
    side, k = job.data.side, job.data.classes
    parts = [anatomy(member.architecture, side, k) for member in job.observers]
    kept = [_checkpoints(member) if isinstance(member, ObserverRecipe) else 1 for member in job.observers]
    weights = sum(times * part.weight_bytes for times, part in zip(kept, parts, strict=True))
    yield "observer", weights, f"weights of {sum(kept)} networks"
    counts = {"statistics": ("channels", "layers")}
    if job.recipe.needs_patches:
        counts["patches"] = ("patches", "convolutions")
    for kind, names in counts.items():
        values, layers = (sum(getattr(part, name) for part in parts) for name in names)
        formula = f"2 * {values} {names[0]} * (1 + {k} classes) * {FLOAT} + {layers} {names[1]} * {LAYER_BYTES} bytes"
        yield kind, 2 * values * (1 + k) * FLOAT + layers * LAYER_BYTES, formula


def _checkpoints(member: ObserverRecipe) -> int:
    """Of how many epochs weights are kept; the last ones once."""
    every = member.keep_every
    return len({*range(every, member.epochs + 1, every), member.epochs}) if every else 1


def _decoded(job: Job) -> Lines:
    """Real images as `dd_tasks.pixels` keeps them, in a store on the machine's own disk."""
    values = 3 * job.data.side**2
    images = sum(count for count in (job.data.images, job.data.test) if count * values <= MEMORY_BYTES)
    if images:
        yield "pixels", images * (values + KEY_BYTES), f"{images} images * (3 * {job.data.side}^2 + {KEY_BYTES}) bytes"


def _drawn(job: Job) -> Lines:
    """Real images, still encoded, to choose among, for random rows, and beside views."""
    begin, k = job.recipe.initialiser, job.data.classes
    beside = [ballot.voters for ballot in job.recipe.ballots if ballot.voters.needs_real]
    each = job.per_class(begin.demand(job.ipc), begin.least(job.ipc)) + job.seeds * job.ipc
    each += max((job.per_class(voters.demand(1), 1) for voters in beside), default=0)  # type: ignore[attr-defined]
    image = job.data.image_bytes + CANDIDATE
    yield "candidates", round(each * k * image), f"{each} images * {k} classes * {image:.0f} bytes"


def _trials(job: Job) -> int:
    """Canvases that are made to measure priors."""
    return len(job.observers) if any(voters.needs_priors for voters in voters_in(job.recipe)) else 0


def _canvases(job: Job) -> Lines:
    n, values, made = job.images, 3 * job.data.side**2, 1 + _trials(job)
    images = (made + job.seeds) * n  # the gathered canvas is what the panels left
    if job.bytes_row:
        images += round(job.seeds * _published(job) / (JPEG_SHARE * values))
    yield "canvas", images * (values + 8), f"{images} images * (3 * {job.data.side}^2 + 8) bytes"
    gaze, curves = n * job.data.side**2, 2 * job.panels * job.recipe.schedule.steps
    panels = made * (n * (values + 8) + (gaze + curves) * FLOAT)
    formula = f"{made} * ({n} images * (7 * {job.data.side}^2 + 8) + {job.panels} panels' curves) bytes"
    yield "panel", panels, formula


def _labels(job: Job) -> Lines:
    k, n = job.data.classes, job.images
    epochs = sum(ours.epochs + job.seeds * theirs.epochs for ours, theirs in job.labellers)
    epochs += _trials(job) * job.recipe.labeller.epochs
    views = epochs * n * (LOGIT_BYTES * k + VIEW_FIELDS)
    yield "views", views, f"{epochs} epochs * {n} images * ({LOGIT_BYTES} * {k} classes + {VIEW_FIELDS}) bytes"
    if job.compact:
        sets, one = 1 + job.seeds, label_bytes(job)
        yield "labels", sets * (one + n * k * FLOAT), f"{sets} * ({one} + {n} images * {k} classes * {FLOAT}) bytes"


def _published(job: Job) -> int:
    """Bytes of labels and images, to be spent on JPEG files."""
    return label_bytes(job) + job.images * (job.data.classes * FLOAT + png_bytes(job))


def _artifact(job: Job) -> Lines:
    n, k, image = job.images, job.data.classes, png_bytes(job)
    row = image + k * FLOAT + IMAGE_ROW
    yield "images", n * row + TABLE_BYTES, f"{n} images * ({image} + {k} classes * {FLOAT} + {IMAGE_ROW}) bytes"
    how = "at most as many as the images" if job.compact else "one float16 a class and view, crops and mix boxes"
    yield "soft_labels", label_bytes(job), f"{labelled_views(job)} views of {k} classes, {how}"
    shown = 2 * min(job.ipc, SHOWN[0]) * min(k, SHOWN[1]) * image * ENLARGED
    story = n * 5 * job.data.side**2 + 2 * job.panels * job.recipe.schedule.steps * FLOAT
    pages = round(shown * (1 + 4 / 3)) + PAGE_BYTES
    yield "assets", story + pages, f"curves, images before: {story}; pictures, report, card: {pages} bytes"
