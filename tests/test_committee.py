"""Observers: training them, checking them in, and that they stay as they are."""

import hashlib
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from dd_tasks import committee, compiling
from dd_tasks.committee import Imported, Observer, ObserverRecipe, Trained, load_weights, named, restore, seeded, train
from dd_tasks.errors import InputError
from dd_tasks.feeds import InMemory
from dd_tasks.networks import Shape, build

CPU = torch.device("cpu")
SHAPE = Shape(10, 16)
RECIPE = ObserverRecipe("convnet2_bn_w8", epochs=4, batch=16, reach=1, flip=False, keep_every=2)


def digits(rows: slice) -> InMemory:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images_N188 = torch.from_numpy(images[rows]).mul(255 / 16).to(torch.uint8).view(-1, 1, 8, 8)
    large_N3SS = images_N188.repeat_interleave(2, 2).repeat_interleave(2, 3).expand(-1, 3, -1, -1).contiguous()
    return InMemory(large_N3SS, torch.from_numpy(labels[rows]).long())


def trained(recipe: ObserverRecipe) -> Trained:
    return train(recipe, SHAPE, digits(slice(480)), digits(slice(480, 680)), device=CPU)


@pytest.fixture(scope="module")
def once() -> Trained:
    return trained(RECIPE)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def fresh(architecture: str = "convnet2_bn_w8", shape: Shape = SHAPE) -> nn.Module:
    return seeded(lambda: build(architecture, shape), 0)


# Training


def test_an_observer_learns_digits(once):
    assert once.accuracy > 0.75  # chance is .1
    assert once.epochs == 4 and once.seconds > 0


def test_training_is_the_same_bit_for_bit(once):
    torch.manual_seed(7)  # the caller's generator has no say
    before = torch.get_rng_state()
    again = trained(RECIPE)
    assert equal(again.weights, once.weights) and again.accuracy == once.accuracy
    assert torch.equal(torch.get_rng_state(), before)


def test_a_long_training_is_compiled_and_makes_the_same_observer(monkeypatch):
    recipe = replace(RECIPE, architecture="convnet2_bn_w16", epochs=1, peak_rate=0.01)
    few = digits(slice(48))  # three steps: rounding has no time to grow
    short = train(recipe, SHAPE, few, few, device=CPU).weights
    monkeypatch.setattr(compiling, "WORTH_COMPILING", 0)
    long = train(recipe, SHAPE, few, few, device=CPU).weights
    begun = fresh("convnet2_bn_w16").state_dict()
    assert long.keys() == short.keys() == begun.keys()
    for name, weights in long.items():
        torch.testing.assert_close(weights, short[name], rtol=1e-2, atol=1e-3)
        assert name.endswith(("mean", "std")) or not torch.equal(weights, begun[name])


def test_the_seed_counts(once):
    short = replace(RECIPE, epochs=1, keep_every=0)
    assert not equal(trained(short).weights, trained(replace(short, seed=1)).weights)


def test_checkpoints_are_kept_every_so_often_and_at_the_end(once):
    assert sorted(once.checkpoints) == [2, 4]
    assert equal(once.checkpoints[4], once.weights) and not equal(once.checkpoints[2], once.weights)


@pytest.mark.parametrize(("epochs", "keep_every", "kept"), [(3, 2, [2, 3]), (2, 0, [2]), (1, 5, [1]), (2, 1, [1, 2])])
def test_the_last_checkpoint_is_always_kept(epochs, keep_every, kept):
    recipe = replace(RECIPE, architecture="convnet1_w2", epochs=epochs, keep_every=keep_every, batch=32)
    few = digits(slice(70))  # two batches an epoch and a rest
    assert sorted(train(recipe, SHAPE, few, few, device=CPU).checkpoints) == kept


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"batch": 71}, "observer convnet2_bn_w8: 70 images are fewer than a batch of 71"),
        ({"reach": 16}, "observer convnet2_bn_w8: a shift of 16 is beyond a side of 16"),
        ({"architecture": "thin_resnet4"}, "unknown architecture 'thin_resnet4'; did you mean "),
    ],
)
def test_what_cannot_be_trained_is_one_line(change, line):
    few = digits(slice(70))
    with pytest.raises(InputError) as refused:
        train(replace(RECIPE, **change), SHAPE, few, few, device=CPU)
    assert str(refused.value).startswith(line)


