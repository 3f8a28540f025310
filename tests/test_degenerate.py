"""Runs on real shards whose images vary too little, and runs in which a panel goes wrong: the command's exit code, its
one line, and what the store keeps."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import tiny
import torch
from test_cli import call, refused
from torch import Tensor

from dd_tasks.committee import build, seeded
from dd_tasks.networks import Shape
from dd_tasks.packing import pack
from dd_tasks.presets import e2d
from dd_tasks.recipe import Recipe
from dd_tasks.shards import held_out
from dd_tasks.types import Studio
from dd_tasks.validate import validate

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
Images = Sequence[tuple[str, Tensor, int]]  # key, image_CHW, class


def noise(seed: int) -> Tensor:
    return torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8, generator=tiny.generator(seed))


def colour(red: int, green: int, blue: int) -> Tensor:
    return torch.tensor([red, green, blue], dtype=torch.uint8)[:, None, None].expand(3, 16, 16).contiguous()


def drawn(of: Callable[[int, int], Tensor], classes: int = 3, n: int = 60) -> Images:
    return [(f"{i:05d}", of(i, i % classes), i % classes) for i in range(n)]


def without_blue(i: int, label: int) -> Tensor:
    image_CHW = noise(i)
    image_CHW[2] = 0
    return image_CHW


def with_one(key: str) -> Images:
    """A second class, of one image by this key."""
    return [*drawn(lambda i, label: noise(i), 1), (key, noise(99), 1)]


AWAY = next(f"only{i}" for i in range(999) if held_out(f"only{i}", 0.1))
HERE = next(f"only{i}" for i in range(999) if not held_out(f"only{i}", 0.1))
DATA: dict[str, tuple[Images, int, str | None]] = {  # images, images per class, and the line that refuses them
    "a colour a class": (drawn(lambda i, label: colour(60 * label, 20, 100 * label)), 2, None),
    "one class of one colour": (drawn(lambda i, label: noise(i) if label else colour(9, 9, 9)), 2, None),
    "a channel that is 0": (drawn(without_blue), 2, None),
    "one class": (drawn(lambda i, label: noise(i), 1), 2, None),
    "a class of one image": (with_one(HERE), 1, None),
    "one colour": (
        drawn(lambda i, label: colour(7, 7, 7)), 2,
        "every pixel of the images is of one colour: there is nothing to learn from them",
    ),
    "fewer images than asked": (with_one(HERE), 2, "ipc 2 is above the 1 images of class 'c1'"),
    "a class whose image is held out": (
        with_one(AWAY), 1,
        "ipc 1 is above the 0 images of class 'c1' that are left of 1, 1 being held out or at fault",
    ),
}  # fmt: skip


def run_of(preset: str, images: Images, ipc: int, root: Path) -> list[object]:
    """A run of seconds by a method on these images."""
    classes = [f"c{label}" for label in range(1 + max(label for *_, label in images))]
    if not (root / "shards").exists():
        pack(((key, tiny.png(image), "png", label) for key, image, label in images), classes, root / "shards")
    sizes = ["observers.epochs=1", "observers.batch=16"]
    sizes += {"dream_plus": ["ballots.0.voters.samples=128"]}.get(preset, ["labeller.epochs=2"])
    sizes += {"rded": []}.get(preset, ["schedule.phases.0.steps=3"])
    sizes += ["schedule.phases.1.steps=3"] if "e2d" in preset or "test" in preset else []
    return [
        "run", preset, "--shards", f"{root}/shards/*.tar", "--ipc", ipc, "--committee", "tiny", "--no-flip",
        "--out", root / "out", "--store", root / "store", "--device", "cpu", "--student", "convnet3_w32",
        "--student-epochs", 2, "--student-batch", 4, "--seeds", 1, "--full-epochs", 0, "--no-bytes-row", "--panel", 5,
        "--codec", "exact", *(part for size in sizes for part in ("--set", size)),
    ]  # fmt: skip


CASES = [("e2d", case) for case in DATA] + [("dream_plus", case) for case, (*_, line) in DATA.items() if line is None]


@pytest.mark.parametrize(("preset", "case"), CASES)
def test_images_that_vary_too_little_are_distilled_or_refused_in_one_line(
    preset: str, case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, ipc, line = DATA[case]
    if preset == "dream_plus" and case == "a class of one image":  # an image has four tiles
        images = [*images, *((f"more{i}", noise(200 + i), 1) for i in range(6))]
    command = run_of(preset, images, ipc, tmp_path)
    if line is None:
        assert call(monkeypatch, *command) == 0, capsys.readouterr().err
        assert validate(tmp_path / "out") == []
    else:
        assert refused(capsys, monkeypatch, *command) == f"retort: {line}"
        assert not (tmp_path / "out").exists()


# A panel that goes wrong


@dataclass(frozen=True)
class Overflow:
    """A term that is infinite where a panel has this class."""

    label: int
    needs_moments = needs_patches = matches_data = False

    def convene(self, studio: Studio) -> Callable[..., Tensor]:
        def loss(judge: Any, reading: Any, targets_N: Tensor) -> Tensor:
            return reading.logits_NK.sum() * 0 + torch.where((targets_N == self.label).any(), torch.inf, 0.0)

        return loss


def overflowing(*, side: int) -> Recipe:
    (ballot,) = e2d(side=side).ballots
    return replace(e2d(side=side), ballots=(replace(ballot, terms=(*ballot.terms, Overflow(7))),))


def stored(store: Path, kind: str) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((store / kind).glob("*.json"))]


def test_a_panel_that_fails_is_not_kept_and_the_others_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = run_of("test_degenerate:overflowing", drawn(lambda i, label: noise(i), 10, 120), 2, tmp_path)
    line = refused(capsys, monkeypatch, *command)
    assert line == (
        "retort: panel 1 (slots 5..9): step 1 of 6 (schedule.phases.0): "
        "Overflow of observer thin_resnet6_w16 is infinite"
    )
    kept = stored(tmp_path / "store", "panel")
    assert len(kept) == 2  # of the first five classes; a panel of the last five is infinite
    assert not (tmp_path / "out").exists()
    assert refused(capsys, monkeypatch, *command) == line
    assert len(stored(tmp_path / "store", "panel")) == 2


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--set", "observers.peak_rate=1e38"], "retort: observer thin_resnet6_w16"),
        (["--set", "student.rate=1e38"], "retort: student convnet3_w32 seed 0: step "),
    ],
)
def test_training_that_diverges_is_one_line_and_nothing_of_it_is_kept(
    options: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = run_of("sre2l", drawn(lambda i, label: noise(i)), 2, tmp_path)
    said = refused(capsys, monkeypatch, *command, *options)
    assert (said.startswith(line) and "finite" in said) or "not a number" in said
    assert not stored(tmp_path / "store", "score")
    assert len(stored(tmp_path / "store", "observer")) == (0 if "observers" in options[1] else 3)


def test_an_imported_observer_of_which_a_weight_is_no_number_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = run_of("sre2l", drawn(lambda i, label: noise(i)), 2, tmp_path)
    net = seeded(lambda: build("convnet2_bn_w4", Shape(3, 16)), 0)
    weights = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    weights["1.features.1.running_var"][2] = torch.nan
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(weights, path)
    entry = {
        "architecture": "convnet2_bn_w4", "weights": str(path),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }  # fmt: skip
    (tmp_path / "committee.json").write_text(json.dumps({"observers": [entry]}))
    at = command.index("tiny")
    command = [*command[:at], tmp_path / "committee.json", *command[at + 1 :]]
    command = [
        part for i, part in enumerate(command) if "observers." not in f"{part}{command[min(i + 1, len(command) - 1)]}"
    ]
    said = refused(capsys, monkeypatch, *command)
    assert said == f"retort: weights {path}: 1 of 4 values of 1.features.1.running_var are not a number"
    assert not stored(tmp_path / "store", "observer")
