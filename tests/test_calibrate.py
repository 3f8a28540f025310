"""A device is measured by the loops of a run, and what was measured is what a plan asks for."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dd_tasks import calibrate
from dd_tasks.bill import bill
from dd_tasks.calibrate import Bench, Stopwatch, Trial
from dd_tasks.committee import COMMITTEES, TINY
from dd_tasks.compiling import WORTH_COMPILING
from dd_tasks.errors import InputError
from dd_tasks.memory import peak_memory
from flows import planning
from schemas.spec import RunSpec

CPU = torch.device("cpu")
TRIAL = Trial(
    side=16, classes=10, committee="two", students=("convnet3_w32",), presets=("e2d",), panels=(20,),
    student_batches=(10,), compiled=False, seconds=0.05,
)  # fmt: skip


@pytest.fixture(autouse=True)
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    """A committee of the two that are quick."""
    monkeypatch.setitem(COMMITTEES, "two", TINY[1:])  # type: ignore[arg-type]


def test_a_stopwatch_ends_a_loop_and_tells_how_fast_it_was() -> None:
    watch, done = Stopwatch(0.1, CPU), 0
    for i in watch(range(10**6), "sleep"):
        time.sleep(0.02 if i else 0.1)  # the first item is slow, as a compiler is
        done += 1
    assert 8 <= done < 100 and len(watch.per_second) >= calibrate.LEAST
    assert max(watch.per_second) < 1 / 0.019
    assert watch.start > 0.1 + 2 * 0.02 - 0.002


def test_a_loop_that_ends_by_itself_is_timed_as_a_whole() -> None:
    watch = Stopwatch(60.0, CPU)
    assert list(watch(range(5), "short")) == [0, 1, 2, 3, 4]
    assert len(watch.per_second) == 1


def test_memory_is_what_a_block_took() -> None:
    with peak_memory(CPU) as held:
        ours = torch.ones(30_000_000)
        del ours
    assert 100_000_000 < held() < 250_000_000


def test_a_calibration_knows_every_operation_of_a_plan(tmp_path: Path) -> None:
    made = planning.calibrate(TRIAL, "cpu", tmp_path / "new" / "calibration.json")
    assert planning.read_calibration(tmp_path / "new" / "calibration.json") == made
    assert made.device == "cpu" and made.threads == torch.get_num_threads() and made.torch == torch.__version__
    assert all(rate.per_second > 0 and rate.repeats >= 1 for rate in made.rates)
    recovered = {rate.architecture for rate in made.rates if rate.operation == "recover"}
    assert recovered == {member.architecture for member in TINY[1:]}
    assert {rate.terms for rate in made.rates if rate.terms} == {"CrossEntropy + SmoothedStatistics"}
    extent = planning.extent(RunSpec(preset="e2d", shards=("x",), ipc=2), "digits", None, None)
    for preset in ("e2d", "cv_dd", "dream_plus", "clom(e2d)"):
        spec = RunSpec(preset=preset, shards=("x",), ipc=2, committee="two", students=("convnet3_w32",))
        plan = planning.planned(spec, extent, made, workers=2, price=3.6)
        assert all(line.seconds is not None and line.seconds > 0 for line in plan.work)
        seconds, cost = plan.totals.seconds, plan.totals.cost
        assert seconds and cost == pytest.approx(seconds * 2 * 0.001)
        assert plan.totals.peak_memory_bytes and plan.totals.peak_memory_bytes > made.base_memory_bytes
        if preset == "e2d":
            measured = {line.what for line in plan.work if not line.estimate}
            assert {"recover by thin_vgg_w16", "train convnet3_bn_w32", "convnet3_w32 on random images"} <= measured


def test_a_plan_without_a_calibration_tells_no_seconds() -> None:
    spec = RunSpec(preset="e2d", shards=("x",), ipc=2, committee="two")
    extent = planning.extent(spec, "digits", None, None)
    found = bill(planning.job_of(planning.resolve(spec, 16, 10), extent), "e2d", price=1.0)
    assert found.totals.seconds is None and found.totals.cost is None and found.stage_seconds == {}
    assert {line.seconds for line in found.work} == {None}


@pytest.mark.parametrize("side", [16, 32, 64, 224])
def test_what_is_measured_is_compiled_or_not_as_a_run_would_do_it(side: int) -> None:
    bench = Bench(replace(TRIAL, side=side), CPU)
    for images in (10, 100):
        short, long = (calibrate.epochs_of(bench, images, compiled) for compiled in (False, True))
        assert short * images * side**2 < WORTH_COMPILING <= (short + 1) * images * side**2
        assert long * images * side**2 >= WORTH_COMPILING


def test_a_trial_of_nothing_known_is_told() -> None:
    for changes, says in (({"committee": "smal"}, "unknown committee"), ({"presets": ("e3d",)}, "unknown preset")):
        with pytest.raises(InputError, match=says):
            list(calibrate.measured(Bench(replace(TRIAL, **changes), CPU)))  # type: ignore[arg-type]
