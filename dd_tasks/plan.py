"""What a run will cost before it runs: its work, counted from the resolved recipe, and the bytes of its soft labels.

Counts are those of the flow, stage by stage: each function here stands beside one of `flows.distill`. How long the work
takes is in `dd_tasks.rates`, what is written in `dd_tasks.footprint`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, takewhile
from math import ceil, e, log2, pi, sqrt

from dd_tasks.anatomy import anatomy
from dd_tasks.claims import ORDINARY_UPDATES
from dd_tasks.committee import Imported, Member, ObserverRecipe
from dd_tasks.compact import COARSEST, FEWEST, GROUP
from dd_tasks.compiling import WORTH_COMPILING
from dd_tasks.guides import Guides, courses
from dd_tasks.initialise import Collage, Representatives
from dd_tasks.job import Job
from dd_tasks.label import Labeller, Relabel
from dd_tasks.learners import Learner, Learners
from dd_tasks.recipe import Ballot, alone, voters_in
from dd_tasks.schedule import views_each
from dd_tasks.students import StudentRecipe
from dd_tasks.voters import Everyone, One, Voters
from schemas.plan import Work

LOGIT_BYTES = 2  # a float16
VIEW_BYTES = 10  # of an exact row but its logits, compressed: crops, flips and mix boxes
ROW_BYTES = 20  # of a compact row but its codes and classes, compressed: crop, flip, mix box and the like
FILE_BYTES = 6700  # of a Parquet file of views without any: the schema and index of its columns
WORDS, WORD_BYTES = 6000, 0.75  # logits of a row group that a dictionary holds beside them, and what each takes
AT_ONCE = 500  # images before a network that does not learn
TRIES = 5  # of k-means to begin with, the best of which counts


def exact_label_bytes(images: int, classes: int, epochs: int) -> int:
    """Of the logits of every view, which hardly compress, and of its crops and mix box; of the file itself."""
    views = images * epochs
    words = round(WORD_BYTES * min(views * classes, WORDS))
    return views * (classes * LOGIT_BYTES + VIEW_BYTES) + (FILE_BYTES + words if views else 0)


def compact_label_bytes(images: int, classes: int, epochs: int, top: int = FEWEST, step: float = COARSEST) -> int:
    """Of compact labels of `top` classes: a code has the entropy of a normal variable in steps of so many standard
    deviations, a class log2(classes) bits where not all are kept."""
    code_bits = log2(sqrt(2 * pi * e) / step)
    class_bits = log2(classes) if top < classes else 0.0
    bits = images * epochs * min(top, classes) * (code_bits + class_bits)
    return round(bits / 8 + epochs * images / GROUP * ROW_BYTES)


def work(job: Job) -> tuple[Work, ...]:
    """Every line of the plan, in the order of the flow."""
    made = candidates(job), observers(job), guides(job), priors(job), choose(job, "choose"), recover(job, "recover")
    return tuple(chain(*made, nearness(job), relabel(job), random_rows(job), students(job)))


def image_updates(job: Job) -> int:
    """Of recovery and of measured priors: what the manifest calls so. A run that may stop early needs at most these."""
    return sum(line.amount for line in work(job) if (line.operation, line.unit) == ("recover", "image-updates"))


def least_image_updates(job: Job) -> int:
    """Those of the phases before the first in which a run may stop, once no image remembers a crop."""
    schedule = job.recipe.schedule
    sure = tuple(takewhile(lambda phase: not phase.viewer.may_finish, schedule.phases))
    return image_updates(replace(job, recipe=replace(job.recipe, schedule=replace(schedule, phases=sure))))


def labelled_views(job: Job) -> int:
    """Of the distilled images, drawn by the method's labeller."""
    return job.images * job.recipe.labeller.epochs


def student_count(job: Job) -> int:
    """Students of all rows, a seed each."""
    jpegs = len({student.architecture for _, student in job.rows}) if job.bytes_row else 0
    return job.seeds * (2 * len(job.rows) + jpegs) + len(job.full)


def candidates(job: Job) -> Iterator[Work]:
    passes = 1 + job.seeds + any(ballot.voters.needs_real for ballot in job.recipe.ballots)
    n = job.data.images
    yield job.line("candidates", "read shards", passes * n, "images", f"{passes} * {n} images", operation="read")


