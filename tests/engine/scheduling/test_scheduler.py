"""Scheduler and block pool on random traces, with a model that only knows its paged memory."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchmill.engine.errors import ConfigError, RequestError
from batchmill.engine.request.request import Request, RequestStatus
from batchmill.engine.scheduling.block_pool import BlockPool
from batchmill.engine.scheduling.scheduler import Scheduler
from batchmill.engine.scheduling.waiting_queue import MAX_OVERTAKEN

from .mill import Mill, generate_alone

prompts = st.lists(st.integers(0, 1), min_size=1, max_size=14)
arrivals = st.tuples(
    prompts,
    st.integers(1, 12),  # max_tokens
    st.integers(0, 11),  # resumed tokens, at most one fewer than max_tokens
    st.integers(0, 6),  # steps after the one before
    st.none() | st.integers(0, 10),  # steps until it is aborted
    st.integers(0, 2),  # priority
    st.sampled_from([None, None, "salt", "pepper"]),
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
    out_of_memory_steps=st.sets(st.integers(0, 60), max_size=5),
    ageing_s=st.sampled_from([0.0, 1e-4, 1e6]),
    num_steps_ahead=st.integers(0, 1),
    stop_token=st.none() | st.just(3),
    num_speculative_tokens=st.sampled_from([0, 0, 1, 3, 6]),
)
def test_every_request_gets_its_own_output_whatever_the_trace(
    trace: list[tuple[list[int], int, int, int, int | None, int, str | None]],
    block_size: int,
    spare_blocks: int,
    max_num_seqs: int,
    spare_budget: int,
    enable_prefix_caching: bool,
    failing_steps: set[int],
    out_of_memory_steps: set[int],
    ageing_s: float,
    num_steps_ahead: int,
    stop_token: int | None,
    num_speculative_tokens: int,
) -> None:
    most_tokens = max(len(prompt) + max_tokens - 1 for prompt, max_tokens, *_ in trace)
    mill = Mill(
        num_blocks=-(-most_tokens // block_size) + spare_blocks,
        block_size=block_size,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_seqs + spare_budget,
        enable_prefix_caching=enable_prefix_caching,
        ageing_s=ageing_s,
        num_steps_ahead=num_steps_ahead,
        stop_token=stop_token,
        num_speculative_tokens=num_speculative_tokens,
    )
    pending = list(enumerate(trace))
    requests: list[Request] = []
    abort_at: dict[int, Request] = {}
    step, next_arrival = 0, trace[0][3]
    while pending or mill.scheduler.has_requests:
        assert step < 3_000, "a livelock"
        while pending and step >= next_arrival:
            index, (prompt, max_tokens, resumed, _, abort_after, priority, salt) = pending.pop(0)
            request = mill.add(
                f"{index:02}",
                prompt,
                max_tokens,
                min(resumed, max_tokens - 1),
                priority=priority,
                cache_salt=salt,
            )
            requests.append(request)
            next_arrival = step + pending[0][1][3] if pending else 0
            if abort_after is not None:
                abort_at[step + abort_after] = request
        aborted = abort_at.get(step)
        if aborted is not None and aborted.status is not RequestStatus.FINISHED:
            mill.scheduler.finish(aborted)
        if mill.scheduler.has_requests:
            mill.step(fails=step in failing_steps, is_out_of_memory=step in out_of_memory_steps)
        step += 1
    while mill.in_flight:
        mill.collect()
    mill.scheduler.check_invariants()

    assert mill.pool.num_free_blocks == mill.num_blocks
    assert all(request.num_overtaken <= MAX_OVERTAKEN for request in requests)
    gave_up = set(mill.given_up)
    for request, arrival in zip(requests, trace, strict=True):
        prompt, max_tokens, _, _, abort_after, *_ = arrival
        expected = generate_alone(prompt, max_tokens)
        output = request.output_token_ids
        assert output == expected[: len(output)]
        is_whole = len(output) == max_tokens or output[-1:] == [stop_token]
        assert abort_after is not None or request in gave_up or is_whole
        num_resumed = request.metrics.num_resumed_tokens
        assert stop_token not in output[num_resumed:-1], "a token past its end was kept"


def test_decodes_come_first_and_prompts_share_the_rest_of_the_budget() -> None:
    mill = Mill(num_blocks=32, max_num_batched_tokens=8)
    mill.add("short", [1, 2], max_tokens=9)
    mill.step()
    mill.add("long", [1] * 10, max_tokens=2)
    mill.add("longer", [2] * 10, max_tokens=2)
    chunks = [
        [
            (item.request.request_id, item.num_new_tokens, item.needs_sample)
            for item in batch.scheduled
        ]
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
    assert (item.num_computed_tokens, item.num_new_tokens, item.needs_sample) == (4, 4, True)
    assert again.metrics.num_cached_tokens == 4
    assert again.output_token_ids == generate_alone(prompt, 1)


def test_blocks_are_shared_in_the_step_that_fills_them_and_not_before() -> None:
    mill = Mill(num_blocks=32, max_num_batched_tokens=6)
    prompt = [1] * 11
    first = mill.add("first", prompt, max_tokens=1)
    second = mill.add("second", prompt, max_tokens=1)
    mill.step()
    assert mill.pool.num_cached_blocks == 0, "a block is full, and no token proves it finite"
    batch = mill.step()
    (item,) = [item for item in batch.scheduled if item.request is second]
    assert item.num_computed_tokens == 8, "the first reaches its end in this step"
    mill.run()
    assert second.output_token_ids == first.output_token_ids == generate_alone(prompt, 1)


def test_requests_of_one_arrival_compute_their_common_prefix_once() -> None:
    mill = Mill(num_blocks=1000, max_num_seqs=64, max_num_batched_tokens=256)
    prefix = [0, 1] * 256
    requests = [
        mill.add(str(index), [*prefix, index % 7, index // 7], max_tokens=2) for index in range(64)
    ]
    num_computed = 0
    while mill.scheduler.has_requests:
        num_computed += mill.step().num_tokens
    assert num_computed == 512 + 64 * 2 + 64, "the prefix once; of each its end and its first token"
    for request in requests:
        assert request.output_token_ids == generate_alone(request.prompt_token_ids, 2)


def test_request_on_blocks_of_a_step_that_failed_computes_them_itself_if_need_be() -> None:
    mill = Mill(num_blocks=32, max_num_batched_tokens=64)
    prompt = [1, 2, 3, 4, 5, 6, 0, 1, 2]
    first = mill.add("first", prompt, max_tokens=2)
    second = mill.add("second", prompt, max_tokens=2)
    batch = mill.scheduler.schedule()  # and never run: the memory stays empty
    assert [item.num_new_tokens for item in batch.scheduled] == [9, 1]
    mill.scheduler.finish(first)
    (item,) = mill.step().scheduled
    assert (item.request, item.num_new_tokens) == (second, 9)
    mill.run()
    assert second.output_token_ids == generate_alone(prompt, 2)


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
    assert mill.step().scheduled == first.scheduled
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
    mill.scheduler.finish(second, is_kv_finite=False)
    assert list(mill.scheduler.blocks_to_zero) == own
    mill.scheduler.check_invariants()
    assert mill.pool.num_cached_blocks == 0
    mill.run()
    assert first.output_token_ids == generate_alone([1] * 9, 3)


def test_budget_under_one_token_a_request_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_num_batched_tokens is 3"):
        Scheduler(BlockPool(4, 4), max_num_seqs=4, max_num_batched_tokens=3)


def test_drafts_take_only_budget_and_blocks_that_nobody_needs() -> None:
    mill = Mill(num_blocks=8, max_num_batched_tokens=8, num_speculative_tokens=6)
    first, second = mill.add("first", [0, 1], 12), mill.add("second", [1, 0, 1], 12)
    mill.step()

    batch = mill.step()
    (item,) = batch.chunks
    assert (item.request, item.num_new_tokens) == (first, 1 + 6), "all but the second's own token"
    assert batch.decodes == (second,)
    assert mill.num_accepted_tokens > 0


def test_drafts_leave_a_block_for_each_request_to_grow_into() -> None:
    mill = Mill(num_blocks=4, num_speculative_tokens=6)
    request = mill.add("only", [0, 1], 12)
    mill.add("other", [1, 1, 1, 0], 5)
    mill.step()

    sizes = {item.request: item.num_new_tokens for item in mill.step().scheduled}
    assert sizes[request] == 2, "its first block has one slot more than it needs"
    mill.run()


def test_nothing_is_scheduled_while_drafts_are_in_flight() -> None:
    mill = Mill(num_speculative_tokens=4, max_num_batched_tokens=16)
    mill.add("first", [0, 1], 12)
    mill.step()
    batch = mill.scheduler.schedule()
    assert batch.has_drafts
    mill.scheduler.mark_launched(batch)
    assert mill.scheduler.schedule().num_seqs == 0
