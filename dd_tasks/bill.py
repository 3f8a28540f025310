"""A run's plan: its work and bytes, and on a device that was measured its seconds, memory and cost."""

from collections.abc import Iterable, Mapping

from dd_tasks import plan
from dd_tasks.feeds import MEMORY_BYTES
from dd_tasks.footprint import footprint
from dd_tasks.job import Job
from dd_tasks.rates import start_seconds, timed
from schemas.calibration import Calibration
from schemas.plan import Bytes, Plan, Totals, Work


def bill(
    job: Job, preset: str, calibration: Calibration | None = None, *, workers: int = 1, price: float | None = None
) -> Plan:
    """The plan of a run. Without a calibration it tells neither seconds nor peak memory nor cost."""
    work, sizes, stages = plan.work(job), footprint(job), dict[str, float]()
    if calibration is not None:
        work = tuple(timed(line, calibration, job.data.classes) for line in work)
        stages = stage_seconds(work, start_seconds(work, calibration), workers)
    seconds = sum(stages.values()) if calibration else None
    cost = seconds * workers * price / 3600 if seconds is not None and price is not None else None
    epochs, k = job.recipe.labeller.epochs, job.data.classes
    totals = Totals(
        image_updates=plan.image_updates(job),
        least_image_updates=plan.least_image_updates(job),
        training_images=sum(line.amount for line in work if line.unit == "training images"),
        labelled_views=plan.labelled_views(job),
        students=plan.student_count(job),
        exact_label_bytes=plan.exact_label_bytes(job.images, k, epochs),
        compact_label_bytes=plan.compact_label_bytes(job.images, k, epochs),
        store_bytes=_sum(sizes, "store"),
        upload_bytes=_sum(sizes, "artifact"),
        data_memory_bytes=data_memory(job),
        peak_memory_bytes=peak_memory(job, work, calibration) if calibration else None,
        seconds=seconds,
        cost=cost,
    )
    return Plan(
        preset=preset, ipc=job.ipc, data=job.data, workers=workers, price_per_hour=price,
        machine=calibration and calibration.machine, work=list(work), bytes=list(sizes), stage_seconds=stages,
        totals=totals,
    )  # fmt: skip


def _sum(sizes: Iterable[Bytes], where: str) -> int:
    return sum(line.bytes for line in sizes if line.where == where)


def stage_seconds(work: Iterable[Work], starts: Mapping[str, float], workers: int) -> dict[str, float]:
    """By stage, one after another: what is to do shared by the workers, but never less than its longest part; and
    compiling, which every worker does for itself."""
    stages: dict[str, list[Work]] = {}
    for line in work:
        stages.setdefault(line.stage, []).append(line)
    found = {}
    for stage, lines in stages.items():
        whole = sum(line.seconds or 0.0 for line in lines)
        longest = max((line.seconds or 0.0) / line.parts for line in lines)
        found[stage] = max(whole / workers, longest) + starts.get(stage, 0.0)
    return found


def data_memory(job: Job) -> int:
    """Bytes of real images at hand, and of one set of labelled views, which are there twice while they are joined."""
    each = 3 * job.data.side**2
    images = min((job.data.images + job.data.test) * each, MEMORY_BYTES)
    return images + 2 * plan.labelled_views(job) * plan.LOGIT_BYTES * job.data.classes


def peak_memory(job: Job, work: Iterable[Work], calibration: Calibration) -> int:
    """At most, on the device: on a CPU with the process itself and its data."""
    most = max(line.memory_bytes or 0 for line in work)
    return most if calibration.device != "cpu" else calibration.base_memory_bytes + data_memory(job) + most
