"""What is asked of the views: the statistics' term against its formula, layer by layer."""

import math
from dataclasses import replace

import pytest
import tiny
import torch
from test_statistics import literal_patches
from torch import Tensor, nn

from dd_tasks.committee import Observer
from dd_tasks.errors import InputError
from dd_tasks.statistics import measure
from dd_tasks.terms import (
    BatchNormMatching,
    CrossEntropy,
    FeatureMean,
    GradientMatching,
    PatchStatistics,
    SmoothedStatistics,
)
from dd_tasks.types import Reading

TARGETS_N = torch.tensor([0, 2, 2, 1])


def views(step: int, side: int = tiny.SIDE) -> Tensor:
    return tiny.pixels(4, step, side) * (0.4 + 0.3 * step)


def inputs_of(observer: Observer, pixels_NCHW: Tensor, convolutions: bool) -> list[tuple[nn.Module, Tensor]]:
    """The matched layers with their whole inputs."""
    kinds = (nn.BatchNorm2d, nn.Conv2d) if convolutions else (nn.BatchNorm2d,)
    layers = [m for m in observer.net.modules() if type(m) in kinds]
    heard: dict[nn.Module, Tensor] = {}
    handles = [m.register_forward_hook(lambda m, inputs, _: heard.__setitem__(m, inputs[0])) for m in layers]
    observer.net(pixels_NCHW)
    for handle in handles:
        handle.remove()
    return [(m, heard[m]) for m in layers]


def own_of(input_NCHW: Tensor) -> Tensor:
    """own_3C of a batch: mean, mean of the samples' variances, variance over samples and positions together."""
    channels_CP = input_NCHW.permute(1, 0, 2, 3).flatten(1)
    within = [sample.flatten(1).var(1, correction=0) for sample in input_NCHW]
    return torch.stack([channels_CP.mean(1), sum(within) / len(within), channels_CP.var(1, correction=0)])


def averaged(history: list[Tensor], momentum: float) -> Tensor:
    value = history[0]
    for current in history[1:]:
        value = momentum * value + (1 - momentum) * current
    return value


def distance(one: Tensor, other: Tensor) -> Tensor:
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) ** 0.5


def literal(term: SmoothedStatistics, observer: Observer, owns: list[Tensor], targets: list[int]) -> Tensor:
    """The term for layers whose (averaged) statistics are owns_L3C."""
    modules = [m for m in observer.net.modules() if type(m) in (nn.BatchNorm2d, nn.Conv2d)]
    known = list(zip(modules, observer.statistics, strict=True))
    known = [(m, s) for m, s in known if term.convolutions or type(m) is nn.BatchNorm2d]
    total = torch.zeros(())
    for i, ((module, real), (mean, within, whole)) in enumerate(zip(known, owns, strict=True)):
        if type(module) is nn.BatchNorm2d:
            overall = distance(mean, module.running_mean) + distance(whole, module.running_var)
        else:
            overall = distance(mean, real.mean_C) + distance(within, real.variance_C)
        class_mean = sum(real.mean_KC[k] for k in targets) / len(targets)
        class_variance = sum(real.variance_KC[k] for k in targets) / len(targets)
        by_class = distance(mean, class_mean) + distance(within, class_variance)
        total = total + (term.first_layer if i == 0 else 1) * 0.5 * (overall + by_class)
    return term.weight * total


