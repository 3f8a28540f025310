"""The ImageNet settings at their own size: 224 px, shards, the papers' architectures untrained, a few steps each."""

from dataclasses import dataclass, replace
from functools import cache

import pytest
import tiny
import torch
from test_presets import shortened

from dd_tasks.committee import COMMITTEES, Observer, seeded
from dd_tasks.distill import distill
from dd_tasks.initialise import WholeImages
from dd_tasks.label import Relabel
from dd_tasks.networks import Shape, build
from dd_tasks.packing import pack
from dd_tasks.presets import LARGE, PRESETS, cda, cda_21k, e2d_21k, preset
from dd_tasks.recipe import Ballot, Recipe
from dd_tasks.schedule import Adam, Phase, RandomCrops, Revisit, Rolled, Schedule, SharedCrop
from dd_tasks.shards import Quarantine, Source, open_source, sample_per_class
from dd_tasks.statistics import measure
from dd_tasks.terms import BatchNormMatching, CrossEntropy
from dd_tasks.types import Studio
from dd_tasks.voters import One

SIDE, CLASSES, PER_CLASS = 224, 2, 5
STEPS, EPOCHS = 3, 2


@dataclass(frozen=True)
class Case:
    """Of a preset cut to STEPS a phase: how many seats judge a step, the smallest crop that is labelled (a share of the
    area), and how many real images one of its own begins from."""

    name: str
    committee: tuple[str, ...]
    phases: int
    seats: int
    least: float
    sources: int


ONE = ("resnet18",)
EDC, CV_DD = (tuple(m.architecture for m in COMMITTEES[name]) for name in ("edc_imagenet", "cv_dd_imagenet"))
CASES = (
    Case("sre2l", ONE, phases=1, seats=1, least=0.08, sources=0),
    Case("sre2l_pp", ONE, phases=1, seats=1, least=0.08, sources=4),
    Case("cda", ONE, phases=1, seats=1, least=0.08, sources=0),
    Case("rded", ONE, phases=0, seats=0, least=0.5, sources=4),
    Case("edc", EDC, phases=1, seats=1, least=0.5, sources=4),
    Case("e2d", EDC, phases=2, seats=1, least=0.5, sources=1),
    Case("cv_dd", CV_DD, phases=1, seats=2, least=0.08, sources=4),
    Case("cda_21k", ONE, phases=1, seats=1, least=0.08, sources=0),
    Case("e2d_21k", ONE, phases=2, seats=1, least=0.5, sources=1),
)


def smooth(n: int, seed: int) -> torch.Tensor:
    """images_NCSS of soft blobs."""
    blobs = torch.rand(n, 3, 6, 6, generator=tiny.generator(seed))
    pixels_NCSS = torch.nn.functional.interpolate(blobs, (SIDE, SIDE), mode="bicubic")
    return (pixels_NCSS.clamp(0, 1) * 255).to(torch.uint8)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Source:
    samples = (
        (f"{label}-{i}", tiny.png(image), "png", label)
        for label in range(CLASSES)
        for i, image in enumerate(smooth(PER_CLASS, seed=label))
    )
    out = tmp_path_factory.mktemp("large") / "shards"
    pack(samples, [f"class {i}" for i in range(CLASSES)], out, samples_per_shard=10)
    return open_source([f"{out}/*.tar"], quarantine=Quarantine())