def observers(job: Job) -> Iterator[Work]:
    """Trained or checked in, then the statistics of what their layers see."""
    for member in job.observers:
        yield from _trained(job, member, "observers")
    epochs = [member.epochs for member in job.observers if isinstance(member, ObserverRecipe)]
    yield from _decoded(job, "observers", sum(epochs), held=len(job.observers))
    kinds = ("statistics", "patches") if job.recipe.needs_patches else ("statistics",)
    for kind in kinds:
        for member in job.observers:
            yield job.line(
                "statistics", f"{kind} of {member.name}", job.training, "images", f"{job.training} images",
                operation=kind, architecture=member.architecture, batch=AT_ONCE,
            )  # fmt: skip
    if not job.at_hand:
        yield from _decoded(job, "statistics", len(kinds) * len(job.observers))


def _trained(job: Job, member: Member, stage: str, scored: int | None = None) -> Iterator[Work]:
    """One network on real images, as the observers are, and its score."""
    architecture, scored = member.architecture, scored or job.held
    if isinstance(member, ObserverRecipe):
        batches, size = job.training // member.batch, member.batch
        yield job.line(
            stage, f"train {member.name}", member.epochs * batches * size, "training images",
            f"{member.epochs} epochs * {batches} batches * {size} images", operation="observer",
            architecture=architecture, batch=size, compiled=_compiled(job, member.epochs * job.training),
        )  # fmt: skip
    yield job.line(
        stage, f"score {member.name}", scored, "images", f"{scored} images", operation="score",
        architecture=architecture, batch=AT_ONCE,
    )  # fmt: skip


def _compiled(job: Job, images: int) -> bool:
    return images * job.data.side**2 >= WORTH_COMPILING


def _decoded(job: Job, stage: str, epochs: int, held: int = 0) -> Iterator[Work]:
    """Training images, and images to score by, decoded: once where they are kept at hand, else at every use."""
    n, uses = job.data.images, (1, min(held, 1)) if job.at_hand else (epochs, held)
    often = "kept at hand" if job.at_hand else "every epoch anew"
    read, amount = sum(uses) * n, uses[0] * job.training + uses[1] * job.held
    yield job.line(stage, "read shards", read, "images", f"{sum(uses)} * {n} images, {often}", operation="read")
    formula = " + ".join(f"{use} * {count}" for use, count in zip(uses, (job.training, job.held), strict=True) if use)
    yield job.line(stage, "decode", amount, "images", f"{formula} images", operation="decode")


def guides(job: Job) -> Iterator[Work]:
    """Pools of guides that are trained on these shards or on others, taken to be as many."""
    pools = dict.fromkeys(voters.pool for voters in voters_in(job.recipe) if isinstance(voters, Guides))
    for member in dict.fromkeys(course.member for pool in pools for course in courses(pool)):
        if not isinstance(member, Imported):
            yield from _trained(job, member, "guides")


def priors(job: Job) -> Iterator[Work]:
    """Each observer distils alone, and a student of that is scored on held-out training images."""
    if not any(voters.needs_priors for voters in voters_in(job.recipe)):
        return
    for member in job.observers:
        one = replace(job, recipe=alone(job.recipe), observers=(member,), data=job.data.model_copy(update={"test": 0}))
        yield from choose(one, "priors")
        yield from recover(one, "priors")
        yield from _labelled(one, "priors", one.recipe.labeller, f"images of {member.name} alone")
        yield from _taught(one, "priors", f"images of {member.name} alone", job.rows[0][1], seeds=1)


def choose(job: Job, stage: str) -> Iterator[Work]:
    """What the committee must see of the candidates to choose among them."""
    begin = job.recipe.initialiser
    wanted = job.per_class(begin.demand(job.ipc), begin.least(job.ipc))
    n = wanted * job.data.classes
    if not n:
        return
    yield job.line(
        stage, "decode candidates", n, "images", f"{wanted} candidates * {job.data.classes} classes", operation="decode"
    )
    if not begin.needs_observers:
        return
    windows = begin.crops if isinstance(begin, Collage) and begin.factor > 1 else 1
    judges = _seats(begin.judges if isinstance(begin, Collage) else Everyone(), job.observers, 1)
    for architecture, _ in judges:
        yield job.line(
            stage, f"look at candidates by {architecture}", n * windows, "images",
            f"{wanted} candidates * {job.data.classes} classes * {windows}", operation="score",
            architecture=architecture, batch=AT_ONCE,
        )  # fmt: skip
    if isinstance(begin, Representatives):
        yield _clustered(
            job, stage, (wanted, begin.least(job.ipc)), [name for name, _ in judges], TRIES * job.data.classes
        )


