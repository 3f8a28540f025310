"""Students: their schedule, their batches, their loss, and that they learn."""

import json
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import nn

from dd_tasks import augment, compiling, students
from dd_tasks.compiling import has_compiler
from dd_tasks.errors import InputError
from dd_tasks.instance_norm import NormReluPool
from dd_tasks.label import no_views
from dd_tasks.networks import Shape, build
from dd_tasks.students import StudentRecipe, batches, objective, rate_at
from dd_tasks.types import Canvas, Views
from schemas.manifest import Claim

SHAPE = Shape(tiny.CLASSES, tiny.SIDE)
QUICK = StudentRecipe("convnet2_bn_w4", epochs=4, batch=3)


def views_of(n: int, epochs: int) -> Views:
    rng = tiny.generator(5)
    images_V = torch.cat([torch.randperm(n, generator=rng) for _ in range(epochs)])
    crops = augment.random_crops(n * epochs, tiny.SIDE, (0.5, 1.0), rng)
    logits_VK = torch.randn(n * epochs, tiny.CLASSES, generator=rng)
    return tiny.unmixed(images_V, crops, logits_VK, torch.arange(epochs).repeat_interleave(n))


@pytest.mark.parametrize("tail", [1 / 6, 0.5, 1.0])
def test_the_rate_is_half_a_cosine_then_a_line_to_zero(tail):
    def cosine(progress: float) -> float:
        return 0.5 * (1 + math.cos(math.pi * progress / 2))

    bend = 1 - tail
    assert rate_at(0, tail) == 1 and rate_at(1, tail) == 0
    for progress in (0.3 * bend, 0.7 * bend):
        assert rate_at(progress, tail) == pytest.approx(cosine(progress))
    assert rate_at(bend, tail) == pytest.approx(cosine(bend))
    for share in (0.25, 0.5, 0.75):
        assert rate_at(bend + share * tail, tail) == pytest.approx((1 - share) * cosine(bend))


def test_the_rate_falls_without_a_jump():
    rates = [rate_at(i / 6000, 1 / 6) for i in range(6001)]
    assert all(0 <= a - b < 1e-3 for a, b in pairwise(rates))
    assert rate_at(5 / 6 - 1e-9, 1 / 6) == pytest.approx(rate_at(5 / 6 + 1e-9, 1 / 6), abs=1e-6)


def test_without_a_tail_the_cosine_goes_to_its_half():
    assert rate_at(1 - 1e-9, 0.0) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("n", "size", "sizes"),
    [
        (6, 3, [3, 3]),
        (8, 3, [3, 3, 2]),
        (7, 3, [3, 4]),
        (4, 3, [4]),
        (3, 3, [3]),
        (2, 3, [2]),
        (1, 3, [1]),
        (3, 2, [3]),
    ],
)
def test_no_batch_is_a_lone_view_where_there_are_two(n, size, sizes):
    assert [len(rows) for rows in batches(views_of(n, 1), size, 1, tiny.generator())] == sizes


def test_batches_cover_each_row_of_an_epoch_once_and_cycle_beyond_those_stored():
    views = views_of(7, 2)
    parts = list(batches(views, 3, 5, tiny.generator()))
    assert len(parts) == 2 * 5
    rows = [torch.cat(parts[2 * e : 2 * e + 2]).tolist() for e in range(5)]
    assert [sorted(r) for r in rows] == [list(range(7)), list(range(7, 14))] * 2 + [list(range(7))]
    assert rows[0] != rows[2] and rows[0] != sorted(rows[0])


def test_across_epochs_all_stored_rows_are_shuffled_together_and_cycle():
    parts = list(batches(views_of(7, 2), 3, 5, tiny.generator(), across=True))
    assert [len(part) for part in parts] == [3, 4] * 5
    rows = torch.cat(parts).tolist()
    assert sorted(rows[:14]) == sorted(rows[14:28]) == list(range(14)) and rows[:14] != rows[14:28]
    assert set(rows[:7]) != set(range(7))


def test_mirrored_students_see_half_of_the_views_flipped(monkeypatch):
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(students, "for_training", lambda net, *_: lambda x: seen.append(x.clone()) or net(x))
    canvas, views = tiny.canvas(6), views_of(6, 1)
    shown = augment.show(canvas.images_NCHW.float() / 255, views, slice(None))
    for mirror in (False, True):
        seen.clear()
        recipe = replace(QUICK, epochs=20, mirror=mirror)
        students.train(recipe, SHAPE, canvas, views, tiny.digits("test", 5), seed=0, device=tiny.CPU)
        kinds = [
            (any(torch.equal(x, v) for v in shown), any(torch.equal(x, v.flip(2)) for v in shown))
            for x in torch.cat(seen)
        ]
        assert all(straight or flipped for straight, flipped in kinds)
        assert (0.3 < sum(not straight for straight, _ in kinds) / len(kinds) < 0.7) == mirror


