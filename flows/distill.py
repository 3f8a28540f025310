"""@flow distill_dataset: the main job, as the method section of a paper would tell it."""

from pathlib import Path

from dd_tasks.initialise import WholeImages
from dd_tasks.recipe import voters_in
from flows.assemble import Results, assemble, resolve
from flows.committee import measure_priors, train_committee
from flows.engines import ENGINE
from flows.guides import train_guides
from flows.recover import recover
from flows.release import expect_publishable, release_dataset
from flows.seeing import show_run, unlinked
from flows.settings import Settings
from flows.students import Sets, label_sets, train_students
from flows.tasks import (
    choose_images,
    draw_candidates,
    index_shards,
    measure_nearness,
)
from flows.walk import asking, flow
from flows.workspace import begun_of, panels_of, seed_of
from schemas.manifest import Manifest
from schemas.release import ReleaseSpec
from schemas.spec import RunSpec

HERE = Settings()


@flow(name="distill-dataset", task_runner=ENGINE)
@asking
def distill_dataset(
    spec: RunSpec, out: Path, settings: Settings = HERE, command: str = "", release: ReleaseSpec | None = None
) -> Manifest:
    """Distil the shards of `spec` into the artifact `out`, and publish it where a `release` is given; what the store
    holds is not made again, and what is published already is not published again.

    Args:
        out: folder of the artifact, on the machine that runs
        command: what the card says makes it again
        release: where to publish the artifact
    """
    expect_publishable(release)

    # The real data is indexed, and a part of it kept from the observers for every choice made on the way.
    data = index_shards(
        spec.shards, spec.test, spec.side, spec.held_out, spec.tolerate, spec.ipc, spec.classes, spec.normalise
    )
    run = resolve(spec, data.side, data.shape.classes)
    recipe, begin = run.recipe, run.recipe.initialiser

    # Candidates are drawn first: a class with too few images is noticed before hours of training.
    drawn, chosen = seed_of(spec.seed, "candidates"), seed_of(spec.seed, "choose")
    candidates = draw_candidates(begin, spec.ipc, data, drawn, settings)
    draws = [seed_of(spec.seed, "random", i) for i in range(spec.seeds)]
    lots = [draw_candidates(WholeImages(), spec.ipc, data, seed, settings) for seed in draws]

    # Squeeze: observers learn the real data and are frozen. Where votes are weighed, each first distils alone.
    seats = unlinked(train_committee(run.observers, data, settings, recipe.needs_patches))
    pools = train_guides(run, data, settings)
    if any(voters.needs_priors for voters in voters_in(recipe)):
        seats = measure_priors(run, seats, data, settings, pools)

    # Recover: chosen real images are optimised, panel by panel, through exploration and exploitation.
    first = choose_images(begin, candidates, seats, spec.ipc, data, chosen, settings)
    begun = begun_of(begin, spec.ipc, data, (drawn, chosen), seats)
    panels = panels_of(spec.ipc, begun, data.shape.classes, spec.panel, spec.seed)
    finished, canvas = recover(recipe, first, panels, seats, data, spec.seed, settings, pools)

    # Relabel: the committee's logits of many views; the same for random real images, drawn anew for every seed. Where
    # asked for, also of the images as they are.
    random = [
        choose_images(WholeImages(), lot, seats, spec.ipc, data, s, settings)
        for lot, s in zip(lots, draws, strict=True)
    ]
    near = measure_nearness(canvas, random[0], data, settings)
    sets = Sets(canvas, random, draws)
    labels = label_sets(run, sets, seats, data, settings)

    # Train students: every row under the same recipe, last epoch, one student a seed.
    measured = train_students(run, sets, labels, data, settings)

    # Assemble, validate, and only then put in place.
    results = Results(
        seats, pools, first, finished, canvas, near, labels["augmented"], measured, (candidates, *lots, *random)
    )
    manifest = show_run(assemble(run, data, results, out, settings, command), out)
    if release is not None:
        release_dataset(out, release)
    return manifest
