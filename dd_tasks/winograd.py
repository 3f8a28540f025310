"""3x3 convolutions with a quarter of the multiplications, for processors: F(4x4, 3x3) of Lavin & Gray 2016.

Of each 4 x 4 pixels of the output the 6 x 6 of the input that they come from are transformed, multiplied by the
transformed weights as 36 matrices, and transformed back. The same in exact arithmetic; in float32 as near as 1e-5 of
the largest output. Deterministic. GPUs have kernels of their own for this.

Shape letters: N images, C and O channels in and out, H x W pixels, T tiles of 4 x 4 pixels, 36 = 6 x 6.
"""

from collections.abc import Callable, Iterator
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = 64  # with fewer, transforming takes longer than it saves
FROZEN = 32  # the same where weights are transformed once, and have no gradient; then also
TILES = 40  # of a batch, with fewer
CACHED = 3 * 2**19  # numbers of transformed tiles, in and out, that are done together, so that they stay in the cache
SHAPES = 64  # of parts, for each of which transforms are compiled

# Torch keeps compiled graphs on disk by the names of these operations: another name wherever one of them changes.
KEPT_AS = "retort_3"
Lines = tuple[Tensor, ...]


def _in(d: Lines) -> Lines:
    """Six lines of the input, transformed."""
    evens, odds, even, odd = d[4] - 4 * d[2], d[3] - 4 * d[1], d[4] - d[2], 2 * (d[3] - d[1])
    return (
        4 * d[0] - 5 * d[2] + d[4], evens + odds, evens - odds, even + odd, even - odd, 4 * d[1] - 5 * d[3] + d[5]
    )  # fmt: skip


def _out(m: Lines) -> Lines:
    """Four lines of the output from six."""
    one, other, two, four = m[1] + m[2], m[1] - m[2], m[3] + m[4], m[3] - m[4]
    return m[0] + one + two, other + 2 * four, one + 4 * two, other + 8 * four + m[5]


def _back(y: Lines) -> Lines:
    """Six lines from four: the gradient of `_out`."""
    evens, odds, even, odd = y[0] + y[2], y[1] + y[3], y[0] + 4 * y[2], 2 * y[1] + 8 * y[3]
    return y[0], evens + odds, evens - odds, even + odd, even - odd, y[3]


def _grown(g: Lines) -> Lines:
    """Six lines of the weights from three."""
    outer, all_, other = (g[0] + g[2]) / 6, g[1] / 6, g[0] / 24 + g[2] / 6
    return g[0] / 4, -outer - all_, all_ - outer, other + all_ / 2, other - all_ / 2, g[2]


def _shrunk(u: Lines) -> Lines:
    """Three lines from six: the gradient of `_grown`."""
    one, two = (u[1] + u[2]) / 6, (u[3] + u[4]) / 6
    return u[0] / 4 - one + two / 4, (u[2] - u[1]) / 6 + (u[3] - u[4]) / 12, two - one + u[5]


def _weight_tiles(weight_O33C: Tensor, turned: bool) -> Tensor:
    """weights_36OC; `turned`, of the convolution that takes the output's gradient to the input's."""
    lines = weight_O33C.flip(1, 2) if turned else weight_O33C
    rows_6O = torch.stack(_grown(lines.unbind(1)))  # 6, O, 3, C
    return torch.stack(_grown(rows_6O.unbind(2)), 1).flatten(0, 1)


def _weight_pixels(sums_36OC: Tensor) -> Tensor:
    """weight_O33C, from the gradients of the transformed weights."""
    rows_3 = torch.stack(_shrunk(sums_36OC.unflatten(0, (6, 6)).unbind(0)))  # 3, 6, O, C
    return torch.stack(_shrunk(rows_3.unbind(1)), 1).permute(2, 0, 1, 3).contiguous()


def _input_tiles(images_NHWC: Tensor) -> Tensor:
    """tiles_36TC, with a border of zeros about each image."""
    height, width, channels = images_NHWC.shape[1:]
    padded = F.pad(images_NHWC, (0, 0, 1, 1, 1, 1))
    rows_6N = torch.stack(_in(tuple(padded[:, i : i + height - 3 : 4] for i in range(6))))
    columns = tuple(rows_6N[:, :, :, j : j + width - 3 : 4] for j in range(6))
    return torch.stack(_in(columns), 1).view(36, -1, channels)


