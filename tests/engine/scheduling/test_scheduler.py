"""Scheduler and block pool on random traces, with a model that reads only its paged memory."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchmill.engine.errors import ConfigError, RequestError
from batchmill.engine.request.request import Request, RequestStatus
from batchmill.engine.scheduling.block_pool import BlockPool
from batchmill.engine.scheduling.scheduler import Scheduler
from batchmill.engine.scheduling.waiting_queue import MAX_OVERTAKEN

from .simulation import SchedulerSimulation, generate_alone

#: prompt, max_tokens, resumed, steps since the previous one, steps until aborted, priority, salt
Arrival = tuple[list[int], int, int, int, int | None, int, str | None]

prompts = st.lists(st.integers(0, 1), min_size=1, max_size=14)
arrivals = st.tuples(
    prompts,
    st.integers(1, 12),  # max_tokens
    st.integers(0, 11),  # resumed tokens, at most one fewer than max_tokens
    st.integers(0, 6),  # steps after the previous arrival
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
    num_host_blocks=st.sampled_from([0, 1, 3, 32]),
)
def test_every_request_gets_its_own_output_whatever_the_trace(
    trace: list[Arrival],
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
    num_host_blocks: int,
) -> None:
    most_tokens = max(len(prompt) + max_tokens - 1 for prompt, max_tokens, *_ in trace)
    sim = SchedulerSimulation(
        num_blocks=-(-most_tokens // block_size) + spare_blocks,
        block_size=block_size,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_seqs + spare_budget,
        enable_prefix_caching=enable_prefix_caching,
        ageing_s=ageing_s,
        num_steps_ahead=num_steps_ahead,
        stop_token=stop_token,
        num_speculative_tokens=num_speculative_tokens,
        num_host_blocks=num_host_blocks,
    )
    requests = run_trace(sim, trace, failing_steps, out_of_memory_steps)
    assert sim.pool.num_free_blocks == sim.num_blocks
    assert all(request.num_overtaken <= MAX_OVERTAKEN for request in requests)
    for request, arrival in zip(requests, trace, strict=True):
        check_output(sim, request, arrival)


def run_trace(
    sim: SchedulerSimulation,
    trace: list[Arrival],
    failing_steps: set[int],
    out_of_memory_steps: set[int],
) -> list[Request]:
    """Run a trace to its end; return its requests."""
    pending = list(enumerate(trace))
    requests: list[Request] = []
    abort_at: dict[int, Request] = {}
    step, next_arrival = 0, trace[0][3]
    while pending or sim.scheduler.has_requests:
        assert step < 3_000, "livelock"
        while pending and step >= next_arrival:
            index, (prompt, max_tokens, resumed, _, abort_after, priority, salt) = pending.pop(0)
            request = sim.add(
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
            sim.scheduler.finish(aborted)
        if sim.scheduler.has_requests:
            sim.step(fails=step in failing_steps, is_out_of_memory=step in out_of_memory_steps)
        step += 1
    while sim.in_flight:
        sim.collect()
    sim.scheduler.check_invariants()
    return requests


def check_output(sim: SchedulerSimulation, request: Request, arrival: Arrival) -> None:
    """Check that a request has its own output, whole unless it was aborted or ran out of memory."""
    prompt, max_tokens, _, _, abort_after, *_ = arrival
    expected = generate_alone(prompt, max_tokens)
    output = request.output_token_ids
    assert output == expected[: len(output)]
    is_whole = len(output) == max_tokens or output[-1:] == [sim.stop_token]
    assert abort_after is not None or request in sim.out_of_memory or is_whole
    num_resumed = request.metrics.num_resumed_tokens
    assert sim.stop_token not in output[num_resumed:-1], "a token after the end was kept"


def test_decodes_come_first_and_prompts_share_the_rest_of_the_budget() -> None:
    sim = SchedulerSimulation(num_blocks=32, max_num_batched_tokens=8)
    sim.add("short", [1, 2], max_tokens=9)
    sim.step()
    sim.add("long", [1] * 10, max_tokens=2)
    sim.add("longer", [2] * 10, max_tokens=2)
    chunks = [
        [
            (item.request.request_id, item.num_new_tokens, item.needs_sample)
            for item in batch.scheduled
        ]
        for batch in (sim.step(), sim.step(), sim.step())
    ]
    assert chunks == [
        [("short", 1, True), ("long", 7, False)],
        [("short", 1, True), ("long", 3, True), ("longer", 4, False)],
        [("short", 1, True), ("long", 1, True), ("longer", 6, True)],
    ]


def test_latest_arrival_is_preempted_and_recomputes_prompt_and_output() -> None:
    sim = SchedulerSimulation(
        num_blocks=4, block_size=2, max_num_batched_tokens=20, enable_prefix_caching=False
    )
    first = sim.add("first", [1, 2], max_tokens=6)
    second = sim.add("second", [3, 4], max_tokens=4)
    while not second.metrics.num_preemptions:
        sim.step()
    before = list(second.output_token_ids)
    assert before, "it has output tokens to recompute"
    assert second.status is RequestStatus.PREEMPTED
    assert second.num_computed_tokens == 0
    assert first.metrics.num_preemptions == 0
    while second.status is RequestStatus.PREEMPTED:
        batch = sim.step()
    recomputed = {item.request.request_id: item for item in batch.scheduled}["second"]
    assert recomputed.num_new_tokens == 2 + len(before)
    sim.run()
    assert second.output_token_ids == generate_alone([3, 4], 4)
    assert second.output_token_ids[: len(before)] == before


def test_preempted_request_is_admitted_before_later_arrivals() -> None:
    sim = SchedulerSimulation(num_blocks=5, block_size=2, max_num_batched_tokens=20, max_num_seqs=2)
    sim.add("a", [1, 2], max_tokens=7)
    preempted = sim.add("b", [3, 4], max_tokens=6)
    sim.add("c", [5], max_tokens=1)
    while not preempted.metrics.num_preemptions:
        sim.step()
    assert [request.request_id for request in sim.scheduler.waiting] == ["b", "c"]
    sim.run()


def test_full_prefix_hit_still_computes_the_last_token() -> None:
    sim = SchedulerSimulation(num_blocks=32, max_num_batched_tokens=64)
    prompt = [1, 2, 3, 4, 5, 6, 0, 1]
    sim.add("first", prompt, max_tokens=1)
    sim.run()
    again = sim.add("again", prompt, max_tokens=1)
    (item,) = sim.step().scheduled
    assert (item.num_computed_tokens, item.num_new_tokens, item.needs_sample) == (4, 4, True)
    assert again.metrics.num_cached_tokens == 4
    assert again.output_token_ids == generate_alone(prompt, 1)


def test_blocks_are_shared_in_the_step_that_fills_them_and_not_before() -> None:
    sim = SchedulerSimulation(num_blocks=32, max_num_batched_tokens=6)
    prompt = [1] * 11
    first = sim.add("first", prompt, max_tokens=1)
    second = sim.add("second", prompt, max_tokens=1)
    sim.step()
    assert sim.pool.num_cached_blocks == 0, "a block is full, but no token proves that it is finite"
    batch = sim.step()
    (item,) = [item for item in batch.scheduled if item.request is second]
    assert item.num_computed_tokens == 8, "the first reaches its end in this step"
    sim.run()
    assert second.output_token_ids == first.output_token_ids == generate_alone(prompt, 1)


def test_requests_that_arrive_together_compute_their_common_prefix_once() -> None:
    sim = SchedulerSimulation(num_blocks=1000, max_num_seqs=64, max_num_batched_tokens=256)
    prefix = [0, 1] * 256
    requests = [
        sim.add(str(index), [*prefix, index % 7, index // 7], max_tokens=2) for index in range(64)
    ]
    num_computed = 0
    while sim.scheduler.has_requests:
        num_computed += sim.step().num_tokens
    assert num_computed == 512 + 64 * 2 + 64, "the prefix once; per request its end and one token"
    for request in requests:
        assert request.output_token_ids == generate_alone(request.prompt_token_ids, 2)


def test_request_on_blocks_of_a_failed_step_computes_them_itself_if_necessary() -> None:
    sim = SchedulerSimulation(num_blocks=32, max_num_batched_tokens=64)
    prompt = [1, 2, 3, 4, 5, 6, 0, 1, 2]
    first = sim.add("first", prompt, max_tokens=2)
    second = sim.add("second", prompt, max_tokens=2)
    batch = sim.scheduler.schedule()  # never launched: the memory stays empty
    assert [item.num_new_tokens for item in batch.scheduled] == [9, 1]
    sim.scheduler.finish(first)
    (item,) = sim.step().scheduled
    assert (item.request, item.num_new_tokens) == (second, 9)
    sim.run()
    assert second.output_token_ids == generate_alone(prompt, 2)


def test_output_is_shared_with_a_request_that_continues_it() -> None:
    sim = SchedulerSimulation(num_blocks=32, max_num_batched_tokens=64)
    first = sim.add("turn 1", [1, 2, 3], max_tokens=10)
    sim.run()
    longer = [1, 2, 3, *first.output_token_ids, 5, 5]
    second = sim.add("turn 2", longer, max_tokens=3)
    sim.run()
    assert second.metrics.num_cached_tokens == 12
    assert second.output_token_ids == generate_alone(longer, 3)


def test_cached_tokens_and_queue_time_are_those_of_the_first_admission() -> None:
    sim = SchedulerSimulation(num_blocks=4, block_size=2, max_num_batched_tokens=20)
    sim.add("first", [1, 2], max_tokens=6)
    second = sim.add("second", [3, 4], max_tokens=4)
    sim.step()
    queued_s = second.metrics.queued_s
    assert queued_s is not None
    sim.run()
    assert second.metrics.num_preemptions > 0
    assert second.metrics.queued_s == queued_s
    assert second.metrics.num_cached_tokens == 0, "finding its own blocks again saves nothing"


def test_nothing_is_shared_with_the_prefix_cache_off() -> None:
    sim = SchedulerSimulation(enable_prefix_caching=False)
    for name in ("first", "second"):
        request = sim.add(name, [1] * 9, max_tokens=1)
        sim.run()
        assert request.metrics.num_cached_tokens == 0
    assert sim.pool.num_cached_blocks == 0


def test_request_that_cannot_fit_alone_is_refused_and_leaves_no_trace() -> None:
    sim = SchedulerSimulation(num_blocks=3, block_size=4)
    with pytest.raises(RequestError, match="14 tokens, the KV cache holds 12") as refused:
        sim.add("too long", [1] * 10, max_tokens=4)
    assert refused.value.code == "context_length_exceeded"
    assert not sim.scheduler.has_requests


def test_request_that_needs_the_whole_pool_finishes_among_others() -> None:
    sim = SchedulerSimulation(num_blocks=3, block_size=4, max_num_batched_tokens=20)
    small = sim.add("small", [1, 2, 3], max_tokens=6)
    whole = sim.add("whole", [1] * 10, max_tokens=3)
    later = sim.add("later", [2], max_tokens=8)
    sim.run()
    assert [len(request.output_token_ids) for request in (small, whole, later)] == [6, 3, 8]


def test_small_request_does_not_overtake_a_large_one_that_waits_for_blocks() -> None:
    sim = SchedulerSimulation(num_blocks=4, block_size=4, max_num_batched_tokens=20)
    sim.add("running", [1] * 6, max_tokens=4)
    sim.step()
    sim.add("large", [2] * 12, max_tokens=1)
    sim.add("small", [3], max_tokens=1)
    sim.step()
    assert [request.request_id for request in sim.scheduler.waiting] == ["large", "small"]
    sim.run()
    assert sim.admitted == ["running", "large", "small"]


def test_request_is_not_admitted_into_blocks_that_running_ones_grow_into_next() -> None:
    sim = SchedulerSimulation(num_blocks=4, block_size=4, max_num_batched_tokens=20)
    running = sim.add("running", [1] * 8, max_tokens=2)
    waiting = sim.add("waiting", [2] * 8, max_tokens=1)
    sim.step()
    assert waiting.status is RequestStatus.WAITING, "if admitted, it would be preempted at once"
    sim.run()
    assert waiting.metrics.num_preemptions == running.metrics.num_preemptions == 0


def test_failed_step_is_computed_again() -> None:
    sim = SchedulerSimulation(max_num_batched_tokens=6)
    request = sim.add("a", [1] * 10, max_tokens=3)
    first = sim.step(fails=True)
    assert sim.step().scheduled == first.scheduled
    sim.run()
    assert request.output_token_ids == generate_alone([1] * 10, 3)


def test_request_with_bad_kv_leaves_nothing_to_share_and_has_its_blocks_zeroed() -> None:
    sim = SchedulerSimulation(num_blocks=32, max_num_batched_tokens=64)
    first = sim.add("first", [1] * 9, max_tokens=3)
    sim.step()
    second = sim.add("second", [1] * 9, max_tokens=3)
    sim.step()
    shared, own = first.block_ids[:2], second.block_ids[2:]
    assert second.block_ids[:2] == shared
    sim.scheduler.finish(second, is_kv_finite=False)
    assert list(sim.scheduler.blocks_to_zero) == own
    sim.scheduler.check_invariants()
    assert sim.pool.num_cached_blocks == 0
    sim.run()
    assert first.output_token_ids == generate_alone([1] * 9, 3)


def test_budget_below_one_token_per_request_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_num_batched_tokens is 3"):
        Scheduler(BlockPool(4, 4), max_num_seqs=4, max_num_batched_tokens=3)


def test_drafts_take_only_spare_budget_and_blocks() -> None:
    sim = SchedulerSimulation(num_blocks=8, max_num_batched_tokens=8, num_speculative_tokens=6)
    first, second = sim.add("first", [0, 1], 12), sim.add("second", [1, 0, 1], 12)
    sim.step()

    batch = sim.step()
    (item,) = batch.chunks
    assert (item.request, item.num_new_tokens) == (first, 1 + 6), (
        "all but the second request's token"
    )
    assert batch.decodes == (second,)
    assert sim.num_accepted_tokens > 0


def test_drafts_leave_a_block_for_each_request_to_grow_into() -> None:
    sim = SchedulerSimulation(num_blocks=4, num_speculative_tokens=6)
    request = sim.add("only", [0, 1], 12)
    sim.add("other", [1, 1, 1, 0], 5)
    sim.step()

    sizes = {item.request: item.num_new_tokens for item in sim.step().scheduled}
    assert sizes[request] == 2, "its first block has one spare slot"
    sim.run()


def test_nothing_is_scheduled_while_drafts_are_in_flight() -> None:
    sim = SchedulerSimulation(num_speculative_tokens=4, max_num_batched_tokens=16)
    sim.add("first", [0, 1], 12)
    sim.step()
    batch = sim.scheduler.schedule()
    assert batch.has_drafts
    sim.scheduler.mark_launched(batch)
    assert sim.scheduler.schedule().num_seqs == 0
