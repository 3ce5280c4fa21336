"""The charts of several shards: sums of what each has recorded, without steps where one has not."""

from __future__ import annotations

from batchmill.producer.store.load_history import INTERVAL_MS, LoadSample
from batchmill.worker.console.joined_history import joined_history

START_MS = 1000 * INTERVAL_MS


def sample(place: int, **values: float) -> LoadSample:
    return LoadSample(at_ms=START_MS + place * INTERVAL_MS + 5, **values)


def test_samples_of_one_interval_are_one_sum() -> None:
    one = [sample(0, queued=2, ended=10, oldest_s=3, ttft_p50_s=1.0)]
    other = [sample(0, queued=5, ended=1, oldest_s=9, ttft_p50_s=2.0)]
    (found,) = joined_history([one, other])
    assert (found.queued, found.ended, found.oldest_s) == (7, 11, 9)
    assert found.ttft_p50_s in (1.0, 2.0)
    assert found.workers is None


def test_a_shard_without_samples_for_a_while_makes_no_jump_of_a_counter() -> None:
    one = [sample(place, ended=10 + place, queued=1) for place in range(6)]
    other = [sample(1, ended=500, queued=1), sample(5, ended=500, queued=1)]
    found = joined_history([one, other])
    assert [each.ended for each in found] == [510, 511, 512, 513, 514, 515]
    # An old sample does not tell the load; a sample from the interval before does.
    assert [each.queued for each in found] == [1, 2, 2, 1, 1, 2]


def test_one_broker_has_its_own_history() -> None:
    one = [sample(0, queued=2)]
    assert joined_history([one]) is one
    assert list(joined_history([])) == []
