"""The plain way and ours see the same views, give them the same labels, and train the same student."""

from itertools import pairwise

import pytest
import tiny
import torch

from benchmarks import plain_student as plain
from benchmarks.students import mixed
from dd_tasks import augment, students
from dd_tasks.label import Relabel
from dd_tasks.networks import Shape, build

SHAPE = Shape(tiny.CLASSES, tiny.SIDE, tiny.MEAN, tiny.STD)
EPOCHS = 3
RECIPE = students.StudentRecipe("convnet2_w8", epochs=EPOCHS, batch=4)


def labelled(group=1):
    return Relabel(epochs=EPOCHS, group=group).label(tiny.canvas(8), tiny.studio())


@pytest.mark.parametrize("group", [1, 3, 100])
def test_the_plain_views_are_ours_and_so_are_their_labels(group):
    canvas, views = tiny.canvas(8), labelled(group)
    epochs = [mixed(views)[start : start + 8] for start in range(0, len(views), 8)]
    labels = torch.cat(plain.relabel(canvas.images_NCHW, epochs, [o.net for o in tiny.committee()]))
    assert labels.dtype == torch.float16 and (views.mix_boxes_V4[:, 2] > 0).any()
    torch.testing.assert_close(labels.float(), views.logits_VK.float(), rtol=2e-3, atol=2e-3)
    shown_VCSS = augment.show(canvas.images_NCHW / 255, views, slice(None))
    lessons = plain.Lessons(canvas.images_NCHW, canvas.targets_N.tolist(), mixed(views), views.logits_VK)
    for seen_CSS, view, (own_CSS, partner_CSS, *_) in zip(shown_VCSS, lessons.views, lessons, strict=True):
        pasted = plain.pasted(own_CSS[None], partner_CSS[None], [view.paste])
        torch.testing.assert_close(pasted[0], seen_CSS, rtol=0, atol=1e-5)


def test_the_plain_student_is_ours(monkeypatch):
    canvas, views, losses, told = tiny.canvas(8), labelled(), [], []
    objective = students.objective
    monkeypatch.setattr(students, "objective", lambda *a: losses.append(objective(*a)) or losses[-1])
    monkeypatch.setattr(students, "accuracy", lambda net, *_: told.append(net) or 0.5)
    students.train(RECIPE, SHAPE, canvas, views, None, seed=1, device=tiny.CPU)
    rows = [part.tolist() for part in students.batches(views, 4, EPOCHS, tiny.generator(1))]
    order = [rows[start:stop] for start, stop in pairwise(range(0, len(rows) + 1, 2))]
    lessons = plain.Lessons(canvas.images_NCHW, canvas.targets_N.tolist(), mixed(views), views.logits_VK)
    net, theirs = students.seeded(lambda: build(RECIPE.architecture, SHAPE), 1), []
    average = plain.student(net, lessons, order, len(rows), theirs.append)
    assert len(theirs) == len(losses) == 2 * EPOCHS
    torch.testing.assert_close(torch.tensor(theirs), torch.stack(losses).detach(), rtol=1e-4, atol=1e-5)
    pixels_NCSS = tiny.pixels(20)
    torch.testing.assert_close(average(pixels_NCSS), told[0](pixels_NCSS), rtol=1e-3, atol=1e-4)


def test_plain_and_our_rates_fall_alike():
    for step in range(100):
        assert plain.falling(step / 100) == students.rate_at(step / 100, plain.TAIL)