def _clustered(job: Job, stage: str, sizes: tuple[int, int], architectures: Sequence[str], tries: int) -> Work:
    """k-means of (images, centres) by what these networks' last layers take in, so many times in all."""
    features = sum(anatomy(name, job.data.side, job.data.classes).features for name in architectures)
    (images, centres), values = sizes, sizes[0] * sizes[1] * features
    return job.line(
        stage, "k-means", tries * values, "values",
        f"{tries} tries * {images} images * {centres} centres * {features} features", operation="cluster",
        batch=max(1, values),
    )  # fmt: skip


def _seats(voters: Voters, members: Sequence[Member], steps: int) -> list[tuple[str, list[int]]]:
    """Architectures, and in which steps each judges. Of those drawn at random, and of voters that are not ours: equal
    shares."""
    if isinstance(voters, One):
        return [(members[voters.seat].architecture, [*range(steps)])]
    if isinstance(voters, Learners):
        return [(voters.architecture, [*range(steps)])]
    at_once = voters.at_once(len(members))
    if isinstance(voters, Guides):
        names = [course.member.architecture for course in courses(voters.pool) for _ in course.checkpoints]
    else:
        names = [member.architecture for member in members]
    return [
        (name, [place // at_once for place in range(i, steps * at_once, len(names))]) for i, name in enumerate(names)
    ]


def recover(job: Job, stage: str) -> Iterator[Work]:
    """The pixels' optimisation: image-updates by ballot and observer."""
    for ballot in job.recipe.ballots:
        yield from _judged(job, stage, ballot)
        if isinstance(ballot.voters, Learners):
            yield from _learnt(job, stage, ballot.voters)
        if isinstance(ballot.voters, Guides):
            yield from _compared(job, stage, ballot.voters)


def _judged(job: Job, stage: str, ballot: Ballot) -> Iterator[Work]:
    phases = job.recipe.schedule.phases
    early, views_T = (
        any(phase.viewer.may_finish for phase in phases),
        [views_each(p.viewer) for p in phases for _ in range(p.steps)],
    )
    for architecture, steps in _seats(ballot.voters, job.observers, len(views_T)):
        views = max(views_T, default=1)
        yield job.line(
            stage, f"recover by {architecture}", sum(views_T[step] for step in steps) * job.images, "image-updates",
            f"{len(steps)} steps * {job.images} images{f' * {views} tiles' if views > 1 else ''}", operation="recover",
            architecture=architecture, terms=terms_of(ballot), batch=min(job.panel, job.images) * views, at_most=early,
            parts=job.panels,
        )  # fmt: skip


def terms_of(ballot: Ballot) -> str:
    """What a ballot judges by, in words."""
    return " + ".join(sorted(type(term).__name__ for term in ballot.terms))


def _learnt(job: Job, stage: str, voters: Learners) -> Iterator[Work]:
    """What the networks in training see of real images, in every panel anew."""
    steps, panels, classes = job.recipe.schedule.steps, job.panels, min(job.panel, job.images, job.data.classes)
    pool = job.per_class(voters.pool, voters.least(job.ipc)) * job.data.classes
    anew = ceil(steps / voters.inner)
    each = anew * (voters.epochs * pool // Learner.TRAINING_BATCH) + (steps - anew) * (
        voters.samples // Learner.TRAINING_BATCH
    )
    shared = {"architecture": voters.architecture, "parts": panels}
    yield job.line(
        stage, f"train {voters.architecture}", panels * each * Learner.TRAINING_BATCH, "training images",
        f"{panels} panels * {each} batches * {Learner.TRAINING_BATCH} images", operation="observer",
        batch=Learner.TRAINING_BATCH, **shared,
    )  # fmt: skip
    yield job.line(
        stage, "real images to match", panels * steps * classes * voters.batch, "images",
        f"{panels} panels * {steps} steps * {classes} classes * {voters.batch}", operation="recover",
        batch=voters.batch, **shared,
    )  # fmt: skip
    if voters.choose == "representative":
        clustered = ceil(steps / voters.interval) * panels
        among = min(voters.among, pool // job.data.classes)
        yield job.line(
            stage, "look for representatives", clustered * job.data.classes * among, "images",
            f"{clustered} times * {job.data.classes} classes * {among}", operation="score", batch=AT_ONCE, **shared,
        )  # fmt: skip
        sizes = among, min(voters.batch, among)
        yield _clustered(job, stage, sizes, [voters.architecture], clustered * job.data.classes)


def _compared(job: Job, stage: str, voters: Guides) -> Iterator[Work]:
    """The real images that guides see beside the views."""
    for architecture, steps in _seats(voters, job.observers, job.recipe.schedule.steps):
        yield job.line(
            stage, f"real images before {architecture}", job.panels * len(steps) * voters.batch, "images",
            f"{job.panels} panels * {len(steps)} steps * {voters.batch}", operation="score", architecture=architecture,
            batch=voters.batch, parts=job.panels,
        )  # fmt: skip


def nearness(job: Job) -> Iterator[Work]:
    if not job.at_hand:
        yield from _decoded(job, "nearness", 1)
    pairs, images = 2 * job.images * job.training, 2 * job.images
    yield job.line(
        "nearness", "compare with real images", pairs, "pairs", f"{images} images * {job.training} real ones",
        operation="compare", batch=images,
    )  # fmt: skip


def relabel(job: Job) -> Iterator[Work]:
    """Labels of the distilled images."""
    for ours, _ in job.labellers:
        yield from _labelled(job, "relabel", ours, "distilled images")
    yield from _encoded(job, "relabel", "distilled images")


def random_rows(job: Job) -> Iterator[Work]:
    """Labels of every draw of random images."""
    for _, theirs in job.labellers:
        yield from _labelled(job, "random rows", theirs, "random images", job.seeds)
    yield from _encoded(job, "random rows", "random images", job.seeds)


def _encoded(job: Job, stage: str, what: str, draws: int = 1) -> Iterator[Work]:
    """Compact labels, compressed."""
    if job.compact:
        views, k = labelled_views(job), job.data.classes
        yield job.line(
            stage, f"encode labels of {what}", draws * views * k, "logits",
            f"{_times(draws, 'draws')}{views} views * {k} classes", operation="encode", batch=k, parts=draws,
        )  # fmt: skip


def _times(count: int, what: str) -> str:
    """The first factor of a formula, left out where it is 1."""
    return f"{count} {what} * " if count > 1 else ""


def _labelled(job: Job, stage: str, labeller: Labeller, what: str, draws: int = 1) -> Iterator[Work]:
    if not isinstance(labeller, Relabel):
        return
    for architecture, epochs in _seats(labeller.voters, job.observers, labeller.epochs):
        yield job.line(
            stage, f"label {what} by {architecture}", draws * len(epochs) * job.images, "views",
            f"{_times(draws, 'draws')}{len(epochs)} epochs * {job.images} images", operation="label",
            architecture=architecture, batch=labeller.together(job.images), parts=draws,
        )  # fmt: skip


def students(job: Job) -> Iterator[Work]:
    """Every row, a student a seed; then the rows that are trained otherwise."""
    for row, student in job.rows:
        for data in ("distilled", "random"):
            yield from _taught(job, "students", f"{data}{row} images", student, job.seeds)
    for full in job.full:
        yield from _trained(job, full, "students", job.scored)
    if job.bytes_row:
        for student in dict.fromkeys(replace(student, hard=True) for _, student in job.rows):
            twice = replace(student, epochs=ORDINARY_UPDATES * student.epochs)
            yield from _taught(job, "students", "JPEG images", twice, job.seeds)
    if job.full and not job.at_hand:
        yield from _decoded(job, "students", sum(full.epochs for full in job.full))
    if job.data.test:
        often = 1 if job.at_hand else student_count(job)
        for what, operation in (("read test shards", "read"), ("decode test images", "decode")):
            formula = f"{often} * {job.data.test} images"
            yield job.line("students", what, often * job.data.test, "images", formula, operation=operation)


def _taught(job: Job, stage: str, what: str, student: StudentRecipe, seeds: int) -> Iterator[Work]:
    """Students of one row, and their scores."""
    about = {"architecture": student.architecture, "parts": seeds}
    yield job.line(
        stage, f"{student.architecture} on {what}", seeds * student.epochs * job.images, "image-updates",
        f"{seeds} seeds * {student.epochs} epochs * {job.images} images", operation="student",
        batch=min(student.batch, job.images), compiled=_compiled(job, student.epochs * job.images), **about,
    )  # fmt: skip
    yield job.line(
        stage, f"score {student.architecture} on {what}", seeds * job.scored, "images",
        f"{seeds} seeds * {job.scored} images", operation="score", batch=AT_ONCE, **about,
    )  # fmt: skip