def test_a_recipe_s_name_shows_a_seed_that_is_not_the_first():
    assert (RECIPE.name, replace(RECIPE, seed=3).name) == ("convnet2_bn_w8", "convnet2_bn_w8@seed=3")


def test_accuracy_is_of_all_images_with_running_statistics():
    feed = digits(slice(501))  # one more than a batch of the measurement
    net = fresh().train()
    found = committee.accuracy(net, feed, CPU)
    with torch.no_grad():
        by_hand = (net.eval()(feed.images_NCHW.float() / 255).argmax(1) == feed.labels_N).sum() / 501
    assert found == pytest.approx(float(by_hand)) and not net.training


def test_statistics_are_those_of_the_data():
    feed = digits(slice(50))
    net = fresh("convnet1_w2")
    (only,) = committee.statistics(net, feed, 10, CPU)
    seen_NCHW = net[0](feed.images_NCHW.float() / 255)
    assert torch.allclose(only.mean_C, seen_NCHW.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(only.mean_KC[3], seen_NCHW[feed.labels_N == 3].mean((0, 2, 3)), atol=1e-5)


# Weights in


def saved(tmp_path: Path, weights: dict[str, Tensor], architecture: str = "convnet2_bn_w8") -> Imported:
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(weights, path)
    return Imported(architecture, str(path), hashlib.sha256(path.read_bytes()).hexdigest())


def test_imported_weights_are_the_network_s(tmp_path, once):
    member = saved(tmp_path, once.weights)
    weights = load_weights(member, SHAPE)
    assert equal(weights, once.weights) and member.name == f"convnet2_bn_w8@{member.sha256[:8]}"
    net = restore(member.architecture, weights, SHAPE, CPU)
    assert committee.accuracy(net, digits(slice(480, 680)), CPU) == once.accuracy


@pytest.mark.parametrize("architecture", ["resnet18", "timm/resnet10t"])
def test_bare_weights_get_imagenet_s_normalisation(tmp_path, architecture):
    shape = Shape(3, 32, mean=(0.1, 0.1, 0.1))
    bare = fresh(architecture, shape)[1]
    member = saved(tmp_path, {k: v.clone() for k, v in bare.state_dict().items()}, architecture)
    net = restore(architecture, load_weights(member, shape), shape, CPU).eval()
    assert net[0].mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert net[0].std.flatten().tolist() == pytest.approx([0.229, 0.224, 0.225])
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in committee.IMAGENET)
    pixels = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(net(pixels), bare.eval()((pixels - mean) / std), atol=1e-5)


