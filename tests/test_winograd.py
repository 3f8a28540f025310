"""Convolutions with fewer multiplications are the same convolutions."""

from types import SimpleNamespace

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dd_tasks import native, winograd
from dd_tasks.compiling import has_compiler
from dd_tasks.instance_norm import NormReluPool
from dd_tasks.lean import quick
from dd_tasks.networks import Shape, build
from dd_tasks.pieces import is_shortage


@pytest.fixture(autouse=True)
def there():
    """Without a compiler all convolutions would be plain ones."""
    if not has_compiler():
        pytest.skip("no C++ compiler")
    assert native.kernels() is not None
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-5 * expected.abs().max().item())


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(
    ("n", "inner", "outer", "height", "width"),
    [(5, 16, 48, 4, 8), (6, 96, 16, 8, 8), (1, 32, 112, 12, 4), (90, 64, 64, 16, 16), (3, 16, 16, 4, 4)],
)
def test_it_and_its_gradients_are_those_of_the_convolution(threads, n, inner, outer, height, width):
    torch.set_num_threads(threads)
    rng = tiny.generator()
    images = torch.randn(n, inner, height, width, generator=rng, requires_grad=True)
    weight = torch.randn(outer, inner, 3, 3, generator=rng, requires_grad=True)
    bias = torch.randn(outer, generator=rng, requires_grad=True)
    into = torch.randn(n, outer, height, width, generator=rng)
    expected, found = F.conv2d(images, weight, bias, padding=1), winograd.convolve(images, weight, bias)
    close(found, expected)
    for one, other in zip(
        *(torch.autograd.grad(made, (images, weight, bias), into) for made in (found, expected)), strict=True
    ):
        close(one, other)


def test_all_numbers_are_the_same_with_any_number_of_threads():
    rng = tiny.generator()
    images = torch.randn(37, 32, 8, 8, generator=rng, requires_grad=True)
    weight = torch.randn(48, 32, 3, 3, generator=rng, requires_grad=True)
    made = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        pixels = winograd.convolve(images, weight, None)
        made.append((pixels, *torch.autograd.grad(pixels.square().sum(), (images, weight))))
    assert all(torch.equal(*pair) for other in made[1:] for pair in zip(made[0], other, strict=True))


def test_no_images_are_no_images():
    images, weight = torch.zeros(0, 16, 8, 8, requires_grad=True), torch.ones(16, 16, 3, 3, requires_grad=True)
    made = winograd.convolve(images, weight, None)
    made.sum().backward()
    assert made.shape == (0, 16, 8, 8) and not weight.grad.any()


def test_a_lack_of_memory_is_one_that_is_known(monkeypatch):
    monkeypatch.setattr(native, "kernels", lambda: SimpleNamespace(convolve=lambda *_: False))
    with pytest.raises(MemoryError, match="convolve: no memory for sizes of \\(1, 4, 4, 16, 16, 1\\)") as found:
        winograd.convolve(torch.zeros(1, 16, 4, 4), torch.zeros(16, 16, 3, 3), None)
    assert is_shortage(found.value)


def test_where_it_cannot_be_built_networks_stay_as_they_are(monkeypatch, caplog, tmp_path):
    another = tmp_path / "another.cpp"
    another.write_text("#error that no compiler gets past")
    monkeypatch.setattr(native, "SOURCES", (*native.SOURCES, another))
    native.kernels.cache_clear()
    try:
        with caplog.at_level("DEBUG", "dd_tasks.native"):
            twin = quick(build("convnet3", Shape(tiny.CLASSES, tiny.SIDE)))
    finally:
        native.kernels.cache_clear()
    assert not any(isinstance(module, winograd.Convolution | NormReluPool) for module in twin.modules())
    assert "networks stay as they are" in caplog.text


def test_a_gradient_that_nobody_asks_for_is_not_made():
    images, weight = torch.randn(2, 16, 4, 4), torch.randn(32, 16, 3, 3, requires_grad=True)
    winograd.convolve(images, weight, None).sum().backward()
    assert images.grad is None and weight.grad is not None


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(128, 128, 3, stride=2, padding=1),
        nn.Conv2d(128, 128, 3),
        nn.Conv2d(128, 128, 1, padding=1),
        nn.Conv2d(128, 128, 3, padding=1, groups=2),
        nn.Conv2d(128, 128, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(128, 63, 3, padding=1),
        nn.Conv2d(3, 128, 3, padding=1),
        nn.Conv2d(128, 128, 3, padding=1, device="meta"),  # as on a GPU
    ],
)
def test_other_convolutions_stay(conv):
    twin = quick(nn.Sequential(conv))
    assert isinstance(twin[0], nn.Conv2d)


@pytest.mark.parametrize(("images", "side", "quick"), [(3, 8, True), (2, 8, False), (40, 10, False)])
def test_frozen_weights_convolve_the_same_and_pass_the_gradient_on(monkeypatch, images, side, quick):
    asked: list[int] = []
    by_tiles = winograd._by_tiles
    monkeypatch.setattr(winograd, "_by_tiles", lambda *args: (asked.append(1), by_tiles(*args))[1])
    conv = nn.Conv2d(16, 32, 3, padding=1).requires_grad_(False)
    pixels = torch.randn(images, 16, side, side, generator=tiny.generator(), requires_grad=True)
    found, expected = winograd.Frozen(conv)(pixels), conv(pixels)
    close(found, expected)
    slopes = [torch.autograd.grad(made.square().sum(), pixels)[0] for made in (found, expected)]
    close(*slopes)
    assert len(asked) == (2 if quick else 0)


def test_images_of_other_sides_are_convolved_as_ever():
    conv = nn.Conv2d(16, 16, 3, padding=1)
    images = torch.randn(2, 16, 6, 8)
    assert torch.equal(winograd.Convolution(conv)(images), conv(images))