@cache
def observer(architecture: str, shape: Shape) -> Observer:
    """Random weights; the running statistics and those of the layers are measured on one image a class."""
    net, pixels_NCSS = seeded(lambda: build(architecture, shape), 0), smooth(CLASSES, seed=9) / 255
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        net.train()(pixels_NCSS)
    real = [(pixels_NCSS, torch.arange(CLASSES))]
    (statistics, _), (patches, _) = (measure(net.eval(), real, CLASSES, patches=patches) for patches in (False, True))
    return Observer(architecture, net, statistics, prior=0.6, patches=patches)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_large_recipes_run_from_shards_to_labels(case, source):
    shape = Shape(CLASSES, SIDE, source.index.mean, source.index.std)
    watched = [tiny.Watched(observer(name, shape)) for name in case.committee]
    studio = Studio(tuple(watched), CLASSES, shape.mean, shape.std, tiny.generator(), tiny.CPU)
    recipe = shortened(preset(case.name, side=SIDE), STEPS)
    wanted = min(recipe.initialiser.demand(1), PER_CLASS)
    candidates = sample_per_class(source, per_class=wanted, seed=0, quarantine=Quarantine())

    first = recipe.initialiser.choose(candidates, 1, SIDE, studio)
    assert first.images_NCHW.shape == (CLASSES, 3, SIDE, SIDE)
    assert [len(keys) for keys in first.sources] == [case.sources] * CLASSES

    before = [len(o.sizes) for o in watched]
    made = distill(recipe, first, studio)
    judged = [sum(o.sizes[start:]) for o, start in zip(watched, before, strict=True)]
    steps = STEPS * case.phases
    assert made.image_updates == sum(judged) == CLASSES * steps * case.seats
    assert len(made.loss_T) == steps and made.loss_T.isfinite().all() and made.canvas.targets_N.tolist() == [0, 1]
    changed_N = (made.canvas.images_NCHW != first.images_NCHW).flatten(1).any(1)
    assert changed_N.tolist() == [steps > 0] * CLASSES
    assert made.gaze_NSS.any() == (case.phases == 2)

    views = recipe.labeller.label(made.canvas, studio)
    assert views.logits_VK.shape == (CLASSES * EPOCHS, CLASSES) and views.logits_VK.isfinite().all()
    assert (views.logits_VK[0] != views.logits_VK[1]).any()
    top, left, tall, wide = views.crops.boxes_N4.unbind(1)
    assert (top >= 0).all() and (left >= 0).all() and (top + tall <= SIDE).all() and (left + wide <= SIDE).all()
    assert (tall * wide / SIDE**2 > case.least - 0.005).all()
    assert all(o.sizes and o.lowest > -1e-5 and o.highest < 1 + 1e-5 for o in watched)


def test_cda_on_imagenet_21k_is_cda_for_other_steps_at_another_rate():
    phase = Phase(2000, SharedCrop(scale=(0.08, 1.0), jitter=32, start=1.0))
    assert cda_21k(side=SIDE) == replace(cda(side=SIDE), schedule=Schedule((phase,), Adam(rate=0.22)))


def test_e2d_on_imagenet_21k_is_these_five_parts():
    explore = Phase(280, Rolled(RandomCrops(scale=(0.5, 1.0), threshold=0.3), jitter=32))
    exploit = Phase(120, Rolled(Revisit(scale=(0.5, 1.0), threshold=0.3), jitter=32))
    ballot = Ballot(One(), (CrossEntropy(1.0), BatchNormMatching(0.01, first_layer=10.0)))
    schedule = Schedule((explore, exploit), Adam(rate=0.022), memory=280)
    labeller = Relabel(voters=One(), epochs=300, scale=(0.5, 1.0))
    assert e2d_21k(side=SIDE) == Recipe(WholeImages(flip=True), (ballot,), schedule, labeller)


@pytest.mark.parametrize("name", LARGE)
def test_settings_of_imagenet_21k_are_found_by_name_beside_the_methods(name):
    assert preset(name, side=SIDE) == LARGE[name](side=SIDE) and name not in PRESETS


@pytest.mark.parametrize(
    ("committee", "others"),
    [("edc_imagenet", {"efficientnet_b0", "alexnet"}), ("cv_dd_imagenet", {"resnet50", "densenet121"})],
)
def test_imagenet_committees_are_those_of_the_papers(committee, others):
    shared = {"resnet18", "mobilenet_v2", "shufflenet_v2_x0_5"}
    assert {member.architecture for member in COMMITTEES[committee]} == shared | others