TERMS = [
    SmoothedStatistics(),
    SmoothedStatistics(convolutions=False),
    SmoothedStatistics(weight=0.3, momentum=0.5, first_layer=1.0),
    SmoothedStatistics(momentum=0.0),
]


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("architecture", ["convnet2_bn_w4", "thin_resnet4_w4"])
def test_the_statistics_term_is_its_formula_at_every_step(term, architecture):
    observer = tiny.observer(0, architecture)
    loss = term.convene(tiny.studio(observer))
    history: list[list[Tensor]] = []
    for step in range(4):
        history.append([own_of(x) for _, x in inputs_of(observer, views(step), term.convolutions)])
        owns = [averaged(list(of_layer), term.momentum) for of_layer in zip(*history, strict=True)]
        value = loss(observer, observer.read(views(step), moments=True), TARGETS_N)
        torch.testing.assert_close(value, literal(term, observer, owns, TARGETS_N.tolist()), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("term", TERMS[:2])
def test_the_gradient_is_the_current_batchs_at_the_averages_value(term):
    observer = tiny.observer()
    loss = term.convene(tiny.studio(observer))
    earlier = [own_of(x) for _, x in inputs_of(observer, views(0), term.convolutions)]
    loss(observer, observer.read(views(0), moments=True), TARGETS_N)
    pixels_NCHW = views(1).requires_grad_()
    (found,) = torch.autograd.grad(loss(observer, observer.read(pixels_NCHW, moments=True), TARGETS_N), pixels_NCHW)

    pixels_NCHW = views(1).requires_grad_()
    current = [own_of(x) for _, x in inputs_of(observer, pixels_NCHW, term.convolutions)]
    values = [averaged([a, b.detach()], term.momentum).requires_grad_() for a, b in zip(earlier, current, strict=True)]
    slopes = torch.autograd.grad(literal(term, observer, values, TARGETS_N.tolist()), values)
    (expected,) = torch.autograd.grad(current, pixels_NCHW, slopes)
    assert expected.abs().max() > 1e-5
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-7)


def patches_of(observer: Observer, pixels_NCHW: Tensor) -> list[Tensor]:
    """own_2P of a batch at every convolution: means over samples of their patches' mean and variance."""
    inputs = [x for m, x in inputs_of(observer, pixels_NCHW, convolutions=True) if type(m) is nn.Conv2d]
    return [sum(map(literal_patches, input_NCHW)) / len(input_NCHW) for input_NCHW in inputs]


def literal_of_patches(term: PatchStatistics, observer: Observer, owns: list[Tensor], targets: list[int]) -> Tensor:
    """The term for convolutions whose (averaged) statistics are owns_L2P."""
    total = torch.zeros(())
    for i, (real, (mean, variance)) in enumerate(zip(observer.patches, owns, strict=True)):
        class_mean = sum(real.mean_KC[k] for k in targets) / len(targets)
        class_variance = sum(real.variance_KC[k] for k in targets) / len(targets)
        overall = distance(mean, real.mean_C) + distance(variance, real.variance_C)
        by_class = distance(mean, class_mean) + distance(variance, class_variance)
        total = total + (term.first_layer if i == 0 else 1) * 0.5 * (overall + by_class)
    return term.weight * total


def seeing(side: int) -> Observer:
    """An observer with maps of this side, and of half of it."""
    observer = tiny.observer(0, "thin_resnet4_w4")
    real = [(tiny.pixels(6, 200, side), tiny.labels(6))]
    return replace(observer, patches=measure(observer.net, real, tiny.CLASSES, patches=True)[0])


@pytest.mark.parametrize("side", [5, 20])  # a position a patch; patches that overlap
@pytest.mark.parametrize("term", [PatchStatistics(), PatchStatistics(weight=0.3, momentum=0.5, first_layer=1.0)])
def test_the_patches_term_is_its_formula_at_every_step(term, side):
    observer = seeing(side)
    loss = term.convene(tiny.studio(observer))
    history: list[list[Tensor]] = []
    for step in range(2):
        history.append(patches_of(observer, views(step, side)))
        owns = [averaged(list(of_layer), term.momentum) for of_layer in zip(*history, strict=True)]
        value = loss(observer, observer.read(views(step, side), patches=True), TARGETS_N)
        expected = literal_of_patches(term, observer, owns, TARGETS_N.tolist())
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("side", [5, 20])
def test_the_gradient_of_patches_is_the_current_batchs_at_the_averages_value(side):
    observer, term = seeing(side), PatchStatistics()
    loss = term.convene(tiny.studio(observer))
    loss(observer, observer.read(views(0, side), patches=True), TARGETS_N)
    pixels_NCHW = views(1, side).requires_grad_()
    (found,) = torch.autograd.grad(loss(observer, observer.read(pixels_NCHW, patches=True), TARGETS_N), pixels_NCHW)

    earlier, pixels_NCHW = patches_of(observer, views(0, side)), views(1, side).requires_grad_()
    current = patches_of(observer, pixels_NCHW)
    values = [averaged([a, b.detach()], term.momentum).requires_grad_() for a, b in zip(earlier, current, strict=True)]
    slopes = torch.autograd.grad(literal_of_patches(term, observer, values, TARGETS_N.tolist()), values)
    (expected,) = torch.autograd.grad(current, pixels_NCHW, slopes)
    assert expected.abs().max() > 1e-5
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


