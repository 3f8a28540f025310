"""3x3 convolutions with a quarter of the multiplications, for processors: F(4x4, 3x3) of Lavin & Gray 2016.

Of each 4 x 4 pixels of the output the 6 x 6 of the input that they come from are transformed, multiplied by the
transformed weights as 36 matrices, and transformed back, by winograd.cpp. The same in exact arithmetic; in float32 as
near as 1e-5 of the largest output. Deterministic, with any number of threads. GPUs have kernels of their own for this.

Shape letters: N images, C and O channels in and out, H x W pixels, 36 = 6 x 6.
"""

from typing import TypeGuard

import torch
from torch import Tensor, nn

from dd_tasks.native import LANES, call, kernels, nhwc

TILES = 10  # of a batch: with fewer, it saves nothing

# Torch keeps compiled graphs on disk by the names of these operations: another name wherever one of them changes.
KEPT_AS = "retort_6"

GROWN, AS_IT_IS, TURNED = range(3)  # weights: transformed; not yet; not yet, of the output's gradient to the input's


@torch.library.custom_op(f"{KEPT_AS}::convolve", mutates_args=(), device_types="cpu")
def convolve(images_NCHW: Tensor, weight_OC33: Tensor, bias_O: Tensor | None) -> Tensor:
    """float32 convolution in channels-last, with a border of one zero. H and W are multiples of 4, C and O of LANES."""
    return _by_tiles(images_NCHW, nhwc(weight_OC33), weight_OC33.shape[0], AS_IT_IS, bias_O)


@torch.library.custom_op(f"{KEPT_AS}::image_gradient", mutates_args=(), device_types="cpu")
def image_gradient(gradient_NOHW: Tensor, weight_OC33: Tensor) -> Tensor:
    """gradient_NCHW of the images."""
    return _by_tiles(gradient_NOHW, nhwc(weight_OC33), weight_OC33.shape[1], TURNED)


@torch.library.custom_op(f"{KEPT_AS}::convolve_frozen", mutates_args=(), device_types="cpu")
def convolve_frozen(images_NCHW: Tensor, there_36CO: Tensor, back_36OC: Tensor, bias_O: Tensor | None) -> Tensor:
    """The same by weights that were transformed before: for the images, and for their gradient."""
    return _by_tiles(images_NCHW, there_36CO, there_36CO.shape[2], GROWN, bias_O)


def transformed(weight_OC33: Tensor, kind: int = AS_IT_IS) -> Tensor:
    """weights_36CO of the convolution; where TURNED, weights_36OC."""
    given = nhwc(weight_OC33)
    outer, inner = weight_OC33.shape[:2]
    rows, numbers = (outer, inner) if kind == TURNED else (inner, outer)
    made = given.new_empty(36, rows, numbers)
    call("grow", given, made, sizes=(rows, numbers, kind))
    return made


def _by_tiles(images_NCHW: Tensor, weights: Tensor, outer: int, kind: int, bias_O: Tensor | None = None) -> Tensor:
    images_NHWC = nhwc(images_NCHW)
    made_NHWO = images_NHWC.new_empty(*images_NHWC.shape[:3], outer)
    call("convolve", images_NHWC, weights, bias_O, made_NHWO, sizes=(*images_NHWC.shape, outer, kind))
    return made_NHWO.permute(0, 3, 1, 2)


@torch.library.custom_op(f"{KEPT_AS}::weight_gradient", mutates_args=(), device_types="cpu")
def weight_gradient(images_NCHW: Tensor, gradient_NOHW: Tensor) -> Tensor:
    """gradient_OC33 of the weights."""
    images_NHWC, gradient_NHWO = nhwc(images_NCHW), nhwc(gradient_NOHW)
    inner, outer = images_NHWC.shape[3], gradient_NHWO.shape[3]
    made_O33C = images_NHWC.new_empty(outer, 3, 3, inner)
    call("weigh", images_NHWC, gradient_NHWO, made_O33C, sizes=(*images_NHWC.shape, outer))
    return made_O33C.permute(0, 3, 1, 2)


