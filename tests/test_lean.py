"""Rewritten networks compute the same."""

import copy

import pytest
import tiny
import torch
from timm.layers import BatchNormAct2d, ScaledStdConv2d
from torch import Tensor, nn

from dd_tasks import winograd
from dd_tasks.compiling import has_compiler
from dd_tasks.instance_norm import NormReluPool
from dd_tasks.lean import Averaged, Halved, Scaled, Stem, fused, lean, quick
from dd_tasks.networks import Shape, build
from dd_tasks.statistics import watched


def settled(net: nn.Module) -> nn.Module:
    """With running statistics that are not those it began with."""
    rng = tiny.generator()
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.uniform_(-1, 1, generator=rng), norm.running_var.uniform_(0.5, 2, generator=rng)
    return net.eval().requires_grad_(False)


def close(found_NK: Tensor, expected_NK: Tensor) -> None:
    torch.testing.assert_close(found_NK, expected_NK, rtol=1e-3, atol=1e-4)


def joined(net: nn.Module) -> int:
    return [type(module) for module in net.modules()].count(NormReluPool)


def said(net: nn.Module, pixels_NCSS: Tensor) -> tuple[Tensor, Tensor]:
    """The logits, and a gradient by the pixels."""
    pixels_NCSS.requires_grad_()
    logits_NK = net(pixels_NCSS)
    return logits_NK, *torch.autograd.grad(logits_NK.square().sum(), pixels_NCSS)


@pytest.mark.parametrize("side", [16, 15])
@pytest.mark.parametrize("architecture", ["thin_vgg_w6", "thin_vgg_w32", "convnet3_bn_w32", "thin_resnet6_w8"])
def test_a_lean_network_computes_the_same(architecture, side):
    net = settled(build(architecture, Shape(3, side)))
    twin = lean(net)
    for theirs, own in zip(*(said(judge, tiny.pixels(40, side=side)) for judge in (net, twin)), strict=True):
        close(own, theirs)
    kinds = [type(m) for m in twin.modules()]
    assert Scaled in kinds and kinds.count(Stem) == 1 and nn.BatchNorm2d not in kinds
    assert (Halved in kinds) == ("vgg" in architecture) and (Averaged in kinds) == ("convnet" in architecture)
    assert (winograd.Frozen in kinds) == (architecture != "thin_vgg_w6" and has_compiler())
    assert [type(m) for m in watched(twin)].count(winograd.Frozen) == kinds.count(winograd.Frozen)
    assert len(watched(twin)) == len(watched(net))
    assert nn.BatchNorm2d in [type(m) for m in net.modules()]


def test_a_lean_network_of_another_device_keeps_its_convolutions():
    with torch.device("meta"):
        twin = lean(build("thin_vgg_w32", Shape(3, 16)))
    assert not any(isinstance(module, winograd.Frozen | Stem) for module in twin.modules())


@pytest.mark.parametrize("architecture", ["convnet3", "convnet3_bn_w128"])
def test_a_quick_network_is_the_same_by_the_same_weights(architecture):
    net = build(architecture, Shape(tiny.CLASSES, tiny.SIDE))
    twin, other = quick(net), copy.deepcopy(net)
    kinds = [type(module) for module in twin.modules() if isinstance(module, nn.Conv2d | winograd.Convolution)]
    assert kinds.count(winograd.Convolution) == 2 and not any(isinstance(m, nn.AvgPool2d) for m in twin.modules())
    assert joined(twin) == 3 * (architecture == "convnet3" and has_compiler())
    assert {id(p) for p in twin.parameters()} == {id(p) for p in net.parameters()}
    pixels_NCSS = tiny.pixels(4)
    for made in (twin, other):
        made.train()(pixels_NCSS).square().sum().backward()
    for one, expected in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.grad, expected.grad, rtol=1e-3, atol=1e-3)
    for one, expected in zip(net.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", [18, 16])
@pytest.mark.parametrize(
    ("architecture", "norms"),
    [("thin_resnet6_w16", 0), ("convnet3_bn_w32", 0), ("convnet3_w32", 0), ("densenet121", 62), ("resnet10t", 0)],
)
def test_a_fused_network_says_the_same(architecture, norms, side):
    net = settled(build(architecture, Shape(3, side))).to(memory_format=torch.channels_last)
    twin, pixels_NCSS = fused(net), tiny.pixels(9, side=side).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        close(twin(pixels_NCSS), net(pixels_NCSS))
    kinds = [type(module) for module in twin.modules()]
    assert kinds.count(nn.BatchNorm2d) == norms and (winograd.Frozen in kinds) == has_compiler()
    assert joined(twin) == 3 * (architecture == "convnet3_w32" and has_compiler())


class Residual(nn.Module):
    """ReLUs of what something else reads too, of what no module made, and twice the same; a module of two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.alone, self.twice, self.once = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.ReLU(), nn.ReLU()
        self.pair = nn.CosineSimilarity()

    def forward(self, images_NCHW: Tensor) -> Tensor:
        made_NCHW = self.conv(images_NCHW)
        added_NCHW = self.twice(made_NCHW) + made_NCHW + self.once(images_NCHW - 0.5)
        likeness_N1HW = self.pair(made_NCHW, added_NCHW)[:, None]
        return self.twice(added_NCHW) + likeness_N1HW + self.alone(made_NCHW * 2)


@pytest.mark.parametrize(("net", "overwriting"), [(Residual(), 0), (build("convnet3_bn_w8", Shape(3, 16)), 3)])
def test_only_what_nothing_else_reads_is_overwritten(net, overwriting):
    twin, pixels_NCSS = fused(settled(net)), tiny.pixels(2)
    with torch.no_grad():
        close(twin(pixels_NCSS), net(pixels_NCSS))
    assert sum(module.inplace for module in twin.modules() if isinstance(module, nn.ReLU)) == overwriting


class Shared(nn.Module):
    """A convolution before two norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.other = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        return self.other(self.conv(self.one(self.conv(images_NCHW))))


class Fickle(nn.Module):
    """Another for other images: of no one graph."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        made_NCHW: Tensor = self.norm(self.conv(images_NCHW))
        return made_NCHW if images_NCHW.mean() > 0.1 else -made_NCHW


@pytest.mark.parametrize("net", [Shared(), Fickle()])
def test_norms_that_cannot_join_a_convolution_stay(net):
    twin, pixels_NCSS = fused(settled(net)), tiny.pixels(2)
    for shown_NCSS in (pixels_NCSS, pixels_NCSS / 100):
        close(twin(shown_NCSS), net(shown_NCSS))
    assert [type(module) for module in twin.modules()].count(nn.BatchNorm2d) == len([*net.modules()]) - 2


@pytest.mark.parametrize("rewritten", [lean, fused, quick])
def test_what_inherits_from_torchs_modules_stays(rewritten):
    """It computes something else: an activation after the norm, a convolution of standardised weights."""
    net = settled(nn.Sequential(ScaledStdConv2d(16, 16, 3, padding=1), BatchNormAct2d(16), nn.ReLU()))
    pixels_NCSS = torch.randn(8, 16, 16, 16, generator=tiny.generator())
    assert torch.equal(rewritten(net)(pixels_NCSS), net(pixels_NCSS))
