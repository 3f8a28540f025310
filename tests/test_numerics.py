"""Numbers that are none, networks and images that vary too little, memory that runs out: noticed, named, and either
worked around or refused, with nothing of it in the store."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import tiny
import torch
from test_committee import RECIPE, SHAPE, digits
from test_distill import SHORT, recipe
from torch import Tensor, nn

from dd_tasks import committee, compact, students
from dd_tasks.committee import Imported, Observer, load_weights
from dd_tasks.distill import distill
from dd_tasks.errors import NumericalError
from dd_tasks.label import OneHot, Relabel
from dd_tasks.learners import Learners
from dd_tasks.networks import Shape
from dd_tasks.numerics import Unsound, Watch
from dd_tasks.recipe import Ballot, Recipe
from dd_tasks.recovery import recover
from dd_tasks.schedule import Phase, RandomCrops, Revisit, Sgd, SharedCrop
from dd_tasks.statistics import measure
from dd_tasks.students import StudentRecipe
from dd_tasks.terms import BatchNormMatching, ContrastivePull, CrossEntropy, SmoothedStatistics
from dd_tasks.types import Reading, RealImages, Studio
from dd_tasks.voters import Everyone, RoundRobin

HERE = Path(__file__).parent
NAN, INF = float("nan"), float("inf")


# Recovery


def harmed(part: str, value: float, seed: int = 0) -> Observer:
    """An observer, one of whose weights or statistics has this value."""
    found = tiny.observer(seed)
    dict(found.net.state_dict())[part].flatten()[0] = value
    return found


def loud(*factors: float) -> Observer:
    """An observer whose logits are so many times as large."""
    found = tiny.observer(0)
    for factor in factors:
        found.net[1].classifier.weight.mul_(factor)  # type: ignore[index, union-attr]
    return replace(found, name="loud")


def unmeasured(value: float) -> Observer:
    """An observer whose statistics of one layer have this value."""
    found = tiny.observer(0)
    first, *rest = found.statistics
    return replace(found, statistics=(replace(first, mean_C=torch.full_like(first.mean_C, value)), *rest))


@dataclass(frozen=True)
class Steep:
    """A term of 0, whose gradient is infinite there."""

    needs_moments = needs_patches = False

    def convene(self, studio: Studio) -> Callable[..., Tensor]:
        return lambda judge, reading, targets_N: (reading.logits_NK - reading.logits_NK.detach()).abs().sum().sqrt()


@dataclass(frozen=True)
class Late:
    """Cross-entropy, until it has been asked so often; then infinite."""

    after: int
    needs_moments = needs_patches = False

    def convene(self, studio: Studio) -> Callable[..., Tensor]:
        asked, plain = [], CrossEntropy().convene(studio)

        def loss(judge: Any, reading: Any, targets_N: Tensor) -> Tensor:
            asked.append(1)
            return plain(judge, reading, targets_N) + (INF if len(asked) > self.after else 0)

        return loss


def by(*terms: Any, voters: Any = None) -> Recipe:
    return replace(SHORT, ballots=(Ballot(voters or RoundRobin(), terms),))


CLASSIFIER = "1.classifier.weight"
PLACE = "panel 3 (slots 18..23): step {} of 7 (schedule.phases.{}): "
PANELS: dict[str, tuple[Recipe, tuple[Observer, ...], str]] = {
    "NaN in the weights": (
        SHORT, (harmed(CLASSIFIER, NAN), tiny.observer(1)),
        PLACE.format(1, 0) + "CrossEntropy of observer convnet2_bn_w4 is not a number; its logits are not a number",
    ),
    "the second of a committee": (
        SHORT, (tiny.observer(1), replace(harmed(CLASSIFIER, NAN), name="other")),
        PLACE.format(2, 0) + "CrossEntropy of observer other is not a number; its logits are not a number",
    ),
    "several at once": (
        by(CrossEntropy(), voters=Everyone()), (tiny.observer(1), replace(harmed(CLASSIFIER, NAN), name="other")),
        PLACE.format(1, 0) + "CrossEntropy of observer other is not a number; its logits are not a number",
    ),
    "infinite weights": (
        by(CrossEntropy()), (loud(1e38, 1e3),),
        PLACE.format(1, 0) + "CrossEntropy of observer loud is ",
    ),
    "NaN in a layer": (
        by(SmoothedStatistics()), (harmed("1.features.0.weight", NAN),),
        PLACE.format(1, 0) + "SmoothedStatistics of observer convnet2_bn_w4 is not a number; its logits are not a",
    ),
    "infinite statistics": (
        SHORT, (unmeasured(INF),), PLACE.format(1, 0) + "SmoothedStatistics of observer convnet2_bn_w4 is ",
    ),
    "statistics that overflow when squared": (
        SHORT, (unmeasured(1e30),), PLACE.format(1, 0) + "SmoothedStatistics of observer convnet2_bn_w4 is ",
    ),
    "a gradient": (
        by(CrossEntropy(), Steep()), (tiny.observer(0),),
        PLACE.format(1, 0) + "the gradient of the losses by observer convnet2_bn_w4 is not finite",
    ),
    "a gradient, followed by SGD": (
        replace(by(Steep()), schedule=replace(SHORT.schedule, optimiser=Sgd())), (tiny.observer(0),),
        PLACE.format(1, 0) + "the gradient of the losses by observer convnet2_bn_w4 is not finite",
    ),
    "the second phase": (
        by(Late(5)), (tiny.observer(0),), PLACE.format(6, 1) + "Late of observer convnet2_bn_w4 is infinite",
    ),
    "the last step": (
        by(Late(6)), (tiny.observer(0),), PLACE.format(7, 1) + "Late of observer convnet2_bn_w4 is infinite",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PANELS)
def test_a_loss_that_is_no_number_is_named_with_panel_step_phase_observer_and_term(case: str) -> None:
    asked, observers, line = PANELS[case]
    with pytest.raises(NumericalError) as refused:
        recover(asked, tiny.canvas(), tiny.studio(*observers), "panel 3 (slots 18..23)")
    assert str(refused.value).startswith(line), str(refused.value)


def test_a_panel_that_is_sound_is_what_the_loop_makes_of_it() -> None:
    plain, watched = distill(SHORT, tiny.canvas(), tiny.studio()), recover(SHORT, tiny.canvas(), tiny.studio())
    assert torch.equal(plain.pixels_NCSS, watched.pixels_NCSS) and torch.equal(plain.loss_T, watched.loss_T)


def test_an_infinite_hardness_ends_as_one_line_though_crops_are_drawn_by_it() -> None:
    asked = recipe(Phase(3, RandomCrops(threshold=0.0)), Phase(30, Revisit(threshold=0.0)))
    with pytest.raises(NumericalError, match="its logits are"):
        recover(asked, tiny.canvas(), tiny.studio(harmed(CLASSIFIER, INF)))


@pytest.mark.parametrize(("at", "value"), [(0, NAN), (7, INF), (9, -INF)])
def test_the_first_step_that_is_not_finite_is_found_however_late_one_asks(at: int, value: float) -> None:
    watch = Watch(10, tiny.CPU)
    for step in range(10):
        watch.note(step, torch.tensor(1.0), torch.tensor([0.5, value if step >= at else 2.0]))
        if step < at:
            watch.expect()
    with pytest.raises(Unsound) as found:
        watch.expect()
    assert found.value.step == at


# Networks in training


@pytest.mark.parametrize("rate", [1e20, 1e38])
def test_an_observer_whose_training_diverges_is_named_with_step_and_epoch(rate: float) -> None:
    with pytest.raises(NumericalError) as refused:
        committee.train(replace(RECIPE, peak_rate=rate), SHAPE, digits(slice(64)), digits(slice(64)), device=tiny.CPU)
    line = r"observer convnet2_bn_w8(: step \d+ of 16, epoch [1-4] of 4: its loss is not finite|, trained: .*)"
    assert re.fullmatch(line + r"; lower its rate \(--set observers.peak_rate=X\)", str(refused.value))


@pytest.mark.parametrize("hard", [False, True])
def test_a_student_whose_training_diverges_is_named_with_seed_and_step(hard: bool) -> None:
    canvas, student = tiny.canvas(12), StudentRecipe("convnet2_bn_w4", 4, batch=6, rate=1e38, hard=hard)
    views = OneHot(epochs=2).label(canvas, tiny.studio())
    test = tiny.digits("test", 20)
    with pytest.raises(NumericalError, match=r"student convnet2_bn_w4 seed 3: step \d+ of 8: its loss is not finite;"):
        students.train(student, Shape(3, 16), canvas, views, test, seed=3, device=tiny.CPU)


@pytest.mark.parametrize(
    ("choose", "line"),
    [
        ("representative", "k-means: embeddings of 24 of 24 images are not finite"),
        (
            "random",
            r"panel 0: step \d of 3 \(schedule.phases.0\): CrossEntropy of observer convnet2_w4 is not a number",
        ),
    ],
)
def test_a_network_that_diverges_beside_the_images_ends_the_panel(choose: Any, line: str) -> None:
    voters = Learners("convnet2_w4", rate=1e38, samples=128, among=24, pool=24, batch=8, choose=choose, interval=2)
    asked = recipe(Phase(3, SharedCrop()), ballots=(Ballot(voters, (CrossEntropy(),)),))
    real = RealImages(tiny.canvas(72).images_NCHW, tiny.labels(72))
    with pytest.raises(NumericalError, match=line):
        recover(asked, tiny.canvas(), replace(tiny.studio(), real=real), "panel 0")


# Observers that are degenerate


def deaf() -> Observer:
    """An observer trained on digits for whom two channels of each BatchNorm are always 0, as their statistics are."""
    recipe = replace(RECIPE, architecture="convnet2_bn_w8", epochs=1)
    made = committee.train(recipe, SHAPE, digits(slice(64)), digits(slice(64)), device=tiny.CPU)
    net = committee.restore(recipe.architecture, made.weights, SHAPE, tiny.CPU)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data[:2] = module.bias.data[:2] = 0  # type: ignore[union-attr]
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean[:2] = module.running_var[:2] = 0  # type: ignore[index]
    real = digits(slice(64))
    found = [(real.images_NCHW / 255, real.labels_N)]
    statistics, patches = (measure(net.eval(), found, 10, patches=by_patch)[0] for by_patch in (False, True))
    return Observer("deaf", net, statistics, patches=patches)


@pytest.mark.parametrize(
    "terms",
    [(CrossEntropy(), BatchNormMatching()), (CrossEntropy(), SmoothedStatistics()), (BatchNormMatching(),)],
    ids=lambda terms: "+".join(type(term).__name__ for term in terms),
)
@pytest.mark.parametrize("colour", [None, 0, 128], ids=["digits", "black", "grey"])
def test_channels_without_variance_and_images_of_one_colour_are_recovered(terms: Any, colour: int | None) -> None:
    observer = deaf()
    assert any((layer.batch_norm and (layer.variance_C == 0).any()) for layer in observer.statistics)
    canvas = tiny.canvas(10)
    if colour is not None:
        canvas = replace(canvas, images_NCHW=torch.full_like(canvas.images_NCHW, colour))
    studio = tiny.studio(observer, classes=10)
    made = recover(by(*terms), canvas, studio)
    assert made.loss_T.isfinite().all() and made.pixels_NCSS.isfinite().all()
    for batch_statistics in (None, 5):
        labeller = Relabel(epochs=2, batch_statistics=batch_statistics)
        assert labeller.label(made.canvas, studio).logits_VK.isfinite().all()


WEIGHTS: dict[str, tuple[str, float, str]] = {
    "NaN": (CLASSIFIER, NAN, "1 of {} values of 1.classifier.weight are not a number"),
    "infinite": ("1.features.0.bias", -INF, "1 of 8 values of 1.features.0.bias are infinite"),
    "NaN variance": ("1.features.1.running_var", NAN, "1 of 8 values of 1.features.1.running_var are not a number"),
    "negative variance": ("1.features.1.running_var", -1.0, "1 of 8 values of 1.features.1.running_var are negative"),
    "std of 0": ("0.std", 0.0, "its images are divided by a std of [0.0, 0.25, 0.25]"),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_imported_weights_by_which_no_network_computes_are_refused(case: str, tmp_path: Path) -> None:
    part, value, line = WEIGHTS[case]
    net = committee.seeded(lambda: committee.build("convnet2_bn_w8", SHAPE), 0)
    weights = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    weights[part].flatten()[0] = value
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(weights, path)
    member = Imported("convnet2_bn_w8", str(path), hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(NumericalError) as refused:
        load_weights(member, SHAPE)
    assert str(refused.value) == f"weights {path}: {line.format(weights[part].numel())}"
    with pytest.raises(NumericalError, match=r"^weights of convnet2_bn_w8: "):
        committee.restore("convnet2_bn_w8", weights, SHAPE, tiny.CPU)


# Labels


LABELS: dict[str, tuple[tuple[Observer, ...], str]] = {
    "NaN": (
        (tiny.observer(1), harmed(CLASSIFIER, NAN)),
        "observer convnet2_bn_w4, view 0: its logits are not a number",
    ),
    "infinite": (
        (harmed(CLASSIFIER, INF),),
        r"observer convnet2_bn_w4, view \d: its logits are (infinite|not a number)",
    ),
    "beyond float16": (
        (tiny.observer(1), loud(1e9)),
        r"observer loud, view 0: a logit of [\d,]+ is beyond 65,504, the largest that a label \(float16\) holds",
    ),
}


@pytest.mark.parametrize("case", LABELS)
@pytest.mark.parametrize("batch_statistics", [None, 5])
def test_labels_that_float16_cannot_hold_are_refused_with_the_observer(case: str, batch_statistics: int | None) -> None:
    observers, line = LABELS[case]
    labeller = Relabel(epochs=2, batch_statistics=batch_statistics)
    with pytest.raises(NumericalError, match=f"^soft labels: {line}$"):
        labeller.label(tiny.canvas(10), tiny.studio(*observers))


@pytest.mark.parametrize("gap", [80.0, 104.0, 300.0, 30000.0])
def test_compact_labels_of_a_class_that_is_all_but_excluded_stay_numbers(gap: float) -> None:
    views = tiny_views(gap)
    soft_NK = compact.fit(views, 10, tiny.SIDE)
    assert (soft_NK > 0).all() and torch.tensor(soft_NK.tolist()).log().isfinite().all()  # as the card's example does
    coding = compact.choose(views, soft_NK, tiny.SIDE, 10**6)
    decoded = compact.decode(compact.encode(views, soft_NK, coding, tiny.SIDE), soft_NK, tiny.SIDE)
    assert decoded.logits_VK.isfinite().all()
    assert (decoded.logits_VK.argmax(1) == views.logits_VK.argmax(1)).all()


def tiny_views(gap: float) -> Any:
    drawn = OneHot(epochs=2, group=compact.GROUP, mix=False).label(tiny.canvas(10), tiny.studio())
    own_NK = torch.zeros(10, 3)
    own_NK[:, 0] = gap
    return replace(drawn, logits_VK=own_NK[drawn.images_V.long()].half())


def test_guides_who_tell_no_images_apart_pull_at_none() -> None:
    one_way_8 = torch.eye(8)[0]
    real = Reading(torch.zeros(4, 3), features_NE=one_way_8.expand(4, 8))
    own_NE = one_way_8.repeat(3, 1).requires_grad_()
    reading = Reading(torch.zeros(3, 3), features_NE=own_NE, real=real, real_targets_M=tiny.labels(4))
    loss = ContrastivePull().convene(tiny.studio())(tiny.observer(), reading, tiny.labels(3))
    assert loss == 0
    assert torch.autograd.grad(loss, own_NE)[0].isfinite().all()
