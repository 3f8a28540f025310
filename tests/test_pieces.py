"""Memory that runs out: what is said of images one by one is taken in pieces and is the same, all else says what may
help."""

import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from test_committee import RECIPE, SHAPE, digits
from test_distill import recipe
from test_numerics import by
from torch import Tensor, nn

from dd_tasks import committee, learners, students
from dd_tasks.committee import Observer
from dd_tasks.errors import ShortOfMemory
from dd_tasks.label import OneHot, Relabel
from dd_tasks.learners import Learners
from dd_tasks.networks import Shape
from dd_tasks.pieces import in_pieces, sparing
from dd_tasks.recipe import Ballot
from dd_tasks.recovery import recover, relabel
from dd_tasks.schedule import Phase, SharedCrop
from dd_tasks.students import StudentRecipe
from dd_tasks.terms import BatchNormMatching, CrossEntropy, SmoothedStatistics
from dd_tasks.types import RealImages
from dd_tasks.voters import Everyone, RoundRobin

HERE = Path(__file__).parent


def test_a_panel_and_labels_in_less_memory_than_they_want_are_the_same() -> None:
    """A real shortage: the process has lowered its own limit."""
    command = [sys.executable, HERE / "short_of_memory.py", "90", "unforeseen"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["pixels"] <= 1 and found["logits"] < 1e-2, found
    assert re.search(r"^panel 0: out of memory \(.*\); again, 128 at a time$", done.stderr, re.M)
    assert re.search(r"^labels: out of memory \(.*\); again, \d+ at a time$", done.stderr, re.M)


def narrow(observer: Observer, most: int) -> Observer:
    """The observer, whose network says of more images than so many what a GPU says that has no memory left for them.
    There is no GPU here: the error is raised where torch would raise it, and all else is real."""

    def refuse(net: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if len(inputs[0]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nOf the rest it says more.")

    observer.net.register_forward_pre_hook(refuse)
    return observer


@pytest.mark.parametrize(
    "terms", [(CrossEntropy(), SmoothedStatistics()), (CrossEntropy(), BatchNormMatching())], ids=str
)
@pytest.mark.parametrize("voters", [RoundRobin(), Everyone()], ids=str)
@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_panel_that_a_gpu_has_no_memory_for_is_recovered_in_pieces(
    terms: Any, voters: Any, most: int, caplog: pytest.LogCaptureFixture
) -> None:
    whole = recover(by(*terms, voters=voters), tiny.canvas(), tiny.studio())
    observers = tuple(narrow(observer, most) for observer in tiny.committee())
    with caplog.at_level(logging.WARNING):
        parts = recover(by(*terms, voters=voters), tiny.canvas(), tiny.studio(*observers), "panel 0")
    said = [line for line in caplog.messages if "out of memory" in line]
    refusal = "panel 0: out of memory (CUDA out of memory. Tried to allocate 2.00 GiB.); again, {} at a time"
    assert said == [refusal.format(size) for size in (3, 1)[: 1 if most == 3 else 2]]
    torch.testing.assert_close(parts.loss_T, whole.loss_T, rtol=1e-5, atol=1e-5)
    assert (parts.canvas.images_NCHW.int() - whole.canvas.images_NCHW.int()).abs().max() <= 1
    assert parts.image_updates == whole.image_updates


@pytest.mark.parametrize("most", [1, 2, 4])
def test_labels_and_embeddings_in_pieces_are_the_same(most: int) -> None:
    labeller, observer = Relabel(epochs=2), narrow(tiny.observer(), most)

    whole_VK = labeller.label(tiny.canvas(10), tiny.studio(tiny.observer())).logits_VK
    torch.testing.assert_close(
        relabel(labeller, tiny.canvas(10), tiny.studio(observer)).logits_VK, whole_VK, rtol=1e-2, atol=1e-3
    )
    pixels_NCSS = tiny.pixels(7)
    (parted,) = in_pieces(tiny.studio(observer), most).observers
    torch.testing.assert_close(parted.embed(pixels_NCSS), tiny.observer().embed(pixels_NCSS))


def test_statistics_and_scores_in_pieces_are_the_same() -> None:
    feed, net = digits(slice(200)), committee.seeded(lambda: committee.build("convnet2_bn_w8", SHAPE), 0)
    whole, score = committee.statistics(net, feed, 10, tiny.CPU), committee.accuracy(net, feed, tiny.CPU)
    narrow(Observer("narrow", net), 70)
    parts = committee.statistics(net, feed, 10, tiny.CPU)
    assert committee.accuracy(net, feed, tiny.CPU) == score
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one.mean_KC, other.mean_KC)
        torch.testing.assert_close(one.variance_KC, other.variance_KC)


def nothing_left(*_: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory.")


def without_memory(module: nn.Module) -> nn.Module:
    module.register_forward_pre_hook(nothing_left)
    return module


def observing() -> object:
    return committee.train(RECIPE, SHAPE, digits(slice(64)), digits(slice(64)), device=tiny.CPU)


def studying() -> object:
    canvas, student = tiny.canvas(12), StudentRecipe("convnet2_bn_w4", 1, batch=6)
    views = OneHot(epochs=1).label(canvas, tiny.studio())
    return students.train(student, Shape(3, 16), canvas, views, tiny.digits("test", 20), seed=3, device=tiny.CPU)


def matching() -> object:
    asked = recipe(
        Phase(1, SharedCrop()), ballots=(Ballot(Learners("convnet2_w4", choose="random"), (CrossEntropy(),)),)
    )
    real = RealImages(tiny.canvas(72).images_NCHW, tiny.labels(72))
    return recover(asked, tiny.canvas(), replace(tiny.studio(), real=real), "panel 0")


def by_batch_statistics() -> object:
    studio = tiny.studio(narrow(tiny.observer(), 4))
    labeller = Relabel(epochs=1, batch_statistics=5)
    return relabel(labeller, tiny.canvas(10), studio)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (observing, r"observer convnet2_bn_w8: out of memory \(CUDA .*\); .* \(--set observers.batch=N\)"),
        (studying, r"student convnet2_bn_w4 seed 3: out of memory \(CUDA .*\); .* \(--student-batch N\)"),
        (matching, r"panel 0: out of memory \(CUDA .*\); recover fewer slots together \(--panel N\), or .*"),
        (by_batch_statistics, r"observer .*: out of memory, .*; .* \(--set labeller.batch_statistics=N\)"),
    ],
)
def test_what_cannot_be_taken_in_pieces_says_what_may_help(
    make: Callable[[], object], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch is what a network in training, or BatchNorm by batch statistics, learns from. The error is raised where
    torch would raise it: in the network's first forward pass."""
    for module in (committee, students, learners):
        build = module.build
        monkeypatch.setattr(module, "build", lambda *arguments, build=build: without_memory(build(*arguments)))
    with pytest.raises(ShortOfMemory) as refused:
        make()
    assert re.fullmatch(line, str(refused.value)), str(refused.value)


def test_other_failures_are_not_taken_for_a_shortage() -> None:
    tried: list[int | None] = []

    def fails(size: int | None) -> None:
        tried.append(size)
        raise RuntimeError("shapes do not agree")

    with pytest.raises(RuntimeError, match="shapes do not agree"):
        sparing(fails, 8, "panel 0", "")
    assert tried == [None]
