"""Layer statistics: what they are of, sample by sample, and that they survive a file."""

import pytest
import safetensors.torch
import tiny
import torch
from torch import Tensor, nn

from dd_tasks import statistics
from dd_tasks.statistics import LayerStatistics

FIELDS = ("mean_C", "variance_C", "mean_KC", "variance_KC")


def inputs_of(net: nn.Module, pixels_NCHW: Tensor) -> list[tuple[nn.Module, Tensor]]:
    """Every BatchNorm and convolution, in the order of the tree, with its whole input."""
    layers = [m for m in net.modules() if type(m) in (nn.BatchNorm2d, nn.Conv2d)]
    heard: dict[nn.Module, Tensor] = {}
    handles = [m.register_forward_hook(lambda m, inputs, _: heard.__setitem__(m, inputs[0])) for m in layers]
    with torch.no_grad():
        net(pixels_NCHW)
    for handle in handles:
        handle.remove()
    return [(m, heard[m]) for m in layers]


def literal(net: nn.Module, pixels_NCHW: Tensor, labels: list[int], classes: int) -> list[dict[str, Tensor]]:
    found = []
    for layer, input_NCHW in inputs_of(net, pixels_NCHW):
        means = [sample.double().mean((1, 2)) for sample in input_NCHW]
        variances = [((s.double() - s.double().mean((1, 2), True)) ** 2).mean((1, 2)) for s in input_NCHW]
        row = {}
        for name, values in (("mean", means), ("variance", variances)):
            overall = sum(values) / len(values)
            row[f"{name}_C"], own = overall, []
            for k in range(classes):
                of_class = [v for v, label in zip(values, labels, strict=True) if label == k]
                own.append(sum(of_class) / len(of_class) if of_class else overall)
            row[f"{name}_KC"] = torch.stack(own)
        if isinstance(layer, nn.BatchNorm2d):
            row |= {"mean_C": layer.running_mean, "variance_C": layer.running_var}
        found.append(row)
    return found


@pytest.mark.parametrize("architecture", ["convnet2_bn_w4", "thin_resnet4_w4", "thin_vgg_w2"])
def test_measured_statistics_are_means_over_samples_of_a_samples_own(architecture):
    net, pixels_NCHW = tiny.observer(0, architecture).net, tiny.pixels(7)
    labels = [0, 2, 0, 3, 3, 3, 2]  # none of class 1
    batches = [(pixels_NCHW[:3], torch.tensor(labels[:3])), (pixels_NCHW[3:], torch.tensor(labels[3:]))]
    found, counts_K = statistics.measure(net, batches, 4)
    expected = literal(net, pixels_NCHW, labels, 4)
    assert counts_K.tolist() == [2, 0, 2, 3]
    assert [s.batch_norm for s in found] == [isinstance(m, nn.BatchNorm2d) for m, _ in inputs_of(net, pixels_NCHW[:1])]
    for layer, row in zip(found, expected, strict=True):
        for name in FIELDS:
            torch.testing.assert_close(getattr(layer, name), row[name].float(), rtol=1e-4, atol=1e-6)


def test_a_class_without_samples_gets_the_statistics_of_all_classes():
    net = tiny.observer().net
    found, _ = statistics.measure(net, [(tiny.pixels(4), torch.tensor([0, 0, 2, 2]))], 3)
    for layer in found:
        torch.testing.assert_close(layer.mean_KC[1], layer.mean_KC[[0, 2]].mean(0))
        torch.testing.assert_close(layer.variance_KC[1], layer.variance_KC[[0, 2]].mean(0))


def test_the_statistics_do_not_depend_on_how_the_data_is_batched():
    net, pixels_NCHW, labels_N = tiny.observer().net, tiny.pixels(12), tiny.labels(12)
    whole, parts = (
        statistics.measure(net, zip(pixels_NCHW.split(size), labels_N.split(size), strict=True), 3)[0]
        for size in (12, 5)
    )
    for one, other in zip(whole, parts, strict=True):
        for name in FIELDS:
            torch.testing.assert_close(getattr(one, name), getattr(other, name))


def test_without_a_sample_there_are_no_statistics():
    with pytest.raises(ValueError, match="no samples"):
        statistics.measure(tiny.observer().net, [], 3)


def test_moments_are_a_samples_channel_mean_and_biased_variance():
    input_NCHW = torch.tensor([[[[0.0, 2.0], [4.0, 6.0]]], [[[1.0, 1.0], [1.0, 1.0]]]])
    moments = statistics.moments_of(input_NCHW)
    assert moments.mean_NC.tolist() == [[3], [1]] and moments.variance_NC.tolist() == [[5], [0]]