def _output_pixels(tiles_36TO: Tensor, made_NHWO: Tensor) -> None:
    """Written into `made_NHWO`."""
    n, height, width = made_NHWO.shape[:3]
    tiles = tiles_36TO.view(6, 6, n, height // 4, width // 4, -1)
    rows = torch.stack(_out(tiles.unbind(0)), 3)  # 6, N, H/4, 4, W/4, O
    made_NHWO.copy_(torch.stack(_out(rows.unbind(0)), 4).view(n, height, width, -1))


def _gradient_tiles(gradient_NHWO: Tensor) -> Tensor:
    """tiles_36TO of the output's gradient."""
    n, height, width, channels = gradient_NHWO.shape
    pixels = gradient_NHWO.view(n, height // 4, 4, width // 4, 4, channels)
    rows_6N = torch.stack(_back(pixels.unbind(2)))  # 6, N, H/4, W/4, 4, O
    return torch.stack(_back(rows_6N.unbind(4)), 1).view(36, -1, channels)


@cache
def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Not before it is asked for: what compiles takes seconds to import."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, SHAPES)
    return torch.compile(function, dynamic=False)


def _convolved(images_NHWC: Tensor, weights_36CO: Tensor, made_NHWO: Tensor) -> None:
    """Written into `made_NHWO`."""
    _output_pixels(_input_tiles(images_NHWC) @ weights_36CO, made_NHWO)


def _weighed(images_NHWC: Tensor, gradient_NHWO: Tensor, sums_36OC: Tensor) -> None:
    """The gradients of the transformed weights, added to `sums_36OC`."""
    sums_36OC.baddbmm_(_gradient_tiles(gradient_NHWO).mT, _input_tiles(images_NHWC))


def _parts(images_NHWC: Tensor, outer: int) -> Iterator[slice]:
    """Some images at a time: as many parts as it takes, or up to twice as many where these are alike."""
    n, height, width, inner = images_NHWC.shape
    numbers = height * width * (inner + outer) * 9 // 4
    least = max(1, -(-n * numbers // CACHED))
    parts = next((k for k in range(least, min(2 * least, n) + 1) if n % k == 0), least)
    size = -(-n // parts)
    return (slice(start, start + size) for start in range(0, n, size))


def _channels_last(images_NCHW: Tensor) -> Tensor:
    return images_NCHW.permute(0, 2, 3, 1).contiguous()


@torch.library.custom_op(f"{KEPT_AS}::convolve", mutates_args=(), device_types="cpu")
def convolve(images_NCHW: Tensor, weight_OC33: Tensor) -> Tensor:
    """float32 convolution in channels-last, with a border of one zero. H and W are multiples of 4."""
    return _by_tiles(images_NCHW, transformed(weight_OC33).mT)


@torch.library.custom_op(f"{KEPT_AS}::image_gradient", mutates_args=(), device_types="cpu")
def image_gradient(gradient_NOHW: Tensor, weight_OC33: Tensor) -> Tensor:
    """gradient_NCHW of the images."""
    return _by_tiles(gradient_NOHW, transformed(weight_OC33, turned=True))


@torch.library.custom_op(f"{KEPT_AS}::convolve_frozen", mutates_args=(), device_types="cpu")
def convolve_frozen(images_NCHW: Tensor, there_36CO: Tensor, back_36OC: Tensor) -> Tensor:
    """The same by weights that were transformed before: for the images, and for their gradient."""
    return _by_tiles(images_NCHW, there_36CO)


def transformed(weight_OC33: Tensor, *, turned: bool = False) -> Tensor:
    """weights_36OC; `turned`, of the convolution that takes the output's gradient to the input's."""
    return _compiled(_weight_tiles)(_channels_last(weight_OC33), turned)


def _by_tiles(images_NCHW: Tensor, weights_36CO: Tensor) -> Tensor:
    images_NHWC = _channels_last(images_NCHW)
    made_NHWO = images_NHWC.new_empty(*images_NHWC.shape[:3], weights_36CO.shape[2])
    for part in _parts(images_NHWC, weights_36CO.shape[2]):
        _compiled(_convolved)(images_NHWC[part], weights_36CO, made_NHWO[part])
    return made_NHWO.permute(0, 3, 1, 2)


@torch.library.custom_op(f"{KEPT_AS}::weight_gradient", mutates_args=(), device_types="cpu")
def weight_gradient(images_NCHW: Tensor, gradient_NOHW: Tensor) -> Tensor:
    """gradient_OC33 of the weights."""
    images_NHWC, gradient_NHWO = _channels_last(images_NCHW), _channels_last(gradient_NOHW)
    inner, outer = images_NHWC.shape[3], gradient_NHWO.shape[3]
    sums_36OC = images_NHWC.new_zeros(36, outer, inner)
    for part in _parts(images_NHWC, outer):
        _compiled(_weighed)(images_NHWC[part], gradient_NHWO[part], sums_36OC)
    made_O33C: Tensor = _compiled(_weight_pixels)(sums_36OC)
    return made_O33C.permute(0, 3, 1, 2)


@convolve.register_fake
def _(images_NCHW: Tensor, weight_OC33: Tensor) -> Tensor:
    n, _, height, width = images_NCHW.shape
    return images_NCHW.new_empty(n, height, width, weight_OC33.shape[0]).permute(0, 3, 1, 2)


@weight_gradient.register_fake
def _(images_NCHW: Tensor, gradient_NOHW: Tensor) -> Tensor:
    return images_NCHW.new_empty(gradient_NOHW.shape[1], 3, 3, images_NCHW.shape[1]).permute(0, 3, 1, 2)


@image_gradient.register_fake
def _(gradient_NOHW: Tensor, weight_OC33: Tensor) -> Tensor:
    n, _, height, width = gradient_NOHW.shape
    return gradient_NOHW.new_empty(n, height, width, weight_OC33.shape[1]).permute(0, 3, 1, 2)


def _remember(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: torch.autograd.function.FunctionCtx, gradient_NOHW: Tensor) -> tuple[Tensor | None, ...]:
    images_NCHW, weight_OC33 = ctx.saved_tensors  # type: ignore[attr-defined]
    to_images, to_weight = ctx.needs_input_grad  # type: ignore[attr-defined]
    return (
        image_gradient(gradient_NOHW, weight_OC33) if to_images else None,
        weight_gradient(images_NCHW, gradient_NOHW) if to_weight else None,
    )


convolve.register_autograd(_gradients, setup_context=_remember)


@convolve_frozen.register_fake
def _(images_NCHW: Tensor, there_36CO: Tensor, back_36OC: Tensor) -> Tensor:
    n, _, height, width = images_NCHW.shape
    return images_NCHW.new_empty(n, height, width, there_36CO.shape[2]).permute(0, 3, 1, 2)


def _remember_weights(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _gradient_of_images(ctx: torch.autograd.function.FunctionCtx, gradient_NOHW: Tensor) -> tuple[Tensor | None, ...]:
    there_36CO, back_36OC = ctx.saved_tensors  # type: ignore[attr-defined]
    return convolve_frozen(gradient_NOHW, back_36OC, there_36CO), None, None


convolve_frozen.register_autograd(_gradient_of_images, setup_context=_remember_weights)


class Convolution(nn.Module):
    """What another convolution does, by its weights."""

    def __init__(self, like: nn.Conv2d) -> None:
        super().__init__()
        self.like = like

    def forward(self, images_NCHW: Tensor) -> Tensor:
        if images_NCHW.shape[2] % 4 or images_NCHW.shape[3] % 4:
            return self.like(images_NCHW)
        made_NOHW = convolve(images_NCHW, self.like.weight)
        return made_NOHW if self.like.bias is None else made_NOHW + self.like.bias[:, None, None]


class Frozen(nn.Module):
    """What a convolution of frozen weights does, by weights transformed once."""

    there_36CO: Tensor
    back_36OC: Tensor

    def __init__(self, like: nn.Conv2d) -> None:
        super().__init__()
        self.like = like
        self.register_buffer("there_36CO", transformed(like.weight.detach()).mT.contiguous())
        self.register_buffer("back_36OC", transformed(like.weight.detach(), turned=True))

    def forward(self, images_NCHW: Tensor) -> Tensor:
        n, _, height, width = images_NCHW.shape
        if height % 4 or width % 4 or n * height * width < 16 * TILES:
            return self.like(images_NCHW)
        made_NOHW = convolve_frozen(images_NCHW, self.there_36CO, self.back_36OC)
        return made_NOHW if self.like.bias is None else made_NOHW + self.like.bias[:, None, None]


def is_wide(conv: nn.Conv2d, channels: int = CHANNELS) -> bool:
    """Plain, and channels enough."""
    return is_plain(conv) and min(conv.in_channels, conv.out_channels) >= channels


def is_plain(conv: nn.Conv2d) -> bool:
    """3x3 with a border of one zero and no other choices; on a processor."""
    asked = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode)
    return asked == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros") and conv.weight.device.type == "cpu"