@pytest.mark.parametrize(("images", "epochs"), [(40, 150), (400, 15), (5000, 1), (10**6, 1)])
def test_ordinary_students_get_twice_the_updates_of_distilled_ones(images, epochs):
    found = students.ordinary(StudentRecipe(epochs=300, mirror=True, across=True), images, 10)
    assert found == StudentRecipe(epochs=epochs, hard=True)


def test_fewer_epochs_than_stored_use_the_first():
    assert sorted(torch.cat(list(batches(views_of(4, 3), 2, 2, tiny.generator()))).tolist()) == list(range(8))


def test_batches_are_a_function_of_the_generator():
    first, again, other = (torch.cat(list(batches(views_of(7, 1), 3, 2, tiny.generator(s)))) for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_batches_do_not_depend_on_where_views_stand():
    views = views_of(7, 2)
    order = torch.argsort(views.epochs_V * 7 + views.images_V)  # as an artifact's table has them
    moved = replace(views, images_V=views.images_V[order], epochs_V=views.epochs_V[order])
    assert not torch.equal(moved.images_V, views.images_V)
    for one, other in zip(*(batches(v, 3, 4, tiny.generator()) for v in (views, moved)), strict=True):
        assert torch.equal(views.images_V[one], moved.images_V[other])
        assert torch.equal(views.epochs_V[one], moved.epochs_V[other])


def claim(row: str = "distilled", student: str = "convnet3_w32") -> Claim:
    scores = {"accuracies": [0.5], "mean": 0.5, "std": 0, "seconds": 1}
    return Claim(row=row, student=student, epochs=7, split="test", seeds=[0], **scores)


@pytest.mark.parametrize("hard", [False, True])
def test_a_manifest_and_a_claim_give_the_student_back(hard):
    recipe = StudentRecipe("convnet3_w32", epochs=7, batch=9, rate=0.5, class_weight=0.0, ema=0.1, tail=1.0, hard=hard)
    kept = json.loads(json.dumps(students.shared(recipe)))
    assert students.for_claim(kept, claim("distilled_hard" if hard else "distilled")) == recipe


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"batch": 1}, "student: batch 1: input should be greater than or equal to 2"),
        ({"rate": "much"}, "student: rate 'much': input should be a valid number"),
        ({"tail": float("nan")}, "student: tail nan: input should be "),
        ({"hard": True}, "student: the manifest gives across, batch, class_weight, ema, hard, mirror, rate, tail"),
    ],
)
def test_a_student_that_cannot_be_is_refused(change, line):
    with pytest.raises(InputError) as refusal:
        students.for_claim({**students.shared(StudentRecipe()), **change}, claim())
    assert str(refusal.value).startswith(line)


def test_a_claim_of_an_unknown_network_is_refused():
    with pytest.raises(InputError, match="unknown architecture 'convnet33'; did you mean 'convnet3'"):
        students.for_claim(students.shared(StudentRecipe()), claim(student="convnet33"))


def test_nobody_can_be_trained_on_no_views():
    with pytest.raises(InputError, match="no labelled views"):
        list(batches(no_views(3), 2, 1, tiny.generator()))


@pytest.mark.parametrize(
    "recipe",
    [StudentRecipe(), StudentRecipe(class_weight=0.0), StudentRecipe(class_weight=2.0), StudentRecipe(hard=True)],
)
def test_the_objective_is_mse_to_the_labels_plus_cross_entropy_by_area(recipe):
    logits = [[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]]
    soft = [[2.0, -1.0, 0.0], [0.5, 2.0, -1.0]]
    own, first, second = [0.75, 1.0], [0, 1], [2, 0]
    entropies, squares = [], []
    for v in range(2):
        total = math.log(sum(math.exp(x) for x in logits[v]))
        entropies.append(own[v] * (total - logits[v][first[v]]) + (1 - own[v]) * (total - logits[v][second[v]]))
        squares += [(a - b) ** 2 for a, b in zip(logits[v], soft[v], strict=True)]
    by_class = sum(entropies) / 2
    expected = by_class if recipe.hard else sum(squares) / 6 + recipe.class_weight * by_class
    shares = [[0.75, 0.0, 0.25], [0.0, 1.0, 0.0]]
    found = objective(recipe, torch.tensor(logits), torch.tensor(soft), torch.tensor(shares))
    assert found.item() == pytest.approx(expected, rel=1e-5)


def scored(monkeypatch, recipe: StudentRecipe, canvas: Canvas, views: Views, seed: int = 0, **options) -> nn.Module:
    """The network that is scored."""
    found: list[nn.Module] = []
    monkeypatch.setattr(students, "accuracy", lambda net, test, device: found.append(net) or 0.5)
    result = students.train(recipe, SHAPE, canvas, views, None, seed=seed, device=tiny.CPU, **options)
    assert result == 0.5
    return found[0]


