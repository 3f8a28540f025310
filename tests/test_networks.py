"""Architectures: what they take, what they give, and that nothing is fetched."""

import socket

import pytest
import torch
from torch import nn

from dd_tasks import networks
from dd_tasks.errors import InputError
from dd_tasks.networks import Shape, build, builder, shrink_stem


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a network was built over the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def logits(name: str, side: int, classes: int = 5) -> torch.Tensor:
    net = build(name, Shape(classes, side)).eval()
    with torch.no_grad():
        return net(torch.rand(2, 3, side, side))


@pytest.mark.parametrize("side", [16, 32, 64])
@pytest.mark.parametrize(
    "name",
    [
        "convnet1_w4",
        "convnet3_w4",
        "convnet3_bn_w4",
        "convnet4_w8",
        "thin_resnet4_w4",
        "thin_resnet10_w4",
        "thin_vgg_w4",
    ],
)
def test_ours_map_pixels_to_logits_at_every_side(name, side):
    out = logits(name, side)
    assert out.shape == (2, 5) and out.isfinite().all()


@pytest.mark.parametrize(
    "name",
    [
        "resnet18", "torchvision/resnet18", "shufflenet_v2_x0_5", "mobilenet_v2", "timm/resnet10t", "resnet10t",
    ],
)  # fmt: skip
def test_a_library_s_network_maps_pixels_to_logits(name):
    assert logits(name, 32, classes=3).shape == (2, 3)


def test_a_bare_name_is_looked_up_in_torchvision_before_timm():
    kinds = {name: type(builder(name)(Shape(2, 32))).__module__.split(".")[0] for name in ("resnet18", "timm/resnet18")}
    assert kinds == {"resnet18": "torchvision", "timm/resnet18": "timm"}


@pytest.mark.parametrize(
    ("name", "norm", "width", "depth"),
    [
        ("convnet3", nn.GroupNorm, 128, 3),
        ("convnet2_w8", nn.GroupNorm, 8, 2),
        ("convnet4_bn", nn.BatchNorm2d, 128, 4),
        ("convnet3_bn_w64", nn.BatchNorm2d, 64, 3),
    ],
)
def test_a_convnet_s_name_says_its_norm_width_and_depth(name, norm, width, depth):
    net = builder(name)(Shape(2, 32))
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [width] * depth
    assert sum(isinstance(m, norm) for m in net.modules()) == depth


@pytest.mark.parametrize("depth", [4, 6, 8, 10])
def test_a_thin_resnet_counts_its_layers(depth):
    net = builder(f"thin_resnet{depth}_w4")(Shape(2, 16))
    on_the_path = [m for m in net.modules() if isinstance(m, nn.Linear) or getattr(m, "kernel_size", None) == (3, 3)]
    assert len(on_the_path) == depth


@pytest.mark.parametrize(("side", "rows"), [(32, 4), (64, 8), (224, 7)])
def test_the_last_map_of_a_resnet_keeps_its_places(side, rows):
    net = builder("resnet18")(Shape(2, side)).eval()
    seen = []
    net.layer4.register_forward_hook(lambda _, __, out: seen.append(out.shape[-2:]))
    with torch.no_grad():
        net(torch.zeros(1, 3, side, side))
    assert seen == [(rows, rows)]


def test_shrinking_replaces_the_first_strided_conv_and_the_first_pool_alone():
    net = nn.Sequential(nn.Conv2d(3, 4, 7, 2, 3, bias=False), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, 2), nn.MaxPool2d(2))
    shrink_stem(net)
    stem, pool, second, last = net
    assert (stem.kernel_size, stem.stride, stem.bias) == ((3, 3), (1, 1), None)
    assert isinstance(pool, nn.Identity) and second.stride == (2, 2) and isinstance(last, nn.MaxPool2d)


def test_shrinking_leaves_a_stem_without_stride():
    net = nn.Sequential(nn.Conv2d(3, 4, 5, padding=2))
    stem = net[0]
    shrink_stem(net)
    assert net[0] is stem


def test_networks_normalise_pixels_themselves():
    shape = Shape(3, 16, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.125))
    net = build("convnet1_w4", shape).eval()
    weights = net.state_dict()
    assert weights["0.mean"].flatten().tolist() == pytest.approx(shape.mean)
    assert weights["0.std"].flatten().tolist() == pytest.approx(shape.std)
    pixels = torch.rand(2, 3, 16, 16)
    by_hand = (pixels - torch.tensor(shape.mean).view(3, 1, 1)) / torch.tensor(shape.std).view(3, 1, 1)
    assert torch.equal(net(pixels), net[1](by_hand))


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("resnet81", "'resnet18'"),
        ("convnet33", "'convnet3'"),
        ("vit_tiny_patch16_225", "'vit_tiny_patch16_224'"),
        ("timm/resnet10x", "'resnet10t'"),
        ("torchvision/resnet10t", "'resnet10t'"),
        ("convnet3_w0", "'convnet3'"),
        ("thin_resnet5_w16", "'thin_resnet8_w16'"),
        ("thin_vgg_w0", "'thin_vgg_w32'"),
    ],
)
def test_an_unknown_architecture_is_one_short_line(name, near):
    with pytest.raises(InputError) as refused:
        builder(name)
    line = str(refused.value)
    assert line.startswith(f"unknown architecture {name!r}; did you mean {near}? (choices: convnet3, ")
    assert line.endswith("any of torchvision's or timm's)") and "\n" not in line and len(line) < 250


def test_a_convnet_too_deep_for_its_side_is_refused():
    assert logits("convnet4_w4", 16).shape == (2, 5)
    with pytest.raises(InputError, match=r"^convnet5 halves the image 5 times: side 16 is below 32$"):
        build("convnet5_w4", Shape(5, 16))


def test_the_named_examples_exist():
    assert all(builder(name)(Shape(2, 16)) for name in networks.OURS)
