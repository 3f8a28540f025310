"""`retort plan`: a specification and the extent of its data -> what the run will do, take and cost."""

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dd_tasks import shards, whole
from dd_tasks.bill import bill
from dd_tasks.calibrate import Bench, Trial, measured
from dd_tasks.card import size
from dd_tasks.errors import InputError
from dd_tasks.extents import known
from dd_tasks.job import Job
from dd_tasks.memory import resident
from dd_tasks.networks import builder
from dd_tasks.shards import Quarantine
from flows.assemble import Run, resolve
from flows.settings import Settings
from flows.workspace import device_of, machine
from schemas.calibration import Calibration, Rate
from schemas.index import ShardIndex
from schemas.plan import Bytes, Extent, Plan, Totals, Work
from schemas.spec import RunSpec

log = logging.getLogger(__name__)


def job_of(run: Run, data: Extent) -> Job:
    """A resolved run as the plain values that are counted."""
    spec = run.spec
    rows = tuple((run.row("", student, seen)[0], student) for student, seen in run.rows)
    return Job(
        recipe=run.recipe, observers=run.observers, rows=rows, full=tuple(run.full_students),
        labellers=tuple(run.labellers.values()), data=data, ipc=spec.ipc, seeds=spec.seeds, panel=spec.panel,
        held_out=spec.held_out, compact=run.compact, label_bytes=spec.label_bytes_per_image, bytes_row=spec.bytes_row,
    )  # fmt: skip


TAR_BYTES = 1792  # of a sample in a shard but its image: two headers, its class, and half a block to fill up


def extent_of(index: ShardIndex, side: int | None, test: ShardIndex | None = None) -> Extent:
    """How large the data of these shards is. InputError where the images differ in size and no side is given."""
    if side is None:
        if index.height is None or index.width is None:
            raise InputError("the images differ in size: say which side to plan for with --side")
        side = min(index.height, index.width)
    if side < (least := 8):
        raise InputError(f"the images are {index.width} x {index.height}: a run takes {least} pixels a side or more")
    return Extent(
        name="shards", classes=len(index.classes), images=index.samples, side=side,
        image_bytes=max(1.0, sum(shard.bytes for shard in index.shards) / index.samples - TAR_BYTES),
        fewest=max(1, min(index.samples_per_class)), test=test.samples if test else 0, source="index.json",
    )  # fmt: skip


def indexed_extent(spec: RunSpec) -> Extent | None:
    """Of the shards of a specification, where an index.json lists just these; none of them is read."""
    found = []
    for patterns in filter(None, (spec.shards, spec.test)):
        by_name = shards.distinct(shards.expand(patterns))
        index = shards.read_index(by_name.values())
        if index is None or {shard.name for shard in index.shards} != by_name.keys():
            return None
        found.append(index)
    return extent_of(found[0], spec.side, *found[1:])


def measured_extent(spec: RunSpec) -> Extent:
    """Of the shards of a specification: from their index.json, else by reading them."""
    source = shards.open_source(spec.shards, quarantine=Quarantine(spec.tolerate))
    names = source.index.classes
    test = shards.open_source(spec.test, classes=names, quarantine=Quarantine()) if spec.test else None
    return extent_of(source.index, spec.side, test.index if test else None)


def extent(spec: RunSpec, dataset: str | None, classes: int | None, images: int | None) -> Extent:
    """Of a dataset by name, one of so many classes and images, or the shards of the specification.

    InputError for a name that is not known, and where classes, images or side are missing.
    """
    if dataset is not None:
        found = known(dataset)
        return found if spec.side is None else found.model_copy(update={"side": spec.side})
    if classes is None and images is None:
        return measured_extent(spec)
    if classes is None or images is None or spec.side is None:
        raise InputError("a dataset that is not at hand is planned by --classes, --images and --side together")
    if images < classes:
        raise InputError(f"--images {images} are fewer than --classes {classes}")
    image_bytes = 0.75 * 3 * spec.side**2  # as PNG files of photographs have
    each = images // classes
    return Extent(
        name="planned", classes=classes, images=images, side=spec.side, image_bytes=image_bytes, fewest=each,
        source="as given; images spread evenly",
    )  # fmt: skip


