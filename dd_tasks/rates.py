"""How long work takes on a device that was measured: its rate where just that was measured, else one between or beyond
the nearest ones.

A network's seconds an image follow a batch's by a line, from which batches of other sizes are read; between networks,
or the same one at other sides, seconds an image follow the operations of an image on a log-log line.
"""

from collections.abc import Iterable, Sequence
from math import exp, log

from dd_tasks.anatomy import anatomy
from dd_tasks.errors import InputError
from schemas.calibration import Calibration, Operation, Rate
from schemas.plan import Work


def operations(operation: Operation, architecture: str | None, side: int, classes: int) -> float:
    """Of one image forwards; where there is no network, its pixel values; one of a logit, or of k-means."""
    if architecture is not None:
        return anatomy(architecture, side, classes).flops
    return 1.0 if operation in ("encode", "cluster") else 3.0 * side**2


def timed(line: Work, calibration: Calibration, classes: int) -> Work:
    """The line with its seconds, whether they are an estimate, and its memory. InputError where the calibration does
    not know the operation."""
    assert line.operation is not None
    known = [rate for rate in calibration.rates if rate.operation == line.operation]
    if not known:
        raise InputError(f"the calibration has no rate of {line.operation!r}; run `retort calibrate` again")
    alike = _alike(known, line)
    flops = operations(line.operation, line.architecture, line.side, classes)
    groups: dict[tuple[str | None, int], list[Rate]] = {}
    for rate in alike:
        groups.setdefault((rate.architecture, rate.side), []).append(rate)
    points = sorted((group[0].flops, _seconds_each(group, line.batch)) for group in groups.values())
    nearest = min(alike, key=lambda rate: (abs(log(rate.flops / flops)), abs(log(rate.batch / line.batch))))
    scale = line.batch * flops / (nearest.batch * nearest.flops)
    return line.model_copy(
        update={
            "seconds": line.amount * _between(points, flops),
            "estimate": not any(_same(rate, line) for rate in alike),
            "memory_bytes": round(nearest.memory_bytes * scale),
        }
    )


def start_seconds(lines: Iterable[Work], calibration: Calibration) -> dict[str, float]:
    """By stage what comes once in a process: compiling each network for each size of batch, and loading k-means."""
    found: dict[str, float] = {}
    seen = set()
    for line in lines:
        key = (line.operation, line.architecture, line.batch if line.compiled else None)
        if key in seen or not (line.compiled or line.operation == "cluster"):
            continue
        seen.add(key)
        known = [r for r in calibration.rates if (r.operation, r.compiled) == (line.operation, line.compiled)]
        same = [rate for rate in known if rate.architecture == line.architecture] or known
        found[line.stage] = found.get(line.stage, 0.0) + max((rate.start_seconds for rate in same), default=0.0)
    return found


def _same(rate: Rate, line: Work) -> bool:
    return all(
        getattr(rate, name) == getattr(line, name) for name in ("architecture", "side", "batch", "compiled")
    ) and (line.operation != "recover" or rate.terms == line.terms)


def _alike(rates: Sequence[Rate], line: Work) -> Sequence[Rate]:
    """Those nearest in kind: compiled or not, by the same terms, of the same network; each only where there are any."""
    if line.operation == "recover":
        words = set((line.terms or "").split(" + "))
        most = max(len(words & set((rate.terms or "").split(" + "))) for rate in rates)
        rates = [rate for rate in rates if len(words & set((rate.terms or "").split(" + "))) == most]
    for name in ("compiled", "architecture"):
        same = [rate for rate in rates if getattr(rate, name) == getattr(line, name)]
        rates = same or rates
    return rates


def _seconds_each(group: Sequence[Rate], batch: int) -> float:
    """Of one image in batches of this size, by the line through the two nearest sizes that were measured."""
    points = sorted((rate.batch, rate.batch / rate.per_second) for rate in group)
    if batch >= points[-1][0] or len(points) == 1:
        size, seconds = points[-1]
        return seconds / size
    above = next(i for i, (size, _) in enumerate(points) if size >= batch)
    (b0, t0), (b1, t1) = points[max(above, 1) - 1], points[max(above, 1)]
    if b0 == b1:
        return t0 / b0
    return max(t0 + (t1 - t0) * (batch - b0) / (b1 - b0), t0 * batch / b0 if batch < b0 else 0.0) / batch


def _between(points: Sequence[tuple[float, float]], flops: float) -> float:
    """Seconds an image at so many operations; beyond the ends in proportion to these."""
    if flops <= points[0][0]:
        return points[0][1] * flops / points[0][0]
    if flops >= points[-1][0]:
        return points[-1][1] * flops / points[-1][0]
    above = next(i for i, (known, _) in enumerate(points) if known >= flops)
    (f0, s0), (f1, s1) = points[above - 1], points[above]
    share = log(flops / f0) / log(f1 / f0) if f1 > f0 else 0.0
    return exp(log(s0) + share * (log(s1) - log(s0)))
