"""The picture of a dry run: what was decided then on the left, what would be now on the right, bands between.

Geometry only, in the units of the picture's own coordinates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from models.model_version import Gate

WIDTH = 440.0
HEIGHT = 240.0
GAP = 26.0
BAR = 10.0
LEFT = 118.0
RIGHT = WIDTH - LEFT
#: A band of a few among thousands is still to be seen.
THINNEST = 2.0
ORDER = (Gate.RELEASED, Gate.HELD, Gate.BLOCKED, Gate.PENDING)


@dataclass(frozen=True, slots=True)
class Bar:
    """All evaluations of one gate on one side."""

    gate: Gate
    count: int
    y: float
    height: float

    @property
    def middle(self) -> float:
        """Where its label stands."""
        return self.y + self.height / 2


@dataclass(frozen=True, slots=True)
class Band:
    """The evaluations that go from one gate to one."""

    then: Gate
    now: Gate
    count: int
    path: str

    @property
    def is_change(self) -> bool:
        """Whether the gate is another."""
        return self.then != self.now


@dataclass(frozen=True, slots=True)
class Flow:
    """The whole picture."""

    left: tuple[Bar, ...]
    right: tuple[Bar, ...]
    bands: tuple[Band, ...]
    height: float


def draw_flow(counts: Mapping[str, Mapping[str, int]]) -> Flow:
    """Lay out the bands between the gates then and the gates now."""
    flows = {
        (then, now): counts.get(then, {}).get(now, 0)
        for then in ORDER
        for now in ORDER
        if counts.get(then, {}).get(now, 0)
    }
    total = sum(flows.values())
    if not total:
        return Flow((), (), (), 0.0)
    heights = {key: max(THINNEST, HEIGHT * count / total) for key, count in flows.items()}
    left = _stack(flows, heights, side=0)
    right = _stack(flows, heights, side=1)
    offsets_left = {bar.gate: bar.y for bar in left}
    offsets_right = {bar.gate: bar.y for bar in right}
    bands = []
    for (then, now), count in flows.items():
        height = heights[then, now]
        bands.append(Band(then, now, count, _path(offsets_left[then], offsets_right[now], height)))
        offsets_left[then] += height
        offsets_right[now] += height
    # What changes is drawn last, above what stays.
    bands.sort(key=lambda band: band.is_change)
    return Flow(left, right, tuple(bands), max(_end(left), _end(right)) + GAP / 2)


def _stack(
    flows: Mapping[tuple[Gate, Gate], int],
    heights: Mapping[tuple[Gate, Gate], float],
    *,
    side: int,
) -> tuple[Bar, ...]:
    bars = []
    y = GAP / 2
    for gate in ORDER:
        own = [key for key in flows if key[side] == gate]
        if not own:
            continue
        height = sum(heights[key] for key in own)
        bars.append(Bar(gate, sum(flows[key] for key in own), y, height))
        y += height + GAP
    return tuple(bars)


def _end(bars: tuple[Bar, ...]) -> float:
    return bars[-1].y + bars[-1].height


def _path(left: float, right: float, height: float) -> str:
    begin, end = LEFT + BAR, RIGHT - BAR
    middle = (begin + end) / 2
    return (
        f"M{begin:.1f} {left:.1f}"
        f"C{middle:.1f} {left:.1f} {middle:.1f} {right:.1f} {end:.1f} {right:.1f}"
        f"V{right + height:.1f}"
        f"C{middle:.1f} {right + height:.1f} {middle:.1f} {left + height:.1f} {begin:.1f} {left + height:.1f}Z"
    )
