"""What a view costs is found before a panel, which begins in pieces where all of its views would not fit."""

import json
import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from test_numerics import by
from test_pieces import narrow
from torch import Tensor

from dd_tasks import memory, probe
from dd_tasks.label import OneHot, Relabel
from dd_tasks.memory import free_memory, peak_memory
from dd_tasks.pieces import in_pieces
from dd_tasks.probe import bytes_a_view, kept_bytes
from dd_tasks.recovery import recover, relabel
from dd_tasks.terms import CrossEntropy, SmoothedStatistics
from dd_tasks.voters import Everyone, RoundRobin

ARCHITECTURES = "convnet2_bn_w4", "thin_resnet4_w4", "thin_vgg_w4"
HERE = Path(__file__).parent


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("moments", [False, True])
def test_what_is_kept_grows_by_as_much_with_every_view(architecture: str, moments: bool) -> None:
    observer = tiny.observer(0, architecture)
    kept = [kept_bytes(observer, views, tiny.SIDE, tiny.CPU, moments=moments) for views in (1, 2, 3, 7)]
    each = bytes_a_view(observer, tiny.SIDE, tiny.CPU, moments=moments)
    assert each > 3 * tiny.SIDE**2 * 4
    assert [kept[1] - kept[0], kept[2] - kept[1], kept[3] - kept[2]] == [each, each, 4 * each]


def test_a_view_of_twice_the_side_costs_four_times_as_much() -> None:
    large, small = (bytes_a_view(tiny.observer(side=side), side, tiny.CPU) for side in (32, 16))
    assert large == pytest.approx(4 * small, rel=0.01)


@pytest.mark.parametrize("architecture", ["convnet3_bn_w32", "thin_resnet8_w16"])
def test_a_pass_takes_no_more_than_is_foreseen(architecture: str) -> None:
    observer, views = tiny.observer(0, architecture, 32), 150

    def look() -> None:
        views_VCSS = torch.rand(views, 3, 32, 32, requires_grad=True)
        torch.autograd.grad(observer.read(views_VCSS).logits_NK.sum(), views_VCSS)

    look()
    with peak_memory(tiny.CPU) as taken:
        look()
    kept = views * bytes_a_view(observer, 32, tiny.CPU)
    assert 0.7 * kept < taken() < probe.PEAK_ELSEWHERE[0] * kept + views * 3 * 32**2 * 4 * probe.COPIES


def test_an_observer_is_probed_once_and_the_generator_is_left_alone() -> None:
    watched, studio = tiny.Watched(tiny.observer()), tiny.studio()
    began = studio.rng.get_state()
    for _ in range(2):
        bytes_a_view(watched, tiny.SIDE, tiny.CPU, moments=True, patches=False)
    assert watched.sizes == [1, 2] and watched.moments == [True, True]
    assert torch.equal(studio.rng.get_state(), began)


def looked_at(monkeypatch: pytest.MonkeyPatch, free: int) -> list[int]:
    """The batches that observers are to look at from now on, with so many bytes that seem to be free."""
    sizes: list[int] = []
    monkeypatch.setattr(probe, "free_memory", lambda device: free)
    monkeypatch.setattr(
        "dd_tasks.recovery.in_pieces", lambda studio, size: sizes.append(size) or in_pieces(studio, size)
    )
    return sizes


