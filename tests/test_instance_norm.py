"""A norm of channels by themselves, a ReLU and a mean of 2 x 2 in one are the three."""

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dd_tasks.compiling import has_compiler
from dd_tasks.instance_norm import NormReluPool
from dd_tasks.lean import quick
from dd_tasks.native import kernels
from dd_tasks.networks import Shape, build


@pytest.fixture(autouse=True)
def there():
    if not has_compiler():
        pytest.skip("no C++ compiler")
    assert kernels() is not None
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def norm_of(channels: int) -> nn.GroupNorm:
    norm = nn.GroupNorm(channels, channels, eps=1e-3)
    for weights in norm.parameters():
        nn.init.normal_(weights, generator=tiny.generator())
    return norm


def gradients(made: Tensor, norm: nn.GroupNorm, images: Tensor) -> list[Tensor]:
    into = torch.randn(made.shape, generator=tiny.generator(3))
    return [made, *torch.autograd.grad(made, (images, norm.weight, norm.bias), into)]


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("shape", [(5, 16, 8, 8), (3, 144, 9, 7), (1, 64, 2, 2), (40, 80, 3, 16)])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_it_and_its_gradients_are_those_of_the_three(threads, shape, offset):
    torch.set_num_threads(threads)
    images = (torch.randn(shape, generator=tiny.generator()) + offset).requires_grad_()
    norm = norm_of(shape[1])
    expected = gradients(F.avg_pool2d(F.relu(norm(images)), 2), norm, images)
    for one, other in zip(gradients(NormReluPool(norm)(images), norm, images), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5 * (1 + offset))


def test_no_images_are_no_images():
    made = gradients(
        NormReluPool(norm := norm_of(16))(images := torch.zeros(0, 16, 4, 4, requires_grad=True)), norm, images
    )
    assert made[0].shape == (0, 16, 2, 2) and not any(each.any() for each in made)


@pytest.mark.parametrize("shape", [(7, 144, 6, 10), (300, 128, 2, 2)])
def test_all_numbers_are_the_same_with_any_number_of_threads(shape):
    images, norm = torch.randn(shape, generator=tiny.generator()).requires_grad_(), norm_of(shape[1])
    made = []
    for threads in (1, 3, 4):
        torch.set_num_threads(threads)
        made.append(gradients(NormReluPool(norm)(images), norm, images))
    assert all(torch.equal(*pair) for other in made[1:] for pair in zip(made[0], other, strict=True))


def test_a_number_that_is_none_is_passed_on():
    """What watches a training looks for it."""
    images = torch.randn(2, 16, 4, 4, generator=tiny.generator())
    images[1, 3, 2, 2] = torch.nan
    assert NormReluPool(norm_of(16))(images).isnan().nonzero()[:, :2].unique(dim=0).tolist() == [[1, 3]]


class Read(nn.Module):
    """What a ReLU made is read twice, or the mean is of 3 x 3 pixels, or there is none."""

    def __init__(self, *last: nn.Module, twice: bool = False) -> None:
        super().__init__()
        self.norm, self.relu, self.last, self.twice = nn.GroupNorm(16, 16), nn.ReLU(), nn.Sequential(*last), twice

    def forward(self, images_NCHW: Tensor) -> Tensor:
        lit_NCHW = self.relu(self.norm(images_NCHW))
        made_NCHW: Tensor = self.last(lit_NCHW)
        return made_NCHW + lit_NCHW.mean() if self.twice else made_NCHW


class Twice(nn.Module):
    """Two rows of three, of which one module is the same, or none."""

    def __init__(self, shared: type[nn.Module] | None) -> None:
        super().__init__()
        first, other = ([nn.GroupNorm(16, 16), nn.ReLU(), nn.AvgPool2d(2)] for _ in range(2))
        self.rows = nn.ModuleList(first)
        self.others = nn.ModuleList(a if type(a) is shared else b for a, b in zip(first, other, strict=True))

    def forward(self, images_NCHW: Tensor) -> Tensor:
        for module in (*self.rows, *self.others):
            images_NCHW = module(images_NCHW)
        return images_NCHW


class NormReadTwice(nn.Sequential):
    def forward(self, images_NCHW: Tensor) -> Tensor:
        norm, *others = self
        made_NCHW = seen_NCHW = norm(images_NCHW)
        for module in others:
            made_NCHW = module(made_NCHW)
        return made_NCHW + seen_NCHW.mean()


@pytest.mark.parametrize(
    ("net", "joined"),
    [
        (Read(nn.AvgPool2d(2)), True),
        (Read(nn.AvgPool2d(2), twice=True), False),
        (Read(nn.AvgPool2d(3)), False),
        (Read(nn.AvgPool2d(2, padding=1)), False),
        (Read(nn.MaxPool2d(2)), False),
        (Read(), False),
        (Twice(None), True),
        (Twice(nn.GroupNorm), False),
        (Twice(nn.ReLU), False),
        (Twice(nn.AvgPool2d), False),
        (NormReadTwice(nn.GroupNorm(16, 16), nn.ReLU(), nn.AvgPool2d(2)), False),
        (nn.Sequential(nn.GroupNorm(16, 16), nn.ReLU(), nn.AvgPool2d(2)), True),
        (nn.Sequential(nn.GroupNorm(8, 16), nn.ReLU(), nn.AvgPool2d(2)), False),
        (nn.Sequential(nn.GroupNorm(16, 16, affine=False), nn.ReLU(), nn.AvgPool2d(2)), False),
        (nn.Sequential(nn.GroupNorm(16, 16), nn.GELU(), nn.AvgPool2d(2)), False),
        (nn.Sequential(nn.GroupNorm(16, 16), nn.AvgPool2d(2)), False),
    ],
)
def test_only_those_three_in_a_row_are_joined(net, joined):
    twin, images = quick(net), torch.randn(3, 16, 8, 8, generator=tiny.generator())
    torch.testing.assert_close(twin(images), net(images))
    assert any(isinstance(module, NormReluPool) for module in twin.modules()) == joined


def test_channels_that_fill_no_vectors_and_other_devices_stay():
    for net in (build("convnet3_w8", Shape(3, 16)), build("convnet3", Shape(3, 16)).to("meta")):
        assert not any(isinstance(module, NormReluPool) for module in quick(net).modules())
