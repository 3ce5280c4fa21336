"""Readings in the formats that Prometheus reads. Only this file imports prometheus_client."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from .series import Buckets, Kind, Reading, Series, Source

if TYPE_CHECKING:
    from collections.abc import Callable


class Exposition:
    """Renders the readings of a service, and those of its process (`process_…`)."""

    def __init__(self, sources: Sequence[Source]) -> None:
        """Bind to the sources, which are asked at each scrape."""
        self._registry = CollectorRegistry()
        self._registry.register(_Collector(sources))
        ProcessCollector(registry=self._registry)

    def render(self, accept: str) -> tuple[bytes, str]:
        """Return a scrape and its content type.

        Args:
            accept: the header of the request, which chooses between two text formats.
        """
        encode: Callable[[CollectorRegistry], bytes]
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


class _Collector(Collector):
    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources

    def collect(self) -> Iterator[Metric]:
        for source in self._sources:
            yield from _families(source())

    def describe(self) -> Iterable[Metric]:
        """Return nothing: otherwise each registration would read everything once."""
        return ()


def _families(readings: Iterable[Reading]) -> Iterator[Metric]:
    for reading in readings:
        series = reading.series
        if series.kind is Kind.HISTOGRAM:
            yield _histogram(reading)
            continue
        family = _family(series)
        for labels, value in reading.samples:
            assert not isinstance(value, Buckets)
            family.add_metric(labels, value)
        yield family


def _histogram(reading: Reading) -> HistogramMetricFamily:
    series = reading.series
    family = HistogramMetricFamily(series.name, series.meaning, labels=series.labels)
    bounds = [*map(floatToGoString, series.bounds), "+Inf"]
    for labels, value in reading.samples:
        assert isinstance(value, Buckets)
        numbers = map(float, accumulate(value.counts))
        family.add_metric(labels, list(zip(bounds, numbers, strict=True)), value.sum)
    return family


def _family(series: Series) -> CounterMetricFamily | GaugeMetricFamily:
    if series.kind is Kind.COUNTER:
        name = series.name.removesuffix("_total")
        return CounterMetricFamily(name, series.meaning, labels=series.labels)
    return GaugeMetricFamily(series.name, series.meaning, labels=series.labels)
