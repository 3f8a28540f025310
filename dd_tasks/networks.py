"""Architectures by name: the small ones this field uses at 32 px, and any of torchvision's and timm's.

Every network takes pixels in [0, 1] and normalises them itself, so that observers with different normalisations can
sit on one committee. Weights travel as safetensors, never as pickles.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from dd_tasks.errors import InputError, unknown

SMALL_SIDE = 64  # up to this side the stems made for 224 px lose the image; they are replaced
Rgb = tuple[float, float, float]


class Normalise(nn.Module):
    """(pixels - mean) / std per channel; mean and std are part of the weights."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Rgb, std: Rgb) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, pixels_NCHW: Tensor) -> Tensor:
        return (pixels_NCHW - self.mean) / self.std


class ConvNet(nn.Module):
    """ConvNet-d: d blocks of conv 3x3, norm, ReLU, average pooling by 2 (Gidaris & Komodakis 2018; used since DC)."""

    def __init__(self, *, depth: int, width: int, batch_norm: bool, classes: int, side: int) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        channels = 3
        for _ in range(depth):
            norm = nn.BatchNorm2d(width) if batch_norm else nn.GroupNorm(width, width)  # GroupNorm(C, C): instance norm
            blocks += [nn.Conv2d(channels, width, 3, padding=1), norm, nn.ReLU(), nn.AvgPool2d(2)]
            channels = width
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Linear(width * (side >> depth) ** 2, classes)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        return self.classifier(self.features(images_NCHW).flatten(1))


class ThinResNet(nn.Module):
    """ResNet-(2 + 2*stages): 3x3 stem, no pool, one basic block a stage (He et al. 2016, section 4.2)."""

    def __init__(self, *, stages: int, width: int, classes: int) -> None:
        super().__init__()
        from torchvision.models.resnet import BasicBlock

        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        blocks: list[nn.Module] = []
        inner = width
        for stage in range(stages):
            outer, stride = width << stage, 1 if stage == 0 else 2
            shortcut = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))
            blocks.append(BasicBlock(inner, outer, stride, shortcut if stride > 1 else None))
            inner = outer
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(inner, classes)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        return self.classifier(self.blocks(self.stem(images_NCHW)).mean((2, 3)))


class ThinVGG(nn.Module):
    """VGG with BatchNorm (Simonyan & Zisserman 2015): one conv before the first max pooling, two before each other."""

    def __init__(self, *, width: int, classes: int) -> None:
        super().__init__()

        def conv(inner: int, outer: int) -> list[nn.Module]:
            return [nn.Conv2d(inner, outer, 3, padding=1, bias=False), nn.BatchNorm2d(outer), nn.ReLU()]

        w = width
        self.features = nn.Sequential(
            *conv(3, w), nn.MaxPool2d(2), *conv(w, 2 * w), *conv(2 * w, 2 * w), nn.MaxPool2d(2),
            *conv(2 * w, 4 * w), *conv(4 * w, 4 * w), nn.MaxPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Linear(4 * w, classes)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        return self.classifier(self.features(images_NCHW).amax((2, 3)))


@dataclass(frozen=True)
class Shape:
    """What a network is built for: K classes of side x side pixels, and the data's channel mean and std."""

    classes: int
    side: int
    mean: Rgb = (0.5, 0.5, 0.5)
    std: Rgb = (0.25, 0.25, 0.25)


Builder = Callable[[Shape], nn.Module]
CONVNET = re.compile(r"convnet(?P<depth>[1-6])(?P<bn>_bn)?(_w(?P<width>[1-9]\d{0,3}))?")
THIN_RESNET = re.compile(r"thin_resnet(?P<depth>[468]|10)_w(?P<width>[1-9]\d{0,3})")
THIN_VGG = re.compile(r"thin_vgg_w(?P<width>[1-9]\d{0,3})")
OURS = ("convnet3", "convnet4", "convnet3_bn_w64", "thin_resnet8_w16", "thin_vgg_w32")


def _convnet(shape: Shape, *, depth: int, width: int, batch_norm: bool) -> nn.Module:
    if shape.side >> depth < 1:
        raise InputError(f"convnet{depth} halves the image {depth} times: side {shape.side} is below {2**depth}")
    return ConvNet(depth=depth, width=width, batch_norm=batch_norm, classes=shape.classes, side=shape.side)


def _registry(shape: Shape, *, make: Callable[..., nn.Module]) -> nn.Module:
    net = make(num_classes=shape.classes)
    if shape.side <= SMALL_SIDE:
        shrink_stem(net)
    return net


def shrink_stem(net: nn.Module) -> None:
    """Make a stem for 224 px fit 32 px (He et al. 2016, section 4.2): first conv 3x3 with stride 1, first pool gone."""
    for path, module in list(net.named_modules()):
        if isinstance(module, nn.Conv2d) and module.in_channels == 3:
            if module.stride != (1, 1):
                stem = nn.Conv2d(3, module.out_channels, 3, 1, 1, bias=module.bias is not None)
                net.set_submodule(path, stem)
            break
    for path, module in list(net.named_modules()):
        if isinstance(module, nn.MaxPool2d):
            net.set_submodule(path, nn.Identity())
            break


def builder(name: str) -> Builder:
    """The maker of an architecture: one of ours, `torchvision/NAME`, `timm/NAME`, or NAME looked up in that order.

    Ours are `convnetD[_bn][_wW]` (default width 128, instance norm unless `_bn`), `thin_resnetD_wW` (4, 6, 8, 10
    layers) and `thin_vgg_wW`. InputError for a name that nobody knows.
    """
    if match := CONVNET.fullmatch(name):
        return partial(
            _convnet, depth=int(match["depth"]), width=int(match["width"] or 128), batch_norm=bool(match["bn"])
        )
    if match := THIN_RESNET.fullmatch(name):
        stages, width = (int(match["depth"]) - 2) // 2, int(match["width"])
        return lambda shape: ThinResNet(stages=stages, width=width, classes=shape.classes)
    if match := THIN_VGG.fullmatch(name):
        width = int(match["width"])
        return lambda shape: ThinVGG(width=width, classes=shape.classes)
    return partial(_registry, make=_registered(name))


def _registered(name: str) -> Callable[..., nn.Module]:
    import torchvision.models as tv

    library, _, bare = name.rpartition("/")
    in_torchvision = tv.list_models(module=tv)
    if library in ("", "torchvision") and bare in in_torchvision:
        return partial(tv.get_model, bare, weights=None)
    import timm

    in_timm = timm.list_models()
    if library in ("", "timm") and bare in in_timm:
        return partial(timm.create_model, bare, pretrained=False)
    raise unknown("architecture", name, (*OURS, *in_torchvision, *in_timm), (*OURS, "any of torchvision's or timm's"))


def build(name: str, shape: Shape) -> nn.Module:
    """A network with fresh weights (from torch's global generator): pixels_NCHW in [0, 1] -> logits_NK."""
    return nn.Sequential(Normalise(shape.mean, shape.std), builder(name)(shape))


def with_features(net: nn.Module, pixels_NCHW: Tensor) -> tuple[Tensor, Tensor]:
    """logits_NK, and features_NE: what the last linear layer takes in. LookupError where there is none."""
    linear = [m for m in net.modules() if isinstance(m, nn.Linear)]
    if not linear:
        raise LookupError("has no linear layer to embed by")
    heard: list[Tensor] = []
    handle = linear[-1].register_forward_pre_hook(lambda _, inputs: heard.append(inputs[0]))
    try:
        logits_NK = net(pixels_NCHW)
    finally:
        handle.remove()
    return logits_NK, heard[0]
