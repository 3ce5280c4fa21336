"""Scheduler and block pool on random traces, with a model that only knows its paged memory."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchmill.engine.block_pool import BlockPool
from batchmill.engine.errors import ConfigError, RequestError
from batchmill.engine.request import Request, RequestStatus
from batchmill.engine.sampling_params import SamplingParams
from batchmill.engine.schedule import ScheduledBatch
from batchmill.engine.scheduler import Scheduler

VOCAB_SIZE = 7


def next_token(history: list[int]) -> int:
    return zlib.crc32(bytes(history)) % VOCAB_SIZE


def generate_alone(prompt: list[int], max_tokens: int) -> list[int]:
    """What a request must generate, whatever happens around it."""
    tokens = list(prompt)
    for _ in range(max_tokens):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


class PagedMemory:
    """A model whose next token depends on all tokens that it finds through the block table.

    So a wrong block table, a block that is shared too early or given away too soon, and a chunk
    that starts in the wrong place all change the output.
    """

    def __init__(self, pool: BlockPool) -> None:
        self.pool = pool
        self.token_by_slot: dict[int, int] = {}

    def slot(self, request: Request, position: int) -> int:
        block_id = request.block_ids[position // self.pool.block_size]
        return block_id * self.pool.block_size + position % self.pool.block_size

    def run(self, batch: ScheduledBatch) -> list[int]:
        for item in batch.scheduled:
            start, stop = item.num_computed_tokens, item.num_computed_tokens + item.num_new_tokens
            tokens = item.request.token_ids_slice(start, stop)
            for position, token in zip(range(start, stop), tokens, strict=True):
                slot = self.slot(item.request, position)
                assert self.pool.ref_count(slot // self.pool.block_size) == 1, "a shared write"
                self.token_by_slot[slot] = token
        return [
            next_token([self.token_by_slot[self.slot(item.request, i)] for i in range(seen)])
            for item in batch.scheduled
            if item.samples
            for seen in [item.num_computed_tokens + item.num_new_tokens]
        ]


@dataclass
class Mill:
    """A scheduler with the memory that it schedules for; checks its promises after every step."""

    num_blocks: int = 16
    block_size: int = 4
    max_num_seqs: int = 4
    max_num_batched_tokens: int = 8
    enable_prefix_caching: bool = True
    admitted: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pool = BlockPool(
            self.num_blocks, self.block_size, enable_prefix_caching=self.enable_prefix_caching
        )
        self.scheduler = Scheduler(
            self.pool,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
        )
        self.memory = PagedMemory(self.pool)

    def add(self, name: str, prompt: list[int], max_tokens: int, resumed: int = 0) -> Request:
        request = Request(
            name,
            prompt,
            SamplingParams(max_tokens=max_tokens),
            seed=0,
            max_num_tokens=len(prompt) + max_tokens,
            resumed_token_ids=generate_alone(prompt, max_tokens)[:resumed],
        )
        self.scheduler.add(request)
        return request

    def step(self, *, fails: bool = False) -> ScheduledBatch:
        batch = self.scheduler.schedule()
        self.check(batch)
        tokens = self.memory.run(batch)
        if not fails:
            self.scheduler.update(batch, tokens)
            for request in batch.sampling_requests:
                if request.num_tokens == request.max_num_tokens:
                    self.scheduler.finish(request)
        self.scheduler.check()
        return batch

    def check(self, batch: ScheduledBatch) -> None:
        self.scheduler.check()
        assert batch.num_tokens <= self.max_num_batched_tokens
        assert 0 < len(self.scheduler.running) <= self.max_num_seqs
        assert all(item.num_new_tokens > 0 for item in batch.scheduled)
        scheduled = [item.request for item in batch.scheduled]
        assert not set(scheduled) & set(batch.preempted), "preempted and admitted in one step"
        for item in batch.scheduled:
            name = item.request.request_id
            if name not in self.admitted:
                self.admitted.append(name)

    def run(self, max_steps: int = 2_000) -> None:
        for _ in range(max_steps):
            if not self.scheduler.has_requests:
                assert self.pool.num_free_blocks == self.num_blocks
                return
            self.step()
        pytest.fail(f"unfinished after {max_steps} steps")


prompts = st.lists(st.integers(0, 1), min_size=1, max_size=14)
arrivals = st.tuples(
    prompts,
    st.integers(1, 12),  # max_tokens
    st.integers(0, 11),  # resumed tokens, at most one fewer than max_tokens
    st.integers(0, 6),  # steps after the one before
    st.none() | st.integers(0, 10),  # steps until it is aborted
)


@settings(max_examples=200, deadline=None)
@given(
    trace=st.lists(arrivals, min_size=1, max_size=10),
    block_size=st.integers(1, 5),
    spare_blocks=st.integers(0, 8),
    max_num_seqs=st.integers(1, 5),
    spare_budget=st.integers(0, 12),
    enable_prefix_caching=st.booleans(),
    failing_steps=st.sets(st.integers(0, 60), max_size=5),
)
def test_every_request_gets_its_own_output_whatever_the_trace(
    trace: list[tuple[list[int], int, int, int, int | None]],
    block_size: int,
    spare_blocks: int,
    max_num_seqs: int,
    spare_budget: int,
    enable_prefix_caching: bool,
    failing_steps: set[int],
) -> None:
    most_tokens = max(len(prompt) + max_tokens - 1 for prompt, max_tokens, *_ in trace)
    mill = Mill(
        num_blocks=-(-most_tokens // block_size) + spare_blocks,
        block_size=block_size,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_seqs + spare_budget,
        enable_prefix_caching=enable_prefix_caching,
    )
    pending = list(enumerate(trace))
    requests: list[Request] = []
    abort_at: dict[int, Request] = {}
    step, next_arrival = 0, trace[0][3]
    while pending or mill.scheduler.has_requests:
        assert step < 3_000, "a livelock"
        while pending and step >= next_arrival:
            index, (prompt, max_tokens, resumed, _, abort_after) = pending.pop(0)
            request = mill.add(f"{index:02}", prompt, max_tokens, min(resumed, max_tokens - 1))
            requests.append(request)
            next_arrival = step + pending[0][1][3] if pending else 0
            if abort_after is not None:
                abort_at[step + abort_after] = request
        aborted = abort_at.get(step)
        if aborted is not None and aborted.status is not RequestStatus.FINISHED:
            mill.scheduler.finish(aborted)
        if mill.scheduler.has_requests:
            mill.step(fails=step in failing_steps)
        step += 1

    assert mill.pool.num_free_blocks == mill.num_blocks
    assert mill.admitted == sorted(mill.admitted), "a later arrival was admitted first"
    for request, (prompt, max_tokens, *_, abort_after) in zip(requests, trace, strict=True):
        expected = generate_alone(prompt, max_tokens)
        output = request.output_token_ids
        assert output == expected[: len(output)]
        assert abort_after is not None or len(output) == max_tokens


def test_decodes_come_first_and_prompts_share_the_rest_of_the_budget() -> None:
    mill = Mill(num_blocks=32, max_num_batched_tokens=8)
    mill.add("short", [1, 2], max_tokens=9)
    mill.step()
    mill.add("long", [1] * 10, max_tokens=2)
    mill.add("longer", [2] * 10, max_tokens=2)
    chunks = [
        [(item.request.request_id, item.num_new_tokens, item.samples) for item in batch.scheduled]
        for batch in (mill.step(), mill.step(), mill.step())
    ]
    assert chunks == [
        [("short", 1, True), ("long", 7, False)],
        [("short", 1, True), ("long", 3, True), ("longer", 4, False)],
        [("short", 1, True), ("long", 1, True), ("longer", 6, True)],
    ]


def test_latest_arrival_is_preempted_and_computes_prompt_and_output_anew() -> None:
    mill = Mill(num_blocks=4, block_size=2, max_num_batched_tokens=20, enable_prefix_caching=False)
    first = mill.add("first", [1, 2], max_tokens=6)
    second = mill.add("second", [3, 4], max_tokens=4)
    while not second.metrics.num_preemptions:
        mill.step()
    before = list(second.output_token_ids)
    assert before, "it had generated something to lose"
    assert second.status is RequestStatus.PREEMPTED
    assert second.num_computed_tokens == 0
    assert first.metrics.num_preemptions == 0
    while second.status is RequestStatus.PREEMPTED:
        batch = mill.step()
    recomputed = {item.request.request_id: item for item in batch.scheduled}["second"]
    assert recomputed.num_new_tokens == 2 + len(before)
    mill.run()
    assert second.output_token_ids == generate_alone([3, 4], 4)
    assert second.output_token_ids[: len(before)] == before


def test_preempted_request_is_admitted_before_later_arrivals() -> None:
    mill = Mill(num_blocks=5, block_size=2, max_num_batched_tokens=20, max_num_seqs=2)
    mill.add("a", [1, 2], max_tokens=7)
    preempted = mill.add("b", [3, 4], max_tokens=6)
    mill.add("c", [5], max_tokens=1)
    while not preempted.metrics.num_preemptions:
        mill.step()
    assert [request.request_id for request in mill.scheduler.waiting] == ["b", "c"]
    mill.run()


def test_full_prefix_hit_still_computes_the_last_token() -> None:
    mill = Mill(num_blocks=32, max_num_batched_tokens=64)
    prompt = [1, 2, 3, 4, 5, 6, 0, 1]
    mill.add("first", prompt, max_tokens=1)
    mill.run()
    again = mill.add("again", prompt, max_tokens=1)
    (item,) = mill.step().scheduled
    assert (item.num_computed_tokens, item.num_new_tokens, item.samples) == (4, 4, True)
    assert again.metrics.num_cached_tokens == 4
    assert again.output_token_ids == generate_alone(prompt, 1)


def test_blocks_are_shared_once_full_and_computed_and_not_before() -> None:
    mill = Mill(num_blocks=32, max_num_batched_tokens=6)
    prompt = [1] * 11
    first = mill.add("first", prompt, max_tokens=1)
    second = mill.add("second", prompt, max_tokens=1)
    mill.step()
    assert mill.pool.num_cached_blocks == 1, "6 tokens computed: one block is full"
    batch = mill.step()
    (item,) = [item for item in batch.scheduled if item.request is second]
    assert item.num_computed_tokens == 4, "what the first had computed when the second came in"
    assert second.block_ids[:1] == first.block_ids[:1] or first.status is RequestStatus.FINISHED
    mill.run()
    assert second.output_token_ids == first.output_token_ids == generate_alone(prompt, 1)


def test_output_is_shared_with_a_request_that_continues_it() -> None:
    mill = Mill(num_blocks=32, max_num_batched_tokens=64)
    first = mill.add("turn 1", [1, 2, 3], max_tokens=10)
    mill.run()
    longer = [1, 2, 3, *first.output_token_ids, 5, 5]
    second = mill.add("turn 2", longer, max_tokens=3)
    mill.run()
    assert second.metrics.num_cached_tokens == 12
    assert second.output_token_ids == generate_alone(longer, 3)


def test_cached_tokens_and_waiting_time_are_those_of_the_first_admission() -> None:
    mill = Mill(num_blocks=4, block_size=2, max_num_batched_tokens=20)
    mill.add("first", [1, 2], max_tokens=6)
    second = mill.add("second", [3, 4], max_tokens=4)
    mill.step()
    queued_s = second.metrics.queued_s
    assert queued_s is not None
    mill.run()
    assert second.metrics.num_preemptions > 0
    assert second.metrics.queued_s == queued_s
    assert second.metrics.num_cached_tokens == 0, "its own blocks, found again, are no saving"


def test_nothing_is_shared_with_the_prefix_cache_off() -> None:
    mill = Mill(enable_prefix_caching=False)
    for name in ("first", "second"):
        request = mill.add(name, [1] * 9, max_tokens=1)
        mill.run()
        assert request.metrics.num_cached_tokens == 0
    assert mill.pool.num_cached_blocks == 0


def test_request_that_cannot_fit_alone_is_refused_and_leaves_no_trace() -> None:
    mill = Mill(num_blocks=3, block_size=4)
    with pytest.raises(RequestError, match="14 tokens, the KV cache holds 12") as refused:
        mill.add("too long", [1] * 10, max_tokens=4)
    assert refused.value.code == "context_length_exceeded"
    assert not mill.scheduler.has_requests


def test_request_that_needs_the_whole_pool_finishes_among_others() -> None:
    mill = Mill(num_blocks=3, block_size=4, max_num_batched_tokens=20)
    small = mill.add("small", [1, 2, 3], max_tokens=6)
    whole = mill.add("whole", [1] * 10, max_tokens=3)
    later = mill.add("later", [2], max_tokens=8)
    mill.run()
    assert [len(request.output_token_ids) for request in (small, whole, later)] == [6, 3, 8]


def test_small_request_does_not_overtake_a_large_one_that_waits_for_blocks() -> None:
    mill = Mill(num_blocks=4, block_size=4, max_num_batched_tokens=20)
    mill.add("running", [1] * 6, max_tokens=4)
    mill.step()
    mill.add("large", [2] * 12, max_tokens=1)
    mill.add("small", [3], max_tokens=1)
    mill.step()
    assert [request.request_id for request in mill.scheduler.waiting] == ["large", "small"]
    mill.run()
    assert mill.admitted == ["running", "large", "small"]


def test_request_is_not_admitted_into_blocks_that_running_ones_grow_into_next() -> None:
    mill = Mill(num_blocks=4, block_size=4, max_num_batched_tokens=20)
    running = mill.add("running", [1] * 8, max_tokens=2)
    waiting = mill.add("waiting", [2] * 8, max_tokens=1)
    mill.step()
    assert waiting.status is RequestStatus.WAITING, "admitted, it would be preempted at once"
    mill.run()
    assert waiting.metrics.num_preemptions == running.metrics.num_preemptions == 0


def test_failed_step_is_computed_again() -> None:
    mill = Mill(max_num_batched_tokens=6)
    request = mill.add("a", [1] * 10, max_tokens=3)
    first = mill.step(fails=True)
    assert mill.step() == first
    mill.run()
    assert request.output_token_ids == generate_alone([1] * 10, 3)


def test_discarded_request_leaves_nothing_to_share_and_names_blocks_to_clear() -> None:
    mill = Mill(num_blocks=32, max_num_batched_tokens=64)
    first = mill.add("first", [1] * 9, max_tokens=3)
    mill.step()
    second = mill.add("second", [1] * 9, max_tokens=3)
    mill.step()
    shared, own = first.block_ids[:2], second.block_ids[2:]
    assert second.block_ids[:2] == shared
    assert mill.scheduler.discard(second) == own
    mill.scheduler.check()
    assert mill.pool.num_cached_blocks == 0
    mill.run()
    assert first.output_token_ids == generate_alone([1] * 9, 3)


def test_budget_under_one_token_a_request_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_num_batched_tokens is 3"):
        Scheduler(BlockPool(4, 4), max_num_seqs=4, max_num_batched_tokens=3)