@convolve.register_fake
def _(images_NCHW: Tensor, weight_OC33: Tensor, bias_O: Tensor | None) -> Tensor:
    n, _, height, width = images_NCHW.shape
    return images_NCHW.new_empty(n, height, width, weight_OC33.shape[0]).permute(0, 3, 1, 2)


@weight_gradient.register_fake
def _(images_NCHW: Tensor, gradient_NOHW: Tensor) -> Tensor:
    return images_NCHW.new_empty(gradient_NOHW.shape[1], 3, 3, images_NCHW.shape[1]).permute(0, 3, 1, 2)


@image_gradient.register_fake
def _(gradient_NOHW: Tensor, weight_OC33: Tensor) -> Tensor:
    n, _, height, width = gradient_NOHW.shape
    return gradient_NOHW.new_empty(n, height, width, weight_OC33.shape[1]).permute(0, 3, 1, 2)


def _remember(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _gradients(ctx: torch.autograd.function.FunctionCtx, gradient_NOHW: Tensor) -> tuple[Tensor | None, ...]:
    images_NCHW, weight_OC33 = ctx.saved_tensors  # type: ignore[attr-defined]
    to_images, to_weight, to_bias = ctx.needs_input_grad  # type: ignore[attr-defined]
    return (
        image_gradient(gradient_NOHW, weight_OC33) if to_images else None,
        weight_gradient(images_NCHW, gradient_NOHW) if to_weight else None,
        gradient_NOHW.sum((0, 2, 3)) if to_bias else None,
    )


convolve.register_autograd(_gradients, setup_context=_remember)


@convolve_frozen.register_fake
def _(images_NCHW: Tensor, there_36CO: Tensor, back_36OC: Tensor, bias_O: Tensor | None) -> Tensor:
    n, _, height, width = images_NCHW.shape
    return images_NCHW.new_empty(n, height, width, there_36CO.shape[2]).permute(0, 3, 1, 2)


def _remember_weights(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:3])


def _gradient_of_images(ctx: torch.autograd.function.FunctionCtx, gradient_NOHW: Tensor) -> tuple[Tensor | None, ...]:
    there_36CO, back_36OC = ctx.saved_tensors  # type: ignore[attr-defined]
    return convolve_frozen(gradient_NOHW, back_36OC, there_36CO, None), None, None, None


convolve_frozen.register_autograd(_gradient_of_images, setup_context=_remember_weights)


class Convolution(nn.Module):
    """What another convolution does, by its weights."""

    def __init__(self, like: nn.Conv2d) -> None:
        super().__init__()
        self.like = like

    def forward(self, images_NCHW: Tensor) -> Tensor:
        if not _is_worth_it(images_NCHW):
            return self.like(images_NCHW)
        return convolve(images_NCHW, self.like.weight, self.like.bias)


class Frozen(nn.Module):
    """What a convolution of frozen weights does, by weights transformed once."""

    there_36CO: Tensor
    back_36OC: Tensor

    def __init__(self, like: nn.Conv2d) -> None:
        super().__init__()
        self.like = like
        self.register_buffer("there_36CO", transformed(like.weight.detach()))
        self.register_buffer("back_36OC", transformed(like.weight.detach(), TURNED))

    def forward(self, images_NCHW: Tensor) -> Tensor:
        if not _is_worth_it(images_NCHW):
            return self.like(images_NCHW)
        return convolve_frozen(images_NCHW, self.there_36CO, self.back_36OC, self.like.bias)


def _is_worth_it(images_NCHW: Tensor) -> bool:
    n, _, height, width = images_NCHW.shape
    return height % 4 == 0 and width % 4 == 0 and n * height * width >= 16 * TILES


def is_wide(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Plain, with channels that fill vectors, where there is what convolves them."""
    if not is_plain(module):
        return False
    return not module.in_channels % LANES and not module.out_channels % LANES and kernels() is not None


def is_plain(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """A 3x3 convolution with a border of one zero and no other choices; on a processor. Nothing that inherits from it:
    timm's, say, standardise their weights first."""
    if type(module) is not nn.Conv2d or module.weight.device.type != "cpu":
        return False
    asked = module.kernel_size, module.stride, module.padding, module.dilation, module.groups, module.padding_mode
    return asked == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros")
