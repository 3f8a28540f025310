"""Pools of pre-trained models: how they are asked for, who is seated, and how they pull."""

from dataclasses import replace

import pytest
import tiny
import torch
from test_learners import pool
from torch import Tensor, nn

from dd_tasks.committee import Imported, ObserverRecipe, classes_in, seeded, weights_of
from dd_tasks.errors import InputError
from dd_tasks.guides import Course, Guide, Guides, courses, study
from dd_tasks.networks import Shape, build
from dd_tasks.presets import clom, e2d, preset
from dd_tasks.recipe import voters_in, with_guides
from dd_tasks.terms import ContrastivePull, CrossEntropy, PatchStatistics, SmoothedStatistics
from dd_tasks.types import Studio


def network(seed: int, classes: int = tiny.CLASSES, architecture: str = "convnet2_w4") -> nn.Module:
    net = seeded(lambda: build(architecture, Shape(classes, tiny.SIDE, tiny.MEAN, tiny.STD)), seed)
    return net.eval().requires_grad_(False)


def studio(*guides: nn.Module, seed: int = 0) -> Studio:
    return replace(tiny.studio(seed=seed), real=pool(), guides={"some": guides or (network(0),)})


def test_a_pool_is_architectures_by_seeds_by_epochs_by_sources():
    first, second, foreign, imported = courses(
        "convnet3@epoch=2,4,8 seeds=0..1; convnet2_w8@epoch=3 of=6 source=other/{0..3}.tar; "
        f"timm/resnet18@weights=some/thing sha256={'A' * 64}"
    )
    trained = ObserverRecipe("convnet3", 8, peak_rate=0.05, batch=64, keep_every=2)
    assert first == Course(trained, (2, 4, 8)) and second == Course(replace(trained, seed=1), (2, 4, 8))
    assert first.checkpoints == ("epoch-2", "epoch-4", "epoch-8")
    other = replace(trained, architecture="convnet2_w8", epochs=6, keep_every=3)
    assert foreign == Course(other, (3,), "other/{0..3}.tar")
    assert imported == Course(Imported("timm/resnet18", "some/thing", "a" * 64)) and imported.checkpoints == (
        "weights",
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("convnet3", "guides 'convnet3': expected epoch=, or weights= and sha256="),
        ("convnet3@epoch=", "guides 'convnet3@epoch=': expected epoch=VALUE"),
        ("convnet3@epoch=two", "epoch=two: expected numbers such as 2,4,8 or 0..2"),
        ("convnet3@epoch=0,2", "epoch=0,2: expected numbers from 1 on"),
        ("convnet3@epoch=3..1", "epoch=3..1: expected numbers from 1 on"),
        ("convnet3@epoch=4 of=2", "of=2: expected numbers from 4 on"),
        ("convnet3@epoch=3 of=6 every=2", "every=2 keeps no weights of epoch 3"),
        ("convnet3@epoch=2 sedes=1", "unknown key in guides 'convnet3@epoch=2 sedes=1' 'sedes'; did you mean 'seeds'?"),
        ("convnet3@weights=a.safetensors", "weights= goes with sha256=, and with nothing else"),
        ("convnet33@epoch=2", "unknown architecture 'convnet33'"),
        ("", "unknown architecture ''"),
    ],
)
def test_a_pool_that_cannot_be_read_is_one_line(text, reason):
    with pytest.raises(InputError) as refused:
        Guides(text).at_once(3)
    assert reason in str(refused.value) and "\n" not in str(refused.value)


def test_one_guide_a_step_is_drawn_by_the_seed_and_all_have_their_turn():
    guides = [network(i) for i in range(3)]
    runs = [Guides("some").convene(studio(*guides, seed=seed)) for seed in (1, 1, 2)]
    first, again, other = ([seating(step)[0][0].net for step in range(60)] for seating in runs)
    assert first == again != other and set(first) == set(guides)
    assert {weight for step in range(5) for _, weight in runs[0](step)} == {1.0}


def literal_pull(real_ME: Tensor, own_NE: Tensor, real_targets: list[int], targets: list[int]) -> float:
    same = total = 0.0
    for real, its in zip(real_ME, real_targets, strict=True):
        for own, target in zip(own_NE, targets, strict=True):
            distance = 1 - (real @ own / (real.norm() * own.norm())).item()
            total += distance
            same += distance * (its == target)
    return same / total


def test_the_pull_is_its_formula_on_features_of_real_images_and_views():
    place = studio(network(0, classes=7))  # another label space
    ((guide, _),) = Guides("some", batch=9).convene(place)(0)
    views_NCSS, targets_N = tiny.pixels(4).requires_grad_(), torch.tensor([0, 1, 2, 1])
    ((rows, reading),) = guide.readings(views_NCSS, targets_N)
    assert rows == slice(None) and reading.real is not None and reading.real_targets_M is not None
    assert len(reading.real_targets_M) == 9 and not reading.real.logits_NK.requires_grad
    value = ContrastivePull(1000.0).convene(place)(guide, reading, targets_N)
    features = (reading.real.features_NE, reading.features_NE)
    expected = literal_pull(*(f.flatten(1) for f in features), reading.real_targets_M.tolist(), targets_N.tolist())
    assert value.item() == pytest.approx(1000 * expected, rel=1e-4)
    (slope,) = torch.autograd.grad(value, views_NCSS)
    assert slope.abs().sum() > 0