@pytest.mark.parametrize("voters", [RoundRobin(), Everyone()], ids=str)
@pytest.mark.parametrize("share", [2, 4])
def test_a_panel_that_would_not_fit_begins_in_pieces(
    voters: Any, share: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Observers that refuse larger pieces prove that none is tried."""
    asked, canvas = by(CrossEntropy(), SmoothedStatistics(), voters=voters), tiny.canvas(8)
    whole = recover(asked, canvas, tiny.studio())
    each = max(bytes_a_view(o, tiny.SIDE, tiny.CPU, moments=True, patches=False) for o in tiny.committee())
    own = 8 * 3 * tiny.SIDE**2 * 4 * probe.COPIES
    sizes = looked_at(monkeypatch, int(own + 8 // share * each * probe.PEAK_ELSEWHERE[0]) + 1)
    observers = tuple(narrow(observer, max(2, 8 // share)) for observer in tiny.committee())
    with caplog.at_level(logging.WARNING):
        parts = recover(asked, canvas, tiny.studio(*observers), "panel 0")
    assert sizes == [8 // share] and "out of memory" not in caplog.text
    (line,) = (record.getMessage() for record in caplog.records if record.name == probe.__name__)
    assert re.fullmatch(rf"panel 0: 8 views may take \d+ MB, \d+ MB are free; {8 // share} at a time", line)
    torch.testing.assert_close(parts.loss_T, whole.loss_T, rtol=1e-5, atol=1e-5)
    assert (parts.canvas.images_NCHW.int() - whole.canvas.images_NCHW.int()).abs().max() <= 1


def test_labels_that_would_not_fit_begin_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    labeller = Relabel(epochs=3, batch=20)
    whole_VK = relabel(labeller, tiny.canvas(10), tiny.studio()).logits_VK
    each = max(bytes_a_view(observer, tiny.SIDE, tiny.CPU) for observer in tiny.committee())
    own = 20 * 3 * tiny.SIDE**2 * 4 * probe.COPIES
    sizes = looked_at(monkeypatch, int(own + 5 * each * probe.PEAK_ELSEWHERE[1]) + 1)
    parts_VK = relabel(labeller, tiny.canvas(10), tiny.studio()).logits_VK
    assert sizes == [5]
    torch.testing.assert_close(parts_VK, whole_VK, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("labeller", [OneHot(epochs=1), Relabel(epochs=1, batch_statistics=5)], ids=str)
def test_labels_that_need_no_pieces_or_cannot_have_any_are_not_probed(
    labeller: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = looked_at(monkeypatch, 0)
    relabel(labeller, tiny.canvas(10), tiny.studio())
    assert sizes == [None]


def test_with_plenty_of_memory_the_bits_are_those_of_the_bare_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    def made() -> tuple[Tensor, ...]:
        panel = recover(by(CrossEntropy(), SmoothedStatistics()), tiny.canvas(), tiny.studio())
        return panel.pixels_NCSS, panel.loss_T, relabel(Relabel(epochs=2), tiny.canvas(), tiny.studio()).logits_VK

    sizes = looked_at(monkeypatch, sys.maxsize)
    probed = made()
    assert sizes == [None, None]
    monkeypatch.setattr("dd_tasks.recovery.fitting", lambda *_, **__: None)
    for one, other in zip(probed, made(), strict=True):
        assert torch.equal(one, other)


def test_under_a_real_limit_nothing_runs_out() -> None:
    """The process has lowered its own limit."""
    command = [sys.executable, HERE / "short_of_memory.py", "90"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["pixels"] <= 1 and found["logits"] < 1e-2, found
    assert "out of memory" not in done.stderr
    for what in ("panel 0", "labels"):
        assert re.search(rf"^{what}: \d+ views may take \d+ MB, \d+ MB are free; \d+ at a time$", done.stderr, re.M)


def test_where_not_even_two_views_can_be_looked_at_the_loop_tells(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        recover(by(CrossEntropy()), tiny.canvas(4), tiny.studio(narrow(tiny.observer(), 1)), "panel 0")
    assert [line.split(";")[1] for line in caplog.messages] == [" again, 2 at a time", " again, 1 at a time"]


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 8,000 kB available, whose files are in this folder."""
    (tmp_path / "meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:  8000 kB\n")
    (tmp_path / "self").mkdir()
    for name, path in {"PROCESS": "self", "MACHINE": "meminfo", "GROUPS": "groups"}.items():
        monkeypatch.setattr(memory, name, tmp_path / path)
    return tmp_path


def group(folder: Path, limit: str, names: tuple[str, str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in zip(("limit", "use", "stat"), (limit, "700000", f"{names[2]} 100000\nother 5\n"), strict=True):
        (folder / {"limit": names[0], "use": names[1], "stat": "memory.stat"}[name]).write_text(text + "\n")


NEW = "memory.max", "memory.current", "inactive_file"
OLD = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"


@pytest.mark.parametrize(
    ("lines", "where", "names"),
    [
        ("0::/", "", NEW),
        ("0::/user/us", "user/us", NEW),
        ("0::/user/us", "user", NEW),
        ("5:cpu,cpuacct:/\n4:memory:/jobs/us\n0::/", "memory/jobs/us", OLD),
        ("4:memory:/docker/unseen/from/within\n0::/", "memory", OLD),
    ],
)
def test_the_limit_of_a_control_group_counts_wherever_it_is_set(
    lines: str, where: str, names: tuple[str, str, str], system: Path
) -> None:
    (system / "self" / "cgroup").write_text(lines + "\n")
    assert free_memory(tiny.CPU) == 8000 * 1024
    group(system / "groups" / where, "1000000", names)
    assert free_memory(tiny.CPU) == 400_000
    group(system / "groups" / where, "max" if names == NEW else "9223372036854771712", names)
    assert free_memory(tiny.CPU) == 8000 * 1024
    group(system / "groups" / where, "500000", names)
    assert free_memory(tiny.CPU) == 0


def test_where_the_system_says_nothing_all_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PROCESS", "MACHINE", "GROUPS"):
        monkeypatch.setattr(memory, name, tmp_path / name)
    assert free_memory(tiny.CPU) == sys.maxsize
