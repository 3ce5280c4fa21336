"""Line charts of the load, as geometry: the template draws them as SVG."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from batchmill.producer.store.load_history import INTERVAL_MS, LoadSample

from . import formats

WIDTH, HEIGHT = 360, 132
LEFT, RIGHT, TOP, BOTTOM = 46, 6, 8, 20
#: Most points of a line: samples of longer times are averaged.
_MAX_POINTS = 180
#: A line is broken where samples are missing for longer.
_GAP_MS = 3 * INTERVAL_MS
_NUM_TICKS = 4
#: Seconds between two times below a chart, and the most of them.
_TICK_STEPS_S = (120, 300, 600, 1800, 3600, 7200)
_MAX_X_TICKS = 6.5

#: The times of a chart, and a value for each or None.
Points = Sequence[tuple[float, float | None]]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart."""

    name: str
    points: Points

    @property
    def last(self) -> float | None:
        """Its newest value."""
        return next((value for _, value in reversed(self.points) if value is not None), None)


@dataclass(frozen=True, slots=True)
class DrawnLine:
    """A line with its place in the picture."""

    name: str
    last: str
    path: str
    #: The area below it.
    area: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart with its place in the picture."""

    title: str
    lines: Sequence[DrawnLine]
    #: Position and label of each tick.
    y_ticks: Sequence[tuple[float, str]]
    x_ticks: Sequence[tuple[float, str]]
    #: JSON for the script that shows values under the pointer.
    data: str
    #: The chart in words.
    description: str

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not any(line.path for line in self.lines)


def gauges(samples: Sequence[LoadSample], value: Callable[[LoadSample], float | None]) -> Points:
    """Return a value of each sample."""
    return [(sample.at_ms, value(sample)) for sample in samples]


def rates(samples: Sequence[LoadSample], value: Callable[[LoadSample], float | None]) -> Points:
    """Return by how much a counter grew per second before each sample."""
    points: list[tuple[float, float | None]] = []
    for before, after in itertools.pairwise(samples):
        elapsed_ms, one, other = after.at_ms - before.at_ms, value(before), value(after)
        rate = None
        if one is not None and other is not None and 0 < elapsed_ms <= _GAP_MS:
            rate = max(0.0, other - one) * 1000 / elapsed_ms
        points.append((after.at_ms, rate))
    return points


def draw(
    title: str,
    lines: Sequence[Line],
    *,
    since_ms: float,
    until_ms: float,
    label: Callable[[float | None], str],
    least_top: float = 1.0,
    top: float | None = None,
) -> Chart:
    """Place lines in a picture.

    Args:
        title: of the chart.
        lines: over the same times.
        since_ms: the left edge.
        until_ms: the right edge.
        label: writes a value.
        least_top: the highest value is at least this.
        top: the highest value; None takes it from the lines.
    """
    step_ms = max(INTERVAL_MS, (until_ms - since_ms) / _MAX_POINTS)
    averaged = [Line(line.name, _averaged(line.points, step_ms)) for line in lines]
    values = [value for line in averaged for _, value in line.points if value is not None]
    top = _nice(max([least_top, *values])) if top is None else top

    def x(at_ms: float) -> float:
        share = (at_ms - since_ms) / (until_ms - since_ms)
        return round(LEFT + min(1.0, max(0.0, share)) * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        return round(HEIGHT - BOTTOM - min(1.0, value / top) * (HEIGHT - TOP - BOTTOM), 1)

    drawn = []
    for line in averaged:
        pieces = _pieces(line.points, 2.5 * step_ms)
        places = [[(x(at_ms), y(value)) for at_ms, value in piece] for piece in pieces]
        path, area = "".join(map(_path, places)), "".join(map(_area, places))
        drawn.append(DrawnLine(line.name, label(line.last), path, area))
    ticks = [top * place / _NUM_TICKS for place in range(_NUM_TICKS + 1)]
    return Chart(
        title,
        drawn,
        y_ticks=[(y(value), label(value)) for value in (ticks[0], ticks[2], ticks[4])],
        x_ticks=_x_ticks(since_ms, until_ms, x),
        data=_data(averaged, x, y, label),
        description=f"{title}: "
        + (", ".join(f"{line.name} {line.last}" for line in drawn) or "nothing"),
    )


def _averaged(points: Points, step_ms: float) -> Points:
    """Return the mean of each step; None where a step has no value."""
    steps: dict[int, list[float | None]] = {}
    for at_ms, value in points:
        steps.setdefault(int(at_ms // step_ms), []).append(value)
    found = []
    for place, values in sorted(steps.items()):
        known = [value for value in values if value is not None]
        found.append(((place + 0.5) * step_ms, sum(known) / len(known) if known else None))
    return found


def _pieces(points: Points, gap_ms: float) -> list[list[tuple[float, float]]]:
    """Return the parts of a line between gaps."""
    pieces: list[list[tuple[float, float]]] = []
    last_ms = -math.inf
    for at_ms, value in points:
        if value is None:
            last_ms = -math.inf
            continue
        if at_ms - last_ms > gap_ms:
            pieces.append([])
        pieces[-1].append((at_ms, value))
        last_ms = at_ms
    return pieces


def _path(places: Sequence[tuple[float, float]]) -> str:
    (x, y), *more = places
    # A lone point is drawn as a short line, which has round ends.
    rest = "".join(f"L{x} {y}" for x, y in more) or f"L{x + 0.1} {y}"
    return f"M{x} {y}{rest}"


def _area(places: Sequence[tuple[float, float]]) -> str:
    bottom = HEIGHT - BOTTOM
    inner = "".join(f"L{x} {y}" for x, y in places)
    return f"M{places[0][0]} {bottom}{inner}L{places[-1][0]} {bottom}Z"


def _nice(value: float) -> float:
    """Return the next number at or above a value that makes round ticks."""
    size = 10.0 ** math.floor(math.log10(value))
    return next(
        step * size for step in (1, 1.2, 1.6, 2, 3, 4, 6, 8, 10) if step * size >= value * 0.999
    )


def _x_ticks(
    since_ms: float, until_ms: float, x: Callable[[float], float]
) -> list[tuple[float, str]]:
    span_s = (until_ms - since_ms) / 1000
    step_s = next(step for step in _TICK_STEPS_S if span_s / step <= _MAX_X_TICKS)
    first = math.ceil(since_ms / 1000 / step_s) * step_s
    moments = range(int(first), int(until_ms / 1000) + 1, step_s)
    places = [(x(at * 1000), formats.clock(at * 1000)[:5]) for at in moments]
    return [(place, text) for place, text in places if LEFT + 8 < place < WIDTH - 16]


def _data(
    lines: Sequence[Line],
    x: Callable[[float], float],
    y: Callable[[float], float],
    label: Callable[[float | None], str],
) -> str:
    """Return each time with the place and the words of its values."""
    values = [dict(line.points) for line in lines]
    times = sorted(set().union(*values))
    points = [
        {
            "x": x(at_ms),
            "at": formats.clock(at_ms)[:8],
            "values": [label(line.get(at_ms)) for line in values],
            "y": [None if (v := line.get(at_ms)) is None else y(v) for line in values],
        }
        for at_ms in times
    ]
    return json.dumps(points, separators=(",", ":"))