def test_a_view_that_looks_like_its_class_is_pulled_less():
    place = studio()
    assert place.real is not None
    guide = Guide("some", network(0), place.real, 120, tiny.generator())
    pull = ContrastivePull().convene(place)
    rows = torch.cat([place.real.rows_of(label)[:8] for label in range(tiny.CLASSES)])
    views, targets = place.real.pixels(rows), place.real.targets_P[rows]

    def value(targets_N: Tensor) -> float:
        ((_, reading),) = guide.readings(views, targets_N)
        return pull(guide, reading, targets_N).item()

    assert value(targets) < value((targets + 1) % tiny.CLASSES)


def test_terms_that_a_guide_cannot_judge_by_are_refused():
    place = studio(network(0, classes=7))
    ((guide, _),) = Guides("some").convene(place)(0)
    ((_, reading),) = guide.readings(tiny.pixels(3), tiny.labels(3))
    with pytest.raises(InputError, match="it knows 7 classes, the images are of 3; use ContrastivePull"):
        CrossEntropy().convene(place)(guide, reading, tiny.labels(3))
    with pytest.raises(InputError, match="no statistics were measured"):
        next(guide.readings(tiny.pixels(3), tiny.labels(3), moments=SmoothedStatistics().needs_moments))
    with pytest.raises(InputError, match="no statistics were measured"):
        next(guide.readings(tiny.pixels(3), tiny.labels(3), patches=PatchStatistics().needs_patches))
    observer = tiny.observer()
    with pytest.raises(InputError, match="it needs voters Guides"):
        ContrastivePull().convene(place)(observer, observer.read(tiny.pixels(3)), tiny.labels(3))
    with pytest.raises(ValueError, match="need their networks and real images"):
        Guides("others").convene(place)


def test_the_classes_of_weights_are_those_of_their_last_layer():
    shape = Shape(tiny.CLASSES, tiny.SIDE, tiny.MEAN, tiny.STD)
    for architecture in ("convnet2_w4", "thin_resnet4_w4"):
        assert classes_in(architecture, weights_of(network(0, 7, architecture)), shape) == 7
    assert classes_in("convnet2_w4", {}, shape) == tiny.CLASSES


def test_clom_is_its_base_with_a_ballot_of_guides():
    base, guided = e2d(side=32), clom("e2d", side=32)
    assert guided.ballots[:-1] == base.ballots and replace(guided, ballots=base.ballots) == base
    (guides,) = [v for v in voters_in(guided) if isinstance(v, Guides)]
    assert guided.ballots[-1].terms == (ContrastivePull(1000.0),)
    assert preset("clom", side=32) == preset("clom(dream_plus)", side=32) == clom("dream_plus", side=32)
    other = "convnet2_w8@epoch=1,2 seeds=0..2"
    assert preset(f"clom(e2d, {other})", side=32) == with_guides(guided, other) != guided
    assert replace(guides, pool=other) in list(voters_in(with_guides(guided, other)))
    with pytest.raises(InputError, match="this method has no guides"):
        with_guides(base, other)
    with pytest.raises(InputError, match="unknown preset 'e3d'"):
        preset("clom(e3d)", side=32)


def test_a_study_varies_one_factor_at_a_time():
    rows = study("e2d", "convnet3", "thin_resnet8_w16", "1,2,4", "other.tar")
    assert rows[0] == ("none", "e2d")
    pools = {
        factor: [courses(text[len("clom(e2d, ") : -1]) for f, text in rows if f == factor] for factor, _ in rows[1:]
    }
    assert [len(p) for p in pools["diversity"]] == [1, 2, 4]
    assert [{c.epochs for c in p} for p in pools["epoch"]] == [{(1,)}, {(2,)}, {(4,)}]
    names = [{c.member.architecture for c in p} for p in pools["architecture"]]
    assert names == [{"convnet3"}, {"thin_resnet8_w16"}, {"convnet3", "thin_resnet8_w16"}]
    assert [{c.source for c in p} for p in pools["domain"]] == [{None}, {"other.tar"}]
    members = [c.member for factor in pools.values() for p in factor for c in p if c.source is None]
    assert len(set(members)) == 4 + 2  # each network is trained once, however many pools it sits in
    assert all(text == "e2d" or preset(text, side=32) for _, text in rows)
    assert "domain" not in dict(study("e2d", "convnet3", "convnet2_w8", "1,2", None))
