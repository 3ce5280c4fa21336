"""Requests of many adapters share a few places in memory, and none starves."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchmill.engine.request.adapter import Adapter
from batchmill.engine.request.request import Request
from batchmill.engine.request.sampling_params import SamplingParams
from batchmill.engine.scheduling.block_pool import BlockPool, extend_block_hashes, salted_root
from batchmill.engine.scheduling.guided_pairs import guided_of
from batchmill.engine.scheduling.scheduler import Scheduler
from batchmill.engine.scheduling.waiting_queue import MAX_OVERTAKEN

Name = st.none() | st.text(min_size=1, max_size=8)


@given(st.lists(st.tuples(Name, Name), min_size=2, max_size=6, unique=True))
def test_no_two_adapters_or_salts_share_a_block(
    identities: list[tuple[str | None, str | None]],
) -> None:
    seen: set[bytes] = set()
    for salt, digest in identities:
        hashes: list[bytes] = []
        extend_block_hashes(hashes, list(range(12)), 4, salted_root(salt, digest))
        assert seen.isdisjoint(hashes)
        seen.update(hashes)


class Slots:
    """Places for a few adapters; one is loaded in the step after it is asked for."""

    def __init__(self, num_slots: int) -> None:
        self._num_slots = num_slots
        self._held: dict[Adapter, bool] = {}
        self.num_loads = 0

    def is_ready(self, adapter: Adapter) -> bool:
        return self._held.get(adapter, False)

    def use(self, adapter: Adapter) -> None:
        self._held[adapter] = self._held.pop(adapter)

    def load_ahead(self, wanted: Iterable[Adapter], kept: Collection[Adapter]) -> None:
        self._held = dict.fromkeys(self._held, True)
        stay = set(kept)
        for adapter in wanted:
            stay.add(adapter)
            if adapter not in self._held and not self._place(adapter, stay):
                return

    def wait(self) -> None:
        self._held = dict.fromkeys(self._held, True)

    def _place(self, adapter: Adapter, stay: Collection[Adapter]) -> bool:
        if len(self._held) == self._num_slots:
            victim = next((each for each in self._held if each not in stay), None)
            if victim is None:
                return False
            del self._held[victim]
        self._held[adapter] = False
        self.num_loads += 1
        return True


@pytest.mark.parametrize("num_slots", [1, 8])
def test_a_hundred_adapters_take_turns(num_slots: int) -> None:
    slots = Slots(num_slots)
    pool = BlockPool(512, 4)
    scheduler = Scheduler(pool, max_num_seqs=16, max_num_batched_tokens=64, adapters=slots)
    adapters = [Adapter(f"{index:032x}", 1) for index in range(100)]
    requests = [
        Request(
            str(index),
            [1, 2, 3, 4, 5],
            SamplingParams(max_tokens=3),
            seed=0,
            max_num_tokens=8,
            # Every third has none; those of a popular one come again and again.
            adapter=None if index % 3 == 0 else adapters[0 if index % 3 == 1 else index // 3],
        )
        for index in range(300)
    ]
    for request in requests:
        scheduler.add(request)
    order = []
    while scheduler.has_requests:
        batch = scheduler.schedule()
        in_step = {each.adapter for each in batch.requests if each.adapter is not None}
        assert len(in_step) <= num_slots
        assert all(map(slots.is_ready, in_step))
        assert batch.has_adapters == bool(in_step)
        scheduler.mark_launched(batch)
        scheduler.update(batch, [7] * len(batch.sampled_requests))
        for request in batch.sampled_requests:
            if request.num_tokens == request.max_num_tokens:
                scheduler.finish(request)
                order.append(int(request.request_id))
        scheduler.check_invariants()
    assert sorted(order) == list(range(300))
    assert max(each.num_overtaken for each in requests) <= MAX_OVERTAKEN + 16  # one more batch
    assert slots.num_loads <= 120  # each is loaded about once


def test_a_guide_that_waits_behind_another_adapter_does_not_stop_the_scheduler() -> None:
    scheduler = Scheduler(
        BlockPool(512, 4), max_num_seqs=64, max_num_batched_tokens=64, adapters=Slots(1)
    )
    first, second = Adapter("a" * 32, 1), Adapter("b" * 32, 1)
    ended = set()

    def add(name: str, adapter: Adapter, *, num_tokens: int = 3, is_guided: bool = False) -> None:
        request, guide = (
            Request(
                f"{name}{kind}",
                [1, 2, 3],
                SamplingParams(),
                seed=0,
                max_num_tokens=3 + num_tokens,
                adapter=adapter,
            )
            for kind in ("", " guide")
        )
        if is_guided:
            request.guide_by(guide, 2.0)
        scheduler.add(request)

    def step() -> None:
        batch = scheduler.schedule()
        assert len({each.adapter for each in batch.requests}) == 1
        scheduler.mark_launched(batch)
        scheduler.update(batch, [7] * len(batch.sampled_requests))
        for request in map(guided_of, batch.sampled_requests):
            if request.num_tokens == request.max_num_tokens and request.request_id not in ended:
                ended.add(request.request_id)
                scheduler.finish(request)
        scheduler.check_invariants()

    add("running", first, num_tokens=8)
    step()
    add("overtaken", second)
    # So many overtake it that it is the turn of a guide when no more may.
    add("alone", first)
    for number in range(MAX_OVERTAKEN):
        add(f"guided {number}", first, is_guided=True)
    while scheduler.has_requests:
        step()
    assert len(ended) == MAX_OVERTAKEN + 3


def test_steps_cost_nothing_more_once_requests_with_adapters_have_ended() -> None:
    scheduler = Scheduler(
        BlockPool(8, 4), max_num_seqs=2, max_num_batched_tokens=8, adapters=Slots(1)
    )
    request = Request(
        "one", [1], SamplingParams(), seed=0, max_num_tokens=4, adapter=Adapter("a" * 32, 1)
    )
    scheduler.add(request)
    assert scheduler.schedule().has_adapters
    scheduler.finish(request)
    assert not scheduler._adapters.is_used