def read_calibration(path: Path) -> Calibration:
    """InputError where the file is missing or is none."""
    try:
        return Calibration.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"calibration {path}: {error.strerror} (`retort calibrate` writes one)") from None
    except (ValidationError, UnicodeDecodeError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": "no text"}
        place = ".".join(map(str, first["loc"]))
        raise InputError(f"calibration {path}: {place} {first['msg']}".replace("  ", " ")) from None


def planned(
    spec: RunSpec, data: Extent, calibration: Calibration | None = None, *, workers: int = 1, price: float | None = None
) -> Plan:
    """The plan of a run on such data.

    InputError for names and overrides that mean nothing, and for more images per class than there are.
    """
    if spec.ipc > data.fewest:
        raise InputError(f"ipc {spec.ipc} is above the {data.fewest} images of the smallest class of {data.name}")
    job = job_of(resolve(spec, data.side, data.classes), data)
    return bill(job, spec.preset, calibration, workers=workers, price=price)


def counts(found: Plan) -> dict[str, int | str]:
    """Of the whole run, as a dry run prints them."""
    totals = found.totals
    return {
        "image-updates": updates_of(totals),
        "training images": totals.training_images,
        "labelled views": totals.labelled_views,
        "students": totals.students,
        "bytes of the store": size(totals.store_bytes),
        "bytes of the artifact": size(totals.upload_bytes),
    }


def show(found: Plan) -> None:
    """The plan as tables, with the formula of every number."""
    shown = Console(width=None if sys.stdout.isatty() else 160)
    data = found.data
    where = f", {found.workers} workers" if found.workers > 1 else ""
    title = (
        f"{found.preset}, {found.ipc} per class of {data.name}: {data.images:,} images of {data.classes:,} classes at "
    )
    shown.print(_work_table(found, f"{title}{data.side} px{where}"))
    shown.print(_bytes_table(found.bytes))
    for line in total_lines(found):
        shown.print(line, highlight=False, soft_wrap=True)


def _work_table(found: Plan, title: str) -> Table:
    table = Table(title=title)
    for column in ("stage", "what", "amount", "formula", "seconds"):
        table.add_column(column, justify="right" if column in ("amount", "seconds") else "left", overflow="fold")
    for line in found.work:
        amount = f"{'at most ' if line.at_most else ''}{line.amount:,} {line.unit}"
        table.add_row(line.stage, Text(line.what), amount, Text(line.formula), seconds_of(line))
    return table


def seconds_of(line: Work) -> str:
    """Of a line; with ~ where its rate was not measured at just this size."""
    return "" if line.seconds is None else f"{'~' if line.estimate else ''}{line.seconds:,.1f}"


def _bytes_table(sizes: Sequence[Bytes]) -> Table:
    table = Table(title="what it writes")
    for column in ("where", "kind", "bytes", "formula"):
        table.add_column(column, justify="right" if column == "bytes" else "left", overflow="fold")
    for line in sizes:
        table.add_row(line.where, line.kind, size(line.bytes), Text(line.formula))
    return table


def total_lines(found: Plan) -> Iterator[str]:
    """Totals in words, and where no device was measured how to get the rest."""
    totals = found.totals
    yield f"image-updates, priors' among them: {updates_of(totals)}"
    yield f"training images of observers, guides and students on all data: {totals.training_images:,}"
    yield f"labelled views: {totals.labelled_views:,}; students: {totals.students:,}"
    yield f"labels: exact {size(totals.exact_label_bytes)}, compact at the coarsest {size(totals.compact_label_bytes)}"
    yield f"store: {size(totals.store_bytes)}; upload: {size(totals.upload_bytes)}"
    yield f"memory of real images and labelled views: {size(totals.data_memory_bytes)}"
    if totals.seconds is None or totals.peak_memory_bytes is None:
        yield "seconds, peak memory and cost: `retort calibrate --out FILE`, then `--calibration FILE`"
        return
    stages = ", ".join(f"{stage} {seconds:,.0f}" for stage, seconds in found.stage_seconds.items())
    yield f"seconds by stage, compiling among them: {stages}"
    yield f"in all: {duration(totals.seconds)} on {found.machine}; peak memory: {size(totals.peak_memory_bytes)}"
    yield "not among these: the start of Prefect's server, and the writing and checking of the artifact"
    if totals.cost is not None:
        hours = f"{totals.seconds / 3600:,.2f} hours"
        yield f"cost: {totals.cost:,.2f} = {hours} * {found.workers} workers * {found.price_per_hour:g} an hour"


def updates_of(totals: Totals) -> str:
    """How many, or how few and how many where a run may stop early."""
    least, most = totals.least_image_updates, totals.image_updates
    return f"{most:,}" if least == most else f"{least:,} to {most:,}"


def duration(seconds: float) -> str:
    """In the largest unit of which there is one."""
    for unit, step in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= step:
            return f"{seconds / step:,.1f} {unit}"
    return f"{seconds:.0f} seconds"


def calibrate(trial: Trial, device: str, out: Path) -> Calibration:
    """Measure every rate of a trial and write them. A folder of its own keeps what torch.compile makes, so that its
    seconds are those of a new machine."""
    import flows.distill  # noqa: F401  # held by the process of every run

    found = device_of(Settings(device=device))
    for name in trial.students:
        builder(name)
    base, _ = resident()
    with TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        rates = [_told(rate) for rate in measured(Bench(trial, found))]
    made = Calibration(
        machine=machine(), device=str(found), torch=torch.__version__, threads=torch.get_num_threads(),
        base_memory_bytes=base, rates=rates,
    )  # fmt: skip
    whole.write(out, (made.model_dump_json(indent=1) + "\n").encode())
    print(f"{out}: {len(rates)} rates of {made.machine}")
    return made


def _told(rate: Rate) -> Rate:
    about = [rate.architecture, rate.terms, f"{rate.batch} at once" if rate.batch > 1 else None]
    log.info(
        "%s %s: %.4g/s, spread %.0f%%%s", rate.operation, ", ".join(filter(None, about)), rate.per_second,
        100 * rate.spread, f", begun in {rate.start_seconds:.0f} s" if rate.compiled else "",
    )  # fmt: skip
    return rate