class _Bomb:
    """Raises where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemError('unpickled')",)


def _as_torch_saves(path: Path) -> None:
    torch.save({"bomb": _Bomb()}, path)


def _as_pickle_saves(path: Path) -> None:
    path.write_bytes(pickle.dumps(_Bomb()))


@pytest.mark.parametrize("save", [_as_torch_saves, _as_pickle_saves, Path.touch])
def test_what_is_not_safetensors_is_refused_unread(tmp_path, save):
    path = tmp_path / "weights.safetensors"
    save(path)
    member = Imported("convnet3", str(path), hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(InputError) as refused:
        load_weights(member, SHAPE)
    assert str(refused.value).startswith(f"weights {path} are not safetensors: ") and "\n" not in str(refused.value)


def test_weights_with_another_sha256_are_refused(tmp_path, once):
    member = saved(tmp_path, once.weights)
    with pytest.raises(InputError) as refused:
        load_weights(replace(member, sha256="0" * 64), SHAPE)
    assert str(refused.value) == f"weights {member.weights} have sha256 {member.sha256}, not {'0' * 64}"


@pytest.mark.parametrize("name", ["none.safetensors", "a/none.safetensors", "/none/at/all", "weights.pt", "."])
def test_weights_that_are_not_there_are_refused(name):
    with pytest.raises(InputError, match=rf"^cannot read weights {name}: (No such file or directory|Is a directory)$"):
        load_weights(Imported("convnet3", name, "0" * 64), SHAPE)


@pytest.mark.parametrize("name", ["org/net", "timm/resnet18.a1_in1k", "org/net@v1.0"])
def test_other_weights_come_from_the_hub(name, tmp_path, once, monkeypatch):
    local = saved(tmp_path, once.weights)
    asked = []
    monkeypatch.setattr(committee, "fetch_weights", lambda name: asked.append(name) or Path(local.weights))
    assert equal(load_weights(replace(local, weights=name), SHAPE), once.weights) and asked == [name]


@pytest.mark.parametrize(
    "architecture", ["convnet3_bn_w8", "convnet2_bn_w16", "convnet2_w8", "thin_vgg_w8", "resnet18"]
)
def test_weights_of_another_architecture_are_one_line(architecture, once):
    with pytest.raises(InputError) as refused:
        restore(architecture, once.weights, SHAPE, CPU)
    line = str(refused.value)
    assert (
        line.startswith(f"weights do not fit architecture {architecture!r}: ") and "\n" not in line and len(line) < 260
    )


def test_weights_of_other_classes_are_refused(once):
    with pytest.raises(InputError, match=r"size mismatch for 1\.classifier\.bias"):
        restore("convnet2_bn_w8", once.weights, Shape(9, 16), CPU)


# Committees by name


@pytest.mark.parametrize("name", committee.COMMITTEES)
def test_a_committee_is_found_by_name(name):
    assert named(name) == committee.COMMITTEES[name] and len({member.name for member in named(name)}) == len(
        named(name)
    )


def test_an_unknown_committee_names_the_choices():
    with pytest.raises(InputError) as refused:
        named("smal")
    assert str(refused.value) == (
        "unknown committee 'smal'; did you mean 'small'? "
        "(choices: FILE.json of `retort committee import`, cv_dd_imagenet, edc_imagenet, reference, resnet18_imagenet, "
        "small, tiny)"
    )


def test_a_committee_file_is_read(tmp_path):
    path = tmp_path / "ours.json"
    entries = [{"architecture": "convnet3", "weights": "a.safetensors", "sha256": "ab" * 32}]
    path.write_text(json.dumps({"observers": [*entries, {**entries[0], "weights": "org/net"}]}))
    assert named(str(path)) == (
        Imported("convnet3", "a.safetensors", "ab" * 32),
        Imported("convnet3", "org/net", "ab" * 32),
    )


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, "no committee file {}"),
        (b"", "{} is not a committee file: JSONDecodeError "),
        (b"\xff", "{} is not a committee file: UnicodeDecodeError "),
        (b"[]", "{} is not a committee file: expected "),
        (b"{}", "{} is not a committee file: expected "),
        (b'{"observers": 3}', "{} is not a committee file: expected "),
        (b'{"observers": [{"architecture": "x"}]}', "{} is not a committee file: expected "),
        (b'{"observers": []}', "{} lists no observers"),
        (b"[" * 100_000, "{} is not a committee file: RecursionError "),
    ],
)
def test_a_file_that_is_no_committee_is_one_line(tmp_path, content, line):
    path = tmp_path / "ours.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as refused:
        named(str(path))
    assert str(refused.value).startswith(line.format(path)) and "\n" not in str(refused.value)


# Observers


@pytest.fixture
def observer(once: Trained) -> Observer:
    return Observer("it", restore("convnet2_bn_w8", once.weights, SHAPE, CPU).train())


def test_an_observer_is_frozen(observer):
    assert not any(module.training for module in observer.net.modules())
    assert not any(parameter.requires_grad for parameter in observer.net.parameters())
    pixels = torch.rand(4, 3, 16, 16, requires_grad=True)
    before = {k: v.clone() for k, v in observer.net.state_dict().items()}
    observer.read(pixels).logits_NK.sum().backward()
    assert pixels.grad is not None and pixels.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in observer.net.parameters())
    assert equal(before, observer.net.state_dict())


def test_an_observer_reads_logits_and_on_request_moments(observer):
    pixels = torch.rand(4, 3, 16, 16)
    plain, full = observer.read(pixels), observer.read(pixels, moments=True)
    assert torch.equal(plain.logits_NK, full.logits_NK) and plain.moments == ()
    assert len(full.moments) == len(observer.layers) == 4  # two convolutions, two BatchNorms
    assert torch.allclose(full.moments[0].mean_NC, observer.net[0](pixels).mean((2, 3)), atol=1e-6)
    assert not any(module._forward_pre_hooks for module in observer.net.modules())


def test_an_observer_reads_patches_of_convolutions_on_request_alone(observer):
    pixels = torch.rand(4, 3, 16, 16)
    plain, channels, both = (
        observer.read(pixels, moments=moments, patches=patches)
        for moments, patches in ((False, False), (True, False), (True, True))
    )
    assert plain.patches == channels.patches == ()
    assert [p.mean_NC.shape for p in both.patches] == [(4, 256), (4, 64)]
    assert torch.allclose(both.patches[0].mean_NC, observer.net[0](pixels).mean(1).flatten(1), atol=1e-6)
    assert all(torch.equal(a.mean_NC, b.mean_NC) for a, b in zip(channels.moments, both.moments, strict=True))
    assert not any(module._forward_pre_hooks for module in observer.net.modules())


def test_embed_is_what_the_last_linear_layer_takes_in(observer):
    pixels = torch.rand(4, 3, 16, 16)
    embedding_NE = observer.embed(pixels)
    assert embedding_NE.shape == (4, 8 * 4 * 4) and not embedding_NE.requires_grad
    assert torch.allclose(observer.net[1].classifier(embedding_NE), observer.read(pixels).logits_NK, atol=1e-6)
    assert not observer.net[1].classifier._forward_pre_hooks


def test_a_network_without_a_linear_layer_embeds_nothing():
    with pytest.raises(InputError, match=r"^observer it has no linear layer to embed by$"):
        Observer("it", nn.Conv2d(3, 2, 1)).embed(torch.zeros(1, 3, 4, 4))


def test_batch_statistics_normalise_by_the_batch_and_then_no_more(observer):
    pixels = torch.rand(8, 3, 16, 16)
    before, state = observer.read(pixels).logits_NK, {k: v.clone() for k, v in observer.net.state_dict().items()}
    with observer.batch_statistics():
        within = observer.read(pixels).logits_NK
        assert not torch.allclose(observer.read(pixels[:4]).logits_NK, within[:4], atol=1e-3)
    norms = seeded(lambda: build("convnet2_bn_w8", SHAPE), 0).train()
    norms.load_state_dict(state)
    assert torch.allclose(norms(pixels), within, atol=1e-5) and not torch.allclose(before, within, atol=1e-3)
    assert torch.equal(observer.read(pixels).logits_NK, before) and equal(observer.net.state_dict(), state)


def test_batch_statistics_end_where_the_block_fails(observer):
    pixels = torch.rand(8, 3, 16, 16)
    before = observer.read(pixels).logits_NK
    with pytest.raises(RuntimeError, match="stop"), observer.batch_statistics():
        raise RuntimeError("stop")
    assert torch.equal(observer.read(pixels).logits_NK, before)


def test_a_seeded_module_leaves_the_global_generator():
    before = torch.get_rng_state()
    one, two, other = (seeded(lambda: nn.Linear(3, 3), seed).weight for seed in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, other) and torch.equal(torch.get_rng_state(), before)