def trained(*args, **options) -> list:
    """Its tensors."""
    return [tensor.clone() for tensor in scored(*args, **options).state_dict().values()]


def test_students_differ_by_seed_and_are_the_same_again(monkeypatch):
    first, again, other = (trained(monkeypatch, QUICK, tiny.canvas(7), views_of(7, 2), seed=s) for s in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[2], other[2])


def test_a_student_leaves_the_global_generator_alone(monkeypatch):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    trained(monkeypatch, QUICK, tiny.canvas(7), views_of(7, 2))
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(("n", "size"), [(7, 3), (8, 3), (6, 3), (4, 3), (2, 3)])
def test_the_rate_falls_to_the_end_whatever_is_left_over_of_an_epoch(monkeypatch, n, size):
    asked = []
    monkeypatch.setattr(students, "rate_at", lambda progress, tail: asked.append(progress) or rate_at(progress, tail))
    counted = tiny.Counted()
    trained(monkeypatch, replace(QUICK, batch=size), tiny.canvas(n), views_of(n, 2), track=counted)
    steps = counted.had[0]
    assert counted.announced == [steps] and asked == pytest.approx([i / steps for i in range(steps)])


def test_training_is_adamw_on_the_views_and_the_average_of_weights_is_scored(monkeypatch):
    canvas, views = tiny.canvas(6), Views(**(vars(views_of(6, 2)) | mixes()))
    recipe = replace(QUICK, architecture="thin_resnet4_w4", ema=0.6, weight_decay=0.1)
    found = trained(monkeypatch, recipe, canvas, views, seed=4)

    torch.manual_seed(4)
    net = build(recipe.architecture, SHAPE)
    optimiser = torch.optim.AdamW(net.parameters(), weight_decay=0.1)
    average = None
    for step, rows in enumerate(batches(views, 3, 4, tiny.generator(4))):
        optimiser.param_groups[0]["lr"] = 1e-3 * rate_at(step / 8, 1 / 6)
        logits_VK = net(augment.show(canvas.images_NCHW / 255, views, rows))
        own_V = augment.own_share(views.mix_boxes_V4[rows], tiny.SIDE)
        first, second = (canvas.targets_N[x[rows].long()] for x in (views.images_V, views.partners_V))
        entropy = own_V * F.cross_entropy(logits_VK, first, reduction="none")
        entropy = entropy + (1 - own_V) * F.cross_entropy(logits_VK, second, reduction="none")
        loss = ((logits_VK - views.logits_VK[rows].float()) ** 2).mean() + 0.025 * entropy.mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        now = [v.clone() for v in net.state_dict().values()]
        average = now if average is None else [0.6 * a + 0.4 * b for a, b in zip(average, now, strict=True)]
    for one, other in zip(found, average, strict=True):
        if one.is_floating_point():
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def mixes() -> dict:
    """Partners for some of 12 views."""
    boxes_V4 = torch.zeros(12, 4, dtype=torch.int16)
    boxes_V4[::3] = torch.tensor([2, 3, 8, 9], dtype=torch.int16)
    partners_V = torch.arange(12, dtype=torch.int32) % 6
    return {"mix_boxes_V4": boxes_V4, "partners_V": partners_V}


@pytest.mark.parametrize("hard", [False, True])
def test_a_student_on_labelled_digits_beats_chance(hard):
    real = tiny.digits("train", 100)
    canvas = Canvas(real.images_NCHW, real.labels_N, ("",) * 100)
    logits_VK = 4.0 * F.one_hot(real.labels_N, 10)
    views = tiny.unmixed(torch.arange(100), augment.whole(100, tiny.SIDE), logits_VK)
    recipe = StudentRecipe("convnet2_bn_w16", epochs=10, batch=20, rate=5e-3, ema=0.8, hard=hard)
    shape = Shape(10, tiny.SIDE)
    assert students.train(recipe, shape, canvas, views, tiny.digits("test", 100), seed=0, device=tiny.CPU) > 0.5


def test_a_long_training_takes_quicker_operations_and_trains_the_same_student(monkeypatch):
    recipe = replace(QUICK, architecture="convnet2_w128", epochs=2)
    short = scored(monkeypatch, recipe, tiny.canvas(6), views_of(6, 2)).eval()
    monkeypatch.setattr(compiling, "WORTH_COMPILING", 0)
    taught, for_training = [], compiling.for_training
    monkeypatch.setattr(students, "for_training", lambda *a: taught.append(for_training(*a)) or taught[-1])
    long = scored(monkeypatch, recipe, tiny.canvas(6), views_of(6, 2))
    kinds = [[type(module) for module in net.modules()] for net in (short, long, *taught)]
    assert [NormReluPool in some for some in kinds] == [False, has_compiler(), has_compiler()]
    with torch.no_grad():
        torch.testing.assert_close(*(net(tiny.pixels(10)) for net in (long, short)), rtol=1e-2, atol=1e-3)