def test_patches_of_the_real_data_are_at_no_distance_and_moved_ones_are():
    observer, term, pixels_NCHW = tiny.observer(), PatchStatistics(weight=1.0), tiny.pixels(24, seed=200)
    own, moved = (
        term.convene(tiny.studio(observer))(observer, observer.read(x, patches=True), tiny.labels(24))
        for x in (pixels_NCHW, pixels_NCHW.roll(3, 2))
    )
    assert own < 1e-3 < 0.1 < moved


def test_patches_that_were_not_measured_are_named():
    observer = replace(tiny.observer(), patches=())
    loss = PatchStatistics().convene(tiny.studio(observer))
    with pytest.raises(InputError, match="needs statistics of patches, and convnet2_bn_w4 has none"):
        loss(observer, observer.read(views(0), patches=True), TARGETS_N)


@pytest.mark.parametrize("term", [BatchNormMatching(), BatchNormMatching(weight=0.3, first_layer=1.0)])
@pytest.mark.parametrize("architecture", ["convnet2_bn_w4", "thin_resnet4_w4"])
def test_batchnorm_matching_is_its_formula_and_remembers_nothing(term, architecture):
    observer = tiny.observer(0, architecture)
    loss = term.convene(tiny.studio(observer))
    for step in (2, 0, 1):
        expected = torch.zeros(())
        for i, (layer, input_NCHW) in enumerate(inputs_of(observer, views(step), convolutions=False)):
            mean, _, whole = own_of(input_NCHW)
            gap = distance(mean, layer.running_mean) + distance(whole, layer.running_var)
            expected = expected + (term.first_layer if i == 0 else 1) * gap
        value = loss(observer, observer.read(views(step), moments=True), TARGETS_N)
        torch.testing.assert_close(value, term.weight * expected, rtol=1e-4, atol=1e-6)


def pair(seed: int = 0) -> tuple[nn.Module, Tensor, Tensor, Reading]:
    """A network, three views and five real images of class 2, and the reading of the views beside theirs."""
    net = tiny.observer(seed, "convnet2_w4").net.requires_grad_()
    own_NCHW, real_MCHW = tiny.pixels(3, 1).requires_grad_(), tiny.pixels(5, 2)
    weights = tuple(m.weight for m in net.modules() if isinstance(m, nn.Conv2d))
    body, last = net[:1].append(net[1].features).append(nn.Flatten()), net[1].classifier
    own_NE, real_ME = body(own_NCHW), body(real_MCHW)
    real = Reading(last(real_ME), features_NE=real_ME)
    return net, own_NCHW, real_MCHW, Reading(last(own_NE), features_NE=own_NE, weights=weights, real=real)


@pytest.mark.parametrize("distance", ["squared", "l1"])
def test_feature_mean_is_the_distance_of_the_mean_features(distance):
    _, own_NCHW, _, reading = pair()
    value = FeatureMean(0.5, distance).convene(tiny.studio())(tiny.observer(), reading, torch.tensor([2, 2, 2]))
    own, real = (sum(rows) / len(rows) for rows in (reading.features_NE, reading.real.features_NE))
    gaps = [(a - b) ** 2 if distance == "squared" else abs(a - b) for a, b in zip(own, real, strict=True)]
    torch.testing.assert_close(value, 0.5 * sum(gaps))
    assert torch.autograd.grad(value, own_NCHW)[0].abs().max() > 0


