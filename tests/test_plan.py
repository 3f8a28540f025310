"""The work, and the bytes, foreseen are those that come."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from sample import SIDE, K, N, grouped_views
from tiny import canvas, studio

from dd_tasks import compact, plan
from dd_tasks.anatomy import anatomy
from dd_tasks.distill import distill
from dd_tasks.errors import InputError
from dd_tasks.extents import KNOWN, known
from dd_tasks.footprint import footprint
from dd_tasks.job import Job, grouped
from flows.assemble import resolve
from flows.planning import job_of
from schemas.plan import Extent
from schemas.spec import RunSpec


def test_exact_sizes_are_those_that_papers_report() -> None:
    assert plan.exact_label_bytes(50_000, 1000, 300) / 2**30 == pytest.approx(28, abs=0.1)  # E2D, IPC 50
    assert plan.exact_label_bytes(10_000, 1000, 300) / 2**30 == pytest.approx(5.7, abs=0.2)
    assert plan.exact_label_bytes(10 * 10_450, 10_450, 300) / 1e9 == pytest.approx(643, rel=0.03)


@pytest.mark.parametrize("top", [3, K])
def test_compact_sizes_are_foreseen(top: int) -> None:
    epochs, n = 300, N
    views = grouped_views(epochs=epochs)
    rng = torch.Generator().manual_seed(0)
    soft_NK = compact.fit(views, n, SIDE)
    own_VK = compact.mixed_logits(views, compact.own_logits(soft_NK), SIDE)
    left_VK = torch.randn(len(views), K, generator=rng)
    views = replace(views, logits_VK=(own_VK + left_VK).half())
    coding = compact.Coding(top, compact.COARSEST, epochs)
    found = compact.size(views, soft_NK, coding, SIDE)
    assert plan.compact_label_bytes(n, K, epochs, top) == pytest.approx(found, rel=0.35)


def job(preset: str = "e2d", *, side: int = 16, **changes: Any) -> Job:
    """A run of seconds on images that are nowhere."""
    overrides = changes.pop("set", {})
    spec = RunSpec.model_validate(
        {"preset": preset, "shards": ["none"], "ipc": 2, "committee": "tiny", "set": overrides} | changes
    )
    extent = Extent(name="none", classes=3, images=300, side=side, image_bytes=500, fewest=90)
    return job_of(resolve(spec, side, 3), extent)


STEPS = {"schedule.phases.0.steps": "7"}
LEARNERS = {**STEPS, "ballots.0.voters.inner": "5", "ballots.0.voters.samples": "256"}


@pytest.mark.parametrize(
    ("method", "changes", "updates"),
    [
        ("sre2l", {"set": STEPS}, 6 * 7),
        ("rded", {}, 0),
        ("edc", {"set": STEPS}, 6 * 7),
        ("cda", {"set": STEPS}, 6 * 7),
        ("e2d", {}, 6 * 200),
        ("cv_dd", {"set": STEPS}, 6 * 7 * (3 * 1 + 2)),  # each observer alone for its prior, then two together
        ("dream_plus", {"set": LEARNERS}, 6 * 7 * 4),
        ("clom(edc)", {"set": STEPS}, 6 * 7 * 2),
    ],
)
def test_image_updates_are_counted(method: str, changes: dict[str, Any], updates: int) -> None:
    assert plan.image_updates(job(method, **changes)) == updates


def test_a_run_that_may_stop_early_has_a_least_and_a_most() -> None:
    found = job("e2d")
    assert (plan.least_image_updates(found), plan.image_updates(found)) == (6 * 140, 6 * 200)
    assert {line.at_most for line in plan.recover(found, "recover")} == {True}
    assert plan.least_image_updates(job("edc")) == plan.image_updates(job("edc"))


def small(part: Any) -> Any:
    """A ballot's terms alone, as tests' networks without patches can judge."""
    return replace(part, ballots=tuple(replace(ballot, terms=ballot.terms[:1]) for ballot in part.ballots))


@pytest.mark.parametrize("method", ["sre2l", "edc", "cv_dd", "e2d", "rded"])
def test_the_loop_spends_what_was_planned(method: str) -> None:
    found = job(method, set={} if method == "rded" else STEPS, side=16)
    recipe = small(found.recipe)
    two = found.observers[:2]
    if method == "cv_dd":
        (ballot,) = recipe.ballots
        recipe = replace(recipe, ballots=(replace(ballot, voters=replace(ballot.voters, temperature=None)),))
    recipe = replace(recipe, schedule=replace(recipe.schedule, phases=recipe.schedule.phases[:1]))
    made = distill(recipe, canvas(6, side=16), studio())
    lines = plan.recover(replace(found, recipe=recipe, observers=two), "recover")
    assert made.image_updates == sum(line.amount for line in lines)


def test_observers_in_turn_share_the_steps() -> None:
    lines = list(plan.recover(job("edc", set=STEPS), "recover"))
    assert [line.amount for line in lines] == [6 * 3, 6 * 2, 6 * 2]
    assert lines[0].formula == "3 steps * 6 images" and lines[0].terms == "CrossEntropy + SmoothedStatistics"


@pytest.mark.parametrize(
    ("changes", "students"),
    [
        ({"bytes_row": False, "full_epochs": 0}, 2 * 3),
        ({}, 2 * 3 + 3 + 3),
        ({"hard_rows": True, "bytes_row": False, "full_epochs": 0}, 2 * 2 * 3),
        ({"plain_rows": True, "hard_rows": True, "bytes_row": False, "full_epochs": 0}, 3 * 2 * 3),
        ({"students": ["convnet3", "resnet18"], "seeds": 2}, 2 * (2 * 2) + 2 * 2 + 2 * 2),
    ],
)
def test_students_are_counted(changes: dict[str, Any], students: int) -> None:
    found = job(**changes)
    assert plan.student_count(found) == students
    trained = [line for line in plan.students(found) if line.operation in ("student", "observer")]
    assert sum(line.parts for line in trained) == students


def test_images_that_do_not_fit_into_memory_are_read_anew_every_epoch() -> None:
    kept, anew = job(), job(side=224)
    anew = replace(anew, data=anew.data.model_copy(update={"images": 100_000}))
    passes = {"kept at hand": 1 + 1, "every epoch anew": 3 * 8 + 3}
    for found, (how, often) in zip((kept, anew), passes.items(), strict=True):
        read = next(line for line in plan.observers(found) if line.operation == "read")
        assert read.amount == often * found.data.images and how in read.formula


def test_candidates_are_no_more_than_a_class_has() -> None:
    line = next(iter(plan.choose(job("retort"), "choose")))
    assert line.amount == 3 * int(0.8 * 0.9 * 90) and "64 candidates * 3 classes" in line.formula


def test_representatives_are_clustered_by_the_features_of_all_observers() -> None:
    found = job("retort")
    line = next(line for line in plan.choose(found, "choose") if line.operation == "cluster")
    features = sum(anatomy(member.architecture, 16, 3).features for member in found.observers)
    assert line.batch == 64 * 2 * features and line.amount == 5 * 3 * line.batch
    assert not [line for line in plan.choose(job("cv_dd"), "choose") if line.operation == "cluster"]


def test_long_numbers_in_formulas_have_commas() -> None:
    assert grouped("3 seeds * 12345 images at 1234 px") == "3 seeds * 12,345 images at 1234 px"


@pytest.mark.parametrize("name", KNOWN)
def test_named_datasets_are_whole(name: str) -> None:
    found = known(name)
    assert found.name == name and found.source and found.fewest * found.classes <= found.images
    with pytest.raises(InputError, match=f"did you mean '{name}'"):
        known(f"{name}x")


def test_bytes_of_a_store_grow_with_what_is_kept() -> None:
    def of(kind: str, **changes: Any) -> int:
        return next(line.bytes for line in footprint(job(**changes)) if line.kind == kind)

    assert of("views", seeds=1) * 2 == of("views", seeds=3)
    assert of("candidates", preset="retort", seeds=1) > of("candidates", seeds=1)
    assert of("canvas", panel=3, bytes_row=False) == of("canvas", bytes_row=False)  # it is what the panels left
    assert of("soft_labels", codec="exact") == plan.exact_label_bytes(6, 3, 300)
    assert of("soft_labels", label_bytes_per_image=9) == 6 * 9
    assert not [line for line in footprint(job("edc", codec="exact")) if line.kind in ("labels", "patches")]


@pytest.mark.parametrize(
    ("images", "test", "kept"), [(300, 0, 300), (300, 90, 390), (10**7, 90, 90), (300, 10**7, 300), (10**7, 10**7, 0)]
)
def test_decoded_images_that_fit_are_foreseen(images: int, test: int, kept: int) -> None:
    made = job()
    lines = footprint(replace(made, data=made.data.model_copy(update={"images": images, "test": test})))
    foreseen = [line.bytes for line in lines if line.kind == "pixels"]
    assert foreseen == ([kept * (3 * 16 * 16 + 32)] if kept else [])
