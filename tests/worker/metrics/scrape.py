"""Scrapes a service and parses what it shows, as Prometheus does."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families


@dataclass(frozen=True)
class Scrape:
    """The samples of one scrape, by name and labels."""

    samples: Mapping[tuple[str, frozenset[tuple[str, str]]], float]
    #: Types by the name of the series.
    kinds: Mapping[str, str]

    def value(self, name: str, **labels: str) -> float:
        return self.samples[name, frozenset(labels.items())]

    def sum(self, name: str) -> float:
        """Return the sum over all labels; fails if there is no sample."""
        values = [value for (sample, _), value in self.samples.items() if sample == name]
        assert values, f"{name} is not shown"
        return sum(values)

    @property
    def names(self) -> set[str]:
        return {name for name, _ in self.samples}


def scrape(port: int, path: str = "/metrics") -> Scrape:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as response:
        return parse(response.read().decode())


def parse(text: str) -> Scrape:
    samples, kinds = {}, {}
    for family in text_string_to_metric_families(text):
        kinds[family.name] = family.type
        for sample in family.samples:
            place = (sample.name, frozenset(sample.labels.items()))
            assert place not in samples, f"{place} is shown twice"
            samples[place] = sample.value
    return Scrape(samples, kinds)


def probe(port: int, path: str) -> tuple[int, dict[str, str]]:
    """Return the status and content of a probe."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)
