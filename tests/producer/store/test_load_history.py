"""The history of the load: one sample per interval, in a bounded list."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls.load_history import store_sample
from batchmill.producer.store import load_history as history
from batchmill.producer.store.job_store import JobStore
from batchmill.producer.store.load_history import LoadSample, add_sample, load_history

from ...support.processes import wait_until


@pytest.fixture
def store(redis_url: str) -> Iterator[JobStore]:
    store = JobStore.from_url(redis_url)
    yield store
    store.close()


def test_programs_together_store_one_sample_per_interval(store: JobStore) -> None:
    stored = [store.run(add_sample(LoadSample(queued=number))) for number in range(5)]
    # The five calls may touch two intervals.
    assert stored[0]
    assert sum(stored) in (1, 2)
    samples = store.read(load_history(10))
    assert len(samples) == sum(stored)
    assert samples[0].queued == 0
    assert samples[0].tokens_per_s is None
    assert samples[0].at_ms > 0


def test_the_list_is_bounded_and_the_newest_samples_are_read_oldest_first(store: JobStore) -> None:
    number = 0

    def store_another() -> bool:
        nonlocal number
        text = f"[{number}]"
        number += store.run(store_sample(text, interval_ms=1, max_samples=8))
        return number > 20

    wait_until(store_another, "twenty samples")
    samples = store.read(load_history(100))
    assert [sample.queued for sample in samples] == list(range(number - 8, number))
    assert [sample.queued for sample in store.read(load_history(3))] == [*range(number - 3, number)]
    assert 8 < store.client.pttl(keys.LOAD_HISTORY) <= 3_600_008


def test_all_samples_together_stay_below_the_size_that_is_told(store: JobStore) -> None:
    values = {name: 123_456.789 for name in LoadSample.__dataclass_fields__ if name != "at_ms"}
    call = add_sample(LoadSample(**values))  # type: ignore[arg-type]
    assert len(str(call.args[0])) * history.MAX_SAMPLES < 400_000


def test_samples_that_batchmill_did_not_write_are_left_out(store: JobStore) -> None:
    store.run(add_sample(LoadSample(queued=3, in_progress=1)))
    for forged in (
        b"",
        b"x",
        b"12",
        b"12 {}",
        b"12 [",
        b'12 ["a"]',
        b"-1 [1]",
        b"\xff [1]",
        b"12 [NaN]",
    ):
        store.client.rpush(keys.LOAD_HISTORY, forged)
    for absurd in (b"12 [NaN]", b"12 [Infinity]", b"12 [1" + b"0" * 400 + b"]"):
        store.client.rpush(keys.LOAD_HISTORY, absurd)
    store.client.rpush(keys.LOAD_HISTORY, b"1000 [7,8" + b",1" * 40 + b"]")  # of a later version
    assert [sample.queued for sample in store.read(load_history(20))] == [7, 3]
    store.client.delete(keys.LOAD_HISTORY)
    store.client.set(keys.LOAD_HISTORY, "of another type")
    assert store.read(load_history(20)) == []
    assert store.run(add_sample(LoadSample(queued=5)))
    assert [sample.queued for sample in store.read(load_history(20))] == [5]
