"""The page of metrics lists every series, as the code describes it."""

from __future__ import annotations

from batchmill.worker.metrics.catalogue import CATALOGUE

from .metric_tables import PAGE, marked, page


def test_the_page_of_metrics_is_current() -> None:
    text = PAGE.read_text()
    assert marked(text) == list(CATALOGUE)
    assert text == page(text), "run: python tests/structure/metric_tables.py --write"


def test_every_name_has_our_prefix_and_counters_their_ending() -> None:
    for series in (each for group in CATALOGUE.values() for each in group):
        assert series.name.startswith("batchmill_")
        is_counter = series.kind.value == "counter"
        # A histogram of vLLM has this ending, too.
        if series.name != "batchmill_iteration_tokens_total":
            assert series.name.endswith("_total") == is_counter, series.name
        assert bool(series.bounds) == (series.kind.value == "histogram")
        assert list(series.bounds) == sorted(series.bounds)
        assert series.meaning.endswith(".")
        assert not set(series.labels) & {"prompt", "text", "job_id", "url"}
