"""Where a figure's lines lie on an SVG canvas: numbers in, coordinates out. Colours are the page's affair."""

from __future__ import annotations

import math
from dataclasses import dataclass

from models.certificate_curves import Figure, Series, Value

WIDTH, HEIGHT = 480.0, 270.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 22.0, 10.0, 34.0
MAX_TICKS = 7


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on an axis."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Line:
    """One curve: its points, the polygon of its interval (empty without one), and the text for those who listen."""

    label: str
    place: int
    points: tuple[tuple[float, float], ...]
    band: str
    reading: str

    @property
    def path(self) -> str:
        """The points, as a polyline takes them."""
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in self.points)


@dataclass(frozen=True, slots=True)
class Chart:
    """A figure on its canvas."""

    title: str
    x_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]
    limit: float | None

    width = WIDTH
    height = HEIGHT
    left = LEFT
    right = WIDTH - RIGHT
    top = TOP
    bottom = HEIGHT - BOTTOM


def lay_out(figure: Figure) -> Chart:
    """Put a figure on its canvas."""
    values = [value for series in figure.series for value in series.values]
    xs = sorted({value.x for value in values})
    top = 100.0 if figure.is_share else _round_up(max(value.y for value in values))
    scale = _Scale(xs[0], xs[-1], top, figure.is_logarithmic)
    steps = (0.0, 0.25, 0.5, 0.75, 1.0)
    unit = "%" if figure.is_share else ""
    return Chart(
        title=figure.title,
        x_label=figure.x_label,
        x_ticks=tuple(Tick(scale.x(x), f"{x:g}") for x in _thinned(xs)),
        y_ticks=tuple(Tick(scale.y(top * share), f"{top * share:g}{unit}") for share in steps),
        lines=tuple(_line(series, scale, unit) for series in figure.series),
        limit=None if figure.limit is None else scale.y(figure.limit),
    )


@dataclass(frozen=True, slots=True)
class _Scale:
    first: float
    last: float
    top: float
    is_logarithmic: bool

    def x(self, value: float) -> float:
        place = math.log if self.is_logarithmic else float
        span = place(self.last) - place(self.first)
        share = (place(value) - place(self.first)) / span if span else 0.5
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - value / self.top * (HEIGHT - TOP - BOTTOM)


def _line(series: Series, scale: _Scale, unit: str) -> Line:
    points = tuple((scale.x(value.x), scale.y(value.y)) for value in series.values)
    highs = [(scale.x(v.x), scale.y(v.high)) for v in series.values if v.high is not None]
    lows = [(scale.x(v.x), scale.y(v.low)) for v in series.values if v.low is not None]
    return Line(
        label=series.label,
        place=series.place,
        points=points,
        band=" ".join(f"{x:.1f},{y:.1f}" for x, y in [*highs, *lows[::-1]]),
        reading="; ".join(_read(value, unit) for value in series.values),
    )


def _read(value: Value, unit: str) -> str:
    return f"{value.x:g}: {value.y:.4g}{unit}"


def _thinned(xs: list[float]) -> list[float]:
    """Leave out labels where they would touch, but never the ends."""
    if len(xs) <= MAX_TICKS:
        return xs
    every = math.ceil(len(xs) / MAX_TICKS)
    kept = xs[:-1:every]
    # One that stands close to the last makes way for it.
    return [*(x for x in kept if xs[-1] - x > (xs[-1] - xs[0]) / (2 * MAX_TICKS)), xs[-1]]


def _round_up(highest: float) -> float:
    """Give the next number whose quarters read well."""
    if highest <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(highest))
    return power * next(
        step for step in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10) if step * power >= highest
    )
