"""Lines over a logarithmic axis, as PNG bytes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from dd_tasks.pictures import DISTILLED, INK, PAPER, QUIET, REAL, encode

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 430, 320, 62, 24, 58, 46  # pixels of one chart, and its margins
FINER = 2  # drawn so many times larger
TICKS = 4
COLOURS = (DISTILLED, "#d9822b", REAL)
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """Lines by name, over x > 0 on a logarithmic axis and y from 0 on."""

    title: str
    along: str
    lines: Mapping[str, Points]


def plotted(charts: Sequence[Chart]) -> bytes:
    """The charts side by side."""
    sheet = Image.new("RGB", (len(charts) * WIDTH * FINER, HEIGHT * FINER), PAPER)
    for place, chart in enumerate(charts):
        _draw(ImageDraw.Draw(sheet), chart, place * WIDTH)
    return encode(sheet)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size * FINER)


def _at(x: float, y: float) -> tuple[float, float]:
    return x * FINER, y * FINER


def _draw(pen: ImageDraw.ImageDraw, chart: Chart, left: float) -> None:
    every = [point for points in chart.lines.values() for point in points]
    places = sorted({x for x, _ in every})
    step = _step(max(y for _, y in every))
    span, rise = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        share = math.log(x / places[0]) / max(math.log(places[-1] / places[0]), 1e-9)
        return _at(left + LEFT + 14 + share * (span - 28), HEIGHT - BOTTOM - rise * y / (step * TICKS))

    pen.text(_at(left + LEFT, 16), chart.title, INK, _font(13), anchor="lm")
    for tick in range(TICKS + 1):
        height = HEIGHT - BOTTOM - rise * tick / TICKS
        pen.line((*_at(left + LEFT, height), *_at(left + LEFT + span, height)), "#e3e5ea", FINER)
        pen.text(_at(left + LEFT - 8, height), f"{tick * step:g}", QUIET, _font(11), anchor="rm")
    for x in places:
        pen.text((place(x, 0)[0], (HEIGHT - BOTTOM + 14) * FINER), f"{x:,.0f}", QUIET, _font(11), anchor="mm")
    pen.text(_at(left + LEFT + span / 2, HEIGHT - 12), chart.along, QUIET, _font(11), anchor="mm")
    begin = left + LEFT
    for (name, points), colour in zip(chart.lines.items(), COLOURS, strict=False):
        ends = [place(x, y) for x, y in sorted(points)]
        pen.line(ends, colour, 2 * FINER)
        for x, y in ends:
            pen.ellipse((x - 4 * FINER, y - 4 * FINER, x + 4 * FINER, y + 4 * FINER), colour)
        pen.rectangle((*_at(begin, 36), *_at(begin + 10, 39)), colour)
        pen.text(_at(begin + 15, 37), name, INK, _font(11), anchor="lm")
        begin += 15 + _font(11).getlength(name) / FINER + 14


def _step(most: float) -> float:
    """Between the ticks of an axis from 0 to at least `most`: 1, 2, 2.5 or 5 times a power of ten."""
    least, unit = most / TICKS, 10.0
    while unit > least:
        unit /= 10
    while unit * 10 <= least:
        unit *= 10
    return next(factor * unit for factor in (1, 2, 2.5, 5, 10) if factor * unit >= least)