@pytest.mark.parametrize("distance", ["squared", "l1"])
def test_gradient_matching_is_the_distance_of_gradients_and_differentiates_twice(distance):
    net, own_NCHW, real_MCHW, reading = pair()
    value = GradientMatching(2.0, distance).convene(tiny.studio())(tiny.observer(), reading, torch.tensor([2, 2, 2]))

    def literal(pixels_NCHW: Tensor) -> Tensor:
        def left(x_NCHW: Tensor) -> tuple[Tensor, ...]:
            loss = -sum(row.log_softmax(0)[2] for row in net(x_NCHW)) / len(x_NCHW)
            return torch.autograd.grad(loss, reading.weights, create_graph=True)

        total = torch.zeros(())
        for own, real in zip(left(pixels_NCHW), left(real_MCHW), strict=True):
            gap = own - real.detach()
            total = total + ((gap**2).sum() if distance == "squared" else gap.abs().sum())
        return 2.0 * total

    torch.testing.assert_close(value, literal(own_NCHW), rtol=1e-4, atol=1e-7)
    (slope,) = torch.autograd.grad(value, own_NCHW)
    again_NCHW = own_NCHW.detach().requires_grad_()
    (expected,) = torch.autograd.grad(literal(again_NCHW), again_NCHW)
    torch.testing.assert_close(slope, expected, rtol=1e-3, atol=1e-7)
    assert slope.abs().max() > 0


def test_the_average_does_not_start_at_zero():
    observer = tiny.observer()
    smoothed, plain = (SmoothedStatistics(momentum=m).convene(tiny.studio(observer)) for m in (0.8, 0.0))
    reading = observer.read(views(0), moments=True)
    for _ in range(3):
        torch.testing.assert_close(smoothed(observer, reading, TARGETS_N), plain(observer, reading, TARGETS_N))


def test_nothing_leaks_from_one_panel_to_the_next():
    observer, term = tiny.observer(), SmoothedStatistics()
    first, second = (observer.read(views(step), moments=True) for step in (0, 1))
    alone = term.convene(tiny.studio(observer))(observer, second, TARGETS_N)
    panel = term.convene(tiny.studio(observer))
    panel(observer, first, TARGETS_N)
    assert not torch.isclose(panel(observer, second, TARGETS_N), alone)
    assert torch.equal(term.convene(tiny.studio(observer))(observer, second, TARGETS_N), alone)


def test_each_observer_has_an_average_of_its_own():
    observers, term = (tiny.observer(0), tiny.observer(1)), SmoothedStatistics()
    together, alone = term.convene(tiny.studio(*observers)), term.convene(tiny.studio(*observers))
    for step in range(3):
        together(observers[0], observers[0].read(views(step + 5), moments=True), TARGETS_N)
        reading = observers[1].read(views(step), moments=True)
        assert torch.equal(together(observers[1], reading, TARGETS_N), alone(observers[1], reading, TARGETS_N))


def test_a_batch_that_is_the_real_data_is_at_no_distance_from_its_convolutions():
    observer, pixels_NCHW, labels_N = tiny.observer(), tiny.pixels(24, seed=200), tiny.labels(24)
    every = SmoothedStatistics(weight=1.0, first_layer=1.0)
    whole = every.convene(tiny.studio(observer))(observer, observer.read(pixels_NCHW, moments=True), labels_N)
    norms = SmoothedStatistics(weight=1.0, first_layer=1.0, convolutions=False)
    by_norms = norms.convene(tiny.studio(observer))(observer, observer.read(pixels_NCHW, moments=True), labels_N)
    torch.testing.assert_close(whole, by_norms, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_cross_entropy_is_the_weighted_mean_of_minus_log_probability(weight):
    observer = tiny.observer()
    reading = observer.read(views(0))
    rows = zip(reading.logits_NK.tolist(), TARGETS_N.tolist(), strict=True)
    expected = [math.log(sum(map(math.exp, row))) - row[k] for row, k in rows]
    value = CrossEntropy(weight).convene(tiny.studio(observer))(observer, reading, TARGETS_N)
    assert value.item() == pytest.approx(weight * sum(expected) / 4, rel=1e-5)


def test_only_statistics_need_moments():
    assert SmoothedStatistics().needs_moments and BatchNormMatching().needs_moments
    assert not CrossEntropy().needs_moments and not PatchStatistics().needs_moments


def test_only_patches_need_patches():
    terms = (CrossEntropy, BatchNormMatching, SmoothedStatistics, FeatureMean, GradientMatching, PatchStatistics)
    assert [term for term in terms if term().needs_patches] == [PatchStatistics]
