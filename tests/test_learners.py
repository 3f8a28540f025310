"""Networks in training: when they are drawn, what they learn, which real images they put beside the views."""

from dataclasses import replace

import pytest
import tiny
import torch
import torch.nn.functional as F

from dd_tasks.distill import distill
from dd_tasks.errors import InputError
from dd_tasks.initialise import WholeImages
from dd_tasks.label import OneHot
from dd_tasks.learners import Learner, Learners
from dd_tasks.recipe import Ballot, Recipe
from dd_tasks.schedule import Phase, Schedule, Sgd, Tiles
from dd_tasks.terms import BatchNormMatching, FeatureMean, GradientMatching, PatchStatistics, SmoothedStatistics
from dd_tasks.types import RealImages, Studio

SMALL = Learners("convnet2_w8", inner=4, samples=256, batch=6, interval=2, among=30, epochs=0)


def pool(per_class: int = 40) -> RealImages:
    """Digits 0 to 2."""
    found = tiny.digit_candidates(per_class, tiny.CLASSES)
    images = torch.stack([tiny.decode(image, tiny.SIDE) for image in found.images])
    return RealImages(images, torch.tensor(found.labels))


def studio(seed: int = 0) -> Studio:
    return replace(tiny.studio(seed=seed), real=pool())


def learner(recipe: Learners = SMALL, seed: int = 0) -> Learner:
    place = studio(seed)
    assert place.real is not None
    return Learner(recipe, place, place.real)


def test_networks_are_drawn_anew_every_inner_steps_and_learn_between(monkeypatch):
    told: list[tuple[str, int]] = []
    monkeypatch.setattr(Learner, "train", lambda self, images: told.append(("train", images)))
    monkeypatch.setattr(Learner, "choose", lambda self: told.append(("choose", 0)))
    seating = replace(SMALL, epochs=2).convene(studio())
    judges = [seating(step)[0][0] for step in range(6)]
    assert [len({id(j) for j in judges[a:b]}) for a, b in ((0, 4), (4, 6))] == [1, 1] and judges[0] is not judges[4]
    begun, later, choice = ("train", 2 * 120), ("train", 256), ("choose", 0)
    assert told == [begun, choice, later, later, choice, later, begun, choice, later]


def test_two_networks_differ_and_depend_on_the_generator():
    first, again, other = (learner(seed=seed) for seed in (0, 0, 1))
    weights = [x.net.state_dict()["1.features.0.weight"] for x in (first, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_training_teaches_the_classes():
    judge, real = learner(replace(SMALL, rate=0.05)), pool()
    before = F.cross_entropy(judge.net(real.pixels(slice(None))), real.targets_P).item()
    judge.train(40 * 128)
    assert F.cross_entropy(judge.net(real.pixels(slice(None))), real.targets_P).item() < 0.5 * before


def test_features_are_what_the_last_layer_takes_in():
    judge, pixels_NCSS = learner(), tiny.pixels(5)
    reading = judge.read(pixels_NCSS)
    torch.testing.assert_close(judge.net[1].classifier(reading.features_NE), reading.logits_NK)


@pytest.mark.parametrize("choose", ["representative", "random"])
def test_the_views_of_a_class_stand_beside_real_images_of_it(choose):
    judge = learner(replace(SMALL, choose=choose))
    judge.choose()
    shown: list[torch.Tensor] = []
    read = judge.read
    judge.read = lambda pixels, **kwargs: shown.append(pixels) or read(pixels, **kwargs)  # type: ignore[method-assign]
    targets_N = torch.tensor([2, 0, 2, 0, 0])
    found = list(judge.readings(tiny.pixels(5), targets_N))
    assert [rows.tolist() for rows, _ in found] == [[1, 3, 4], [0, 2]]
    assert [len(r.logits_NK) for _, r in found] == [3, 2] and all(len(r.real.logits_NK) == 6 for _, r in found)
    assert all(len(r.weights) == 2 for _, r in found) and len(shown) == 4
    for label in range(tiny.CLASSES if choose == "representative" else 0):
        rows_P = judge.chosen[label]
        assert len(set(rows_P.tolist())) == 6 and (judge.real.targets_P[rows_P] == label).all()


def test_a_class_smaller_than_the_batch_is_shown_whole():
    judge = learner(replace(SMALL, batch=500, among=500))
    judge.choose()
    assert sorted(judge.chosen[1].tolist()) == judge.real.rows_of(1).tolist()


MATCHING = Recipe(
    WholeImages(),
    (Ballot(SMALL, (FeatureMean(), GradientMatching())),),
    Schedule((Phase(8, Tiles(2)),), Sgd(rate=0.1), constant=True),
    OneHot(tiles=2),
)


def test_images_follow_the_networks_and_the_seed_decides():
    made, again, other = (distill(MATCHING, tiny.canvas(), studio(seed)) for seed in (1, 1, 2))
    assert torch.equal(made.canvas.images_NCHW, again.canvas.images_NCHW)
    assert not torch.equal(made.canvas.images_NCHW, other.canvas.images_NCHW)
    assert made.loss_T.isfinite().all() and made.image_updates == 8 * 6 * 4


def test_a_term_that_compares_needs_voters_in_training():
    from dd_tasks.voters import Everyone

    wrong = replace(MATCHING, ballots=(Ballot(Everyone(), (FeatureMean(),)),))
    with pytest.raises(InputError, match=r"FeatureMean compares with real images: it needs voters in training"):
        distill(wrong, tiny.canvas(), studio())


@pytest.mark.parametrize("term", [BatchNormMatching(), SmoothedStatistics(), PatchStatistics()])
def test_statistics_cannot_be_matched_by_a_network_in_training(term):
    wrong = replace(MATCHING, ballots=(Ballot(SMALL, (term,)),))
    with pytest.raises(InputError, match="convnet2_w8 in training: no statistics are measured of it"):
        distill(wrong, tiny.canvas(), studio())


def test_without_real_images_networks_cannot_train():
    with pytest.raises(ValueError, match="need real images"):
        SMALL.convene(tiny.studio())
