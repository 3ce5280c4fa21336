"""Series: the names, labels and meanings of metrics, and the numbers that are counted for them.

Counting costs a few additions and takes no lock: each counter and histogram has one writing thread,
and a reader that comes in between sees numbers that are at most one event apart.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias


class Kind(StrEnum):
    """Prometheus' types of metrics."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Series:
    """One metric: its name as Prometheus shows it, and what it means."""

    #: A counter's name ends in `_total`.
    name: str
    kind: Kind
    #: A sentence for operators, with the unit.
    meaning: str
    labels: tuple[str, ...] = ()
    #: Upper bounds of a histogram's buckets, without +Inf.
    bounds: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Buckets:
    """A histogram at one moment."""

    #: Observations per bucket, not cumulated; the last one is +Inf.
    counts: Sequence[int]
    sum: float


#: A number, or a histogram, for some values of the labels.
Sample: TypeAlias = tuple[tuple[str, ...], "float | Buckets"]


@dataclass(frozen=True, slots=True)
class Reading:
    """A series with its numbers at one moment."""

    series: Series
    samples: Sequence[Sample]


#: Returns what a service shows at one scrape.
Source: TypeAlias = Callable[[], Iterable[Reading]]


@dataclass(slots=True)
class Counter:
    """A number per combination of labels that only grows."""

    series: Series
    values: dict[tuple[str, ...], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Show 0 before the first event, if the labels are known."""
        if not self.series.labels:
            self.values[()] = 0.0

    def add(self, number: float = 1.0, labels: tuple[str, ...] = ()) -> None:
        """Count something."""
        self.values[labels] = self.values.get(labels, 0.0) + number

    def read(self) -> Reading:
        """Return the numbers so far."""
        return Reading(self.series, tuple(self.values.copy().items()))


@dataclass(slots=True)
class Histogram:
    """How often values fell into each bucket."""

    series: Series
    _counts: list[int] = field(default_factory=list)
    _sum: float = 0.0

    def __post_init__(self) -> None:
        """Make the buckets."""
        self._counts = [0] * (len(self.series.bounds) + 1)

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value that was seen a number of times."""
        self._counts[bisect_left(self.series.bounds, value)] += times
        self._sum += value * times

    def read(self) -> Reading:
        """Return the buckets so far."""
        return Reading(self.series, [((), Buckets(tuple(self._counts), self._sum))])


def gauge(series: Series, *samples: Sample) -> Reading:
    """Return a gauge's reading."""
    return Reading(series, samples)


def number(series: Series, value: float | None) -> Iterator[Reading]:
    """Yield the reading of a gauge or counter without labels; nothing if its value is unknown."""
    if value is not None:
        yield Reading(series, [((), float(value))])
