"""Rates that were measured are taken as they are; others lie between or beyond the nearest ones."""

import pytest

from dd_tasks.anatomy import anatomy
from dd_tasks.bill import stage_seconds
from dd_tasks.errors import InputError
from dd_tasks.rates import start_seconds, timed
from schemas.calibration import Calibration, Rate
from schemas.plan import Work

SMALL, LARGE = "convnet3_w32", "convnet3"


def rate(operation: str = "student", architecture: str | None = SMALL, **about: object) -> Rate:
    side = about.get("side", 32)
    given = {"side": side, "batch": 10, "per_second": 100.0, "spread": 0.1, "repeats": 5, "start_seconds": 0.0}
    flops = anatomy(architecture, side, 10).flops if architecture else 3 * side**2  # type: ignore[operator, arg-type]
    given |= {"memory_bytes": 1000, "flops": flops}
    return Rate.model_validate({"operation": operation, "architecture": architecture, **given, **about})


def calibration(*rates: Rate) -> Calibration:
    return Calibration(machine="m", device="cpu", torch="2", threads=1, base_memory_bytes=7, rates=list(rates))


def line(operation: str = "student", architecture: str | None = SMALL, **about: object) -> Work:
    given = {"stage": "s", "what": "w", "side": 32, "batch": 10, "amount": 1000, "unit": "images", "formula": "1000"}
    return Work.model_validate({"operation": operation, "architecture": architecture, **given, **about})


def seconds(asked: Work, *rates: Rate) -> tuple[float, bool]:
    found = timed(asked, calibration(*rates), 10)
    assert found.seconds is not None and found.estimate is not None
    return found.seconds, found.estimate


def test_what_was_measured_is_no_estimate() -> None:
    others = rate(architecture=LARGE, per_second=7), rate(batch=100, per_second=900), rate("label", per_second=3)
    assert seconds(line(), rate(), *others) == (10.0, False)


@pytest.mark.parametrize(("batch", "of_a_batch"), [(10, 0.1), (55, 0.275), (100, 0.45), (400, 1.8), (5, 0.0806)])
def test_batches_of_other_sizes_lie_on_a_line(batch: int, of_a_batch: float) -> None:
    known = rate(batch=10, per_second=10 / 0.1), rate(batch=100, per_second=100 / 0.45)
    found, estimate = seconds(line(batch=batch), *known)
    assert estimate == (batch not in (10, 100))
    assert found == pytest.approx(1000 * of_a_batch / batch, rel=1e-3)


def test_other_sides_cost_by_their_operations() -> None:
    found, estimate = seconds(line(side=64), rate())
    ratio = anatomy(SMALL, 64, 10).flops / anatomy(SMALL, 32, 10).flops
    assert estimate and found == pytest.approx(10 * ratio) and ratio == pytest.approx(4, rel=0.01)


def test_other_networks_lie_between_those_that_were_measured() -> None:
    known = rate(architecture="convnet3_w16", per_second=400), rate(architecture=LARGE, per_second=25)
    found, estimate = seconds(line(), *known)
    assert estimate and 1000 / 400 < found < 1000 / 25
    beyond, _ = seconds(line(architecture="convnet3_w256"), *known)
    ratio = anatomy("convnet3_w256", 32, 10).flops / anatomy(LARGE, 32, 10).flops
    assert beyond == pytest.approx(1000 / 25 * ratio)


def test_the_same_network_tells_more_than_others() -> None:
    assert seconds(line(batch=20), rate(batch=10), rate(architecture=LARGE, batch=20, per_second=1)) == (10.0, True)


def test_terms_and_compiling_choose_the_rate() -> None:
    by_terms = (
        rate("recover", terms="CrossEntropy + SmoothedStatistics", per_second=50),
        rate("recover", terms="BatchNormMatching + CrossEntropy", per_second=100),
    )
    asked = line("recover", terms="BatchNormMatching + CrossEntropy")
    assert seconds(asked, *by_terms) == (10.0, False)
    few = asked.model_copy(update={"terms": "SmoothedStatistics"})
    assert seconds(few, *by_terms) == (20.0, True)
    both = rate(per_second=10), rate(compiled=True, per_second=100)
    assert seconds(line(compiled=True), *both) == (10.0, False)
    assert seconds(line(compiled=True), both[0]) == (100.0, True)


def test_an_operation_that_was_not_measured_is_told() -> None:
    with pytest.raises(InputError, match="no rate of 'decode'"):
        timed(line("decode", None), calibration(rate()), 10)


def test_memory_grows_with_batch_and_operations() -> None:
    found = timed(line(batch=100), calibration(rate()), 10)
    assert found.memory_bytes == 10_000


def test_a_network_is_compiled_once_for_each_size_of_batch() -> None:
    known = calibration(rate(compiled=True, start_seconds=20), rate("observer", compiled=True, start_seconds=30))
    lines = [line(compiled=True), line(compiled=True), line("observer", stage="o", compiled=True), line()]
    assert start_seconds(lines, known) == {"s": 20, "o": 30}
    assert start_seconds([*lines, line(compiled=True, batch=50)], known) == {"s": 40, "o": 30}


def test_k_means_is_loaded_once() -> None:
    sizes = (rate("cluster", None, batch=n, start_seconds=s) for n, s in ((10, 3.0), (20, 0.0)))
    lines = [line("cluster", None, stage=stage, batch=n) for stage, n in (("priors", 5), ("choose", 7))]
    assert start_seconds(lines, calibration(*sizes)) == {"priors": 3.0}


@pytest.mark.parametrize(("workers", "expected"), [(1, 130), (2, 70), (4, 40), (100, 35)])
def test_workers_share_a_stage_but_not_its_longest_part(workers: int, expected: float) -> None:
    lines = [line(seconds=100.0, parts=4), line(seconds=20.0)]
    assert stage_seconds(lines, {"s": 10.0}, workers) == {"s": expected}