def literal_patches(sample_CHW: Tensor) -> Tensor:
    """own_2P of one sample: mean and biased variance of each cell of torch's adaptive pooling on a grid of 16."""

    def bounds(size: int) -> list[slice]:
        grid = min(16, size)
        return [slice(i * size // grid, -(-(i + 1) * size // grid)) for i in range(grid)]

    cells = [sample_CHW[:, h, w] for h in bounds(sample_CHW.shape[1]) for w in bounds(sample_CHW.shape[2])]
    means = [cell.sum() / cell.numel() for cell in cells]
    variances = [((cell - mean) ** 2).sum() / cell.numel() for cell, mean in zip(cells, means, strict=True)]
    return torch.stack([torch.stack(means), torch.stack(variances)])


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 7), (16, 16), (17, 40), (32, 5)])
def test_a_patch_is_a_cell_over_its_positions_and_the_channels_and_a_position_of_a_smaller_map(height, width):
    input_NCHW = torch.randn(2, 3, height, width, generator=tiny.generator()) + 2
    found = statistics.patches_of(input_NCHW)
    assert found.mean_NC.shape == found.variance_NC.shape == (2, min(16, height) * min(16, width))
    expected_N2P = torch.stack([literal_patches(sample_CHW) for sample_CHW in input_NCHW.double()]).float()
    torch.testing.assert_close(found.mean_NC, expected_N2P[:, 0])
    torch.testing.assert_close(found.variance_NC, expected_N2P[:, 1], rtol=1e-4, atol=1e-5)


def test_patches_are_measured_over_the_convolutions_globally_and_by_class():
    net, pixels_NCHW, labels = tiny.observer().net, tiny.pixels(7), [0, 2, 0, 3, 3, 3, 2]  # none of class 1
    batches = [(pixels_NCHW[:3], torch.tensor(labels[:3])), (pixels_NCHW[3:], torch.tensor(labels[3:]))]
    found, counts_K = statistics.measure(net, batches, 4, patches=True)
    inputs = [x for m, x in inputs_of(net, pixels_NCHW) if type(m) is nn.Conv2d]
    assert counts_K.tolist() == [2, 0, 2, 3] and not any(layer.batch_norm for layer in found)
    for layer, input_NCHW in zip(found, inputs, strict=True):
        own = statistics.patches_of(input_NCHW)
        for values_NC, overall_C, by_class_KC in (
            (own.mean_NC, layer.mean_C, layer.mean_KC), (own.variance_NC, layer.variance_C, layer.variance_KC)
        ):  # fmt: skip
            torch.testing.assert_close(overall_C, sum(values_NC) / 7)
            torch.testing.assert_close(by_class_KC[1], overall_C)
            torch.testing.assert_close(by_class_KC[3], sum(values_NC[3:6]) / 3)


def test_nobody_listens_after_the_block_even_where_it_fails():
    observer = tiny.observer()
    with pytest.raises(RuntimeError, match="stop"), statistics.listening(observer.layers) as heard:
        observer.net(tiny.pixels(2))
        raise RuntimeError("stop")
    assert len(heard) == len(observer.layers) == 4
    before = dict(heard)
    observer.net(tiny.pixels(2, seed=9))
    assert heard == before and not any(m._forward_pre_hooks for m in observer.net.modules())


def test_statistics_survive_a_file_in_order(tmp_path):
    rng = tiny.generator()
    written = tuple(
        LayerStatistics(i % 3 == 0, *(torch.rand(*shape, i + 1, generator=rng) for shape in ((), (), (4,), (4,))))
        for i in range(12)
    )
    safetensors.torch.save_file(statistics.to_tensors(written), tmp_path / "statistics.safetensors")
    read = statistics.from_tensors(safetensors.torch.load_file(tmp_path / "statistics.safetensors"), tiny.CPU)
    assert [layer.batch_norm for layer in read] == [layer.batch_norm for layer in written]
    for one, other in zip(written, read, strict=True):
        assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in FIELDS)


def test_a_class_patch_mean_is_no_variance_after_a_reload(tmp_path):
    batches = [(tiny.pixels(9), tiny.labels(9))]
    written, _ = statistics.measure(tiny.observer().net, batches, tiny.CLASSES, patches=True)
    safetensors.torch.save_file(statistics.to_tensors(written), tmp_path / "patches.safetensors")
    read = statistics.from_tensors(safetensors.torch.load_file(tmp_path / "patches.safetensors"), tiny.CPU)
    for one, other in zip(written, read, strict=True):
        assert not torch.equal(one.mean_KC, one.variance_KC)
        assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in FIELDS)
