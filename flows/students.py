"""Within a flow: the labels of the distilled and of random images, and the students that tell what they are worth."""

from collections.abc import Iterator
from dataclasses import dataclass

from dd_tasks.store import Ref
from dd_tasks.students import StudentRecipe, ordinary
from flows.assemble import Labelled, Row, Run, Seen
from flows.engines import finished
from flows.settings import Settings
from flows.stored import images_of
from flows.tasks import encode_labels, relabel, spend_on_jpegs, train_on_full_data, train_ordinarily, train_student
from flows.walk import following
from flows.workspace import Data, Seat, seed_of


@dataclass(frozen=True)
class Sets:
    """The distilled canvas and, a seed, random real images of as many."""

    canvas: Ref
    random: list[Ref]
    draws: list[int]  # seeds of the random ones


def label_sets(run: Run, sets: Sets, seats: tuple[Seat, ...], data: Data, settings: Settings) -> dict[Seen, Labelled]:
    """What the committee says of many views, as it will be published; where asked for, also of the images as they are.
    Random images are labelled alike, by a seed each."""
    labels: dict[Seen, Labelled] = {}
    draws = list(zip(sets.random, sets.draws, strict=True))
    for seen, (ours, theirs) in run.labellers.items():
        lots = [(ours, sets.canvas, seed_of(run.spec.seed, "labels"), "distilled")]
        lots += [(theirs, images, seed, "random") for images, seed in draws]
        mine, *others = finished(
            (f"labels of {what} images", relabel.submit(labeller, images, seats, data, seed, settings, what))
            for labeller, images, seed, what in lots
        )
        labels[seen] = Labelled(mine, mine, others, others)
    if run.compact:
        drawn, size = labels["augmented"], run.spec.label_bytes_per_image
        named = [(drawn.drawn, sets.canvas, "distilled images")]
        named += [(views, images, "random images") for views, images in zip(drawn.random, sets.random, strict=True)]
        mine, *others = finished(
            (f"compact labels of {what}", encode_labels.submit(views, images, size, data, settings, what))
            for views, images, what in named
        )
        labels["augmented"] = Labelled(drawn.drawn, mine, others, drawn.random)
    return labels


def train_students(
    run: Run, sets: Sets, labels: dict[Seen, Labelled], data: Data, settings: Settings
) -> list[tuple[Row, int, Ref]]:
    """Every row under the same recipe, last epoch, one student a seed: (row, seed, score)."""
    scores = []
    for student, seen, seed in _students(run):
        found = labels[seen]
        for row, images, views in (
            ("distilled", sets.canvas, found.published),
            ("random", sets.random[seed], found.random[seed]),
        ):
            score = train_student.submit(student, images, views, data, seed, settings, f"{row} images")
            scores.append((run.row(row, student, seen), seed, score))
    for full in run.full_students:
        score = train_on_full_data.submit(full, data, settings)
        scores.append((("full", full.architecture, full.epochs), full.seed, score))
    if run.spec.bytes_row:
        mine = labels["augmented"].published
        jpegs = [
            spend_on_jpegs(sets.canvas, mine, random, data, draw, settings)
            for random, draw in zip(sets.random, sets.draws, strict=True)
        ]
        with following("students on JPEG images"):
            counts = images_of(jpegs[0], settings), images_of(sets.canvas, settings)
            for student in (ordinary(one, *counts) for one in run.students):
                for seed, images in enumerate(jpegs):
                    score = train_ordinarily.submit(student, images, run.spec.flip, data, seed, settings)
                    scores.append((("jpeg", student.architecture, student.epochs), seed, score))
    named = [(f"student of {row[0]} images, seed {seed}", score) for row, seed, score in scores]
    made = finished(named, "students")
    return [(row, seed, ref) for (row, seed, _), ref in zip(scores, made, strict=True)]


def _students(run: Run) -> Iterator[tuple[StudentRecipe, Seen, int]]:
    for student, seen in run.rows:
        for seed in range(run.spec.seeds):
            yield student, seen, seed
