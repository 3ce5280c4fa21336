"""The order of requests: priorities, ageing, shared prefixes, and running out of memory."""

from __future__ import annotations

from batchmill.engine.request.request import RequestStatus
from batchmill.engine.scheduling.batch_limits import MAX_FAILURES_ALONE, STEPS_TO_GROW
from batchmill.engine.scheduling.waiting_queue import MAX_OVERTAKEN

from .simulation import SchedulerSimulation, generate_alone

HIGH, NORMAL, LOW = 0, 1, 2


def test_waiting_requests_are_admitted_by_priority_then_arrival() -> None:
    sim = SchedulerSimulation(max_num_seqs=1)
    for name, priority in (("a", LOW), ("b", NORMAL), ("c", HIGH), ("d", NORMAL), ("e", HIGH)):
        sim.add(name, [3], max_tokens=1, priority=priority)
    sim.run()
    assert sim.admitted == ["c", "e", "b", "d", "a"]


def test_urgent_request_preempts_the_last_one_of_lower_priority() -> None:
    sim = SchedulerSimulation(num_blocks=32, max_num_seqs=3)
    first = sim.add("low 1", [1, 2], max_tokens=6, priority=LOW)
    last = sim.add("low 2", [3, 4], max_tokens=6, priority=LOW)
    peer = sim.add("high 1", [5], max_tokens=6, priority=HIGH)
    sim.step()
    urgent = sim.add("high 2", [6], max_tokens=2, priority=HIGH)
    batch = sim.step()
    assert batch.preempted == (last,)
    assert urgent in batch.sampled_requests
    sim.run()
    assert (first.metrics.num_preemptions, peer.metrics.num_preemptions) == (0, 0)
    assert last.output_token_ids == generate_alone([3, 4], 6)


def test_urgent_request_preempts_no_more_than_it_needs() -> None:
    sim = SchedulerSimulation(
        num_blocks=8, block_size=4, max_num_batched_tokens=32, enable_prefix_caching=False
    )
    low = [sim.add(f"low {i}", [i] * 7, max_tokens=2, priority=LOW) for i in range(3)]
    sim.step()
    sim.add("high", [6] * 8, max_tokens=1, priority=HIGH)
    assert sim.step().preempted == (low[2],)
    sim.run()


def test_no_request_is_preempted_if_that_would_not_be_enough() -> None:
    sim = SchedulerSimulation(num_blocks=8, block_size=4, max_num_batched_tokens=32)
    sim.add("high 1", [1] * 16, max_tokens=3, priority=HIGH)
    sim.add("low", [2] * 4, max_tokens=3, priority=LOW)
    sim.step()
    sim.add("high 2", [3] * 16, max_tokens=3, priority=HIGH)
    assert sim.step().preempted == ()
    sim.run()
    assert sim.admitted == ["high 1", "low", "high 2"]


def test_blocks_that_the_urgent_request_shares_with_a_preemptible_one_are_not_counted_twice() -> (
    None
):
    sim = SchedulerSimulation(num_blocks=8, block_size=4, max_num_batched_tokens=32)
    sim.add("high 1", [2] * 8, max_tokens=6, priority=HIGH)
    low = sim.add("low", [1] * 9, max_tokens=6, priority=LOW)
    sim.step()
    # The first request holds 2 or 3 of the 8 blocks. The rest would hold the urgent one, except
    # for the block reserved for growth.
    urgent = sim.add("high 2", [1] * 22, max_tokens=1, priority=HIGH)
    assert sim.step().preempted == ()
    assert (low.metrics.num_preemptions, urgent.status) == (0, RequestStatus.WAITING)
    sim.run()


def test_urgent_prompt_is_computed_before_the_rest_of_a_long_one() -> None:
    sim = SchedulerSimulation(num_blocks=32, max_num_batched_tokens=4)
    sim.add("long", [1] * 20, max_tokens=1, priority=LOW)
    sim.step()
    sim.add("urgent", [2, 3], max_tokens=1, priority=HIGH)
    chunks = [(item.request.request_id, item.num_new_tokens) for item in sim.step().scheduled]
    assert chunks == [("urgent", 2), ("long", 2)]
    sim.run()


def test_low_priority_request_that_waited_long_is_no_longer_overtaken() -> None:
    sim = SchedulerSimulation(max_num_seqs=1, ageing_s=10)
    sim.add("old", [1], max_tokens=1, priority=LOW, waited_s=21)
    sim.add("new", [2], max_tokens=1, priority=HIGH)
    sim.run()
    assert sim.admitted == ["old", "new"]


def test_low_priority_request_finishes_under_an_endless_stream_of_urgent_ones() -> None:
    sim = SchedulerSimulation(max_num_seqs=1, ageing_s=1e-9)
    low = sim.add("low", [1], max_tokens=3, priority=LOW)
    for index in range(5):
        sim.add(f"high {index}", [2], max_tokens=3, priority=HIGH)
        sim.step()
    sim.run()
    assert sim.admitted[0] == "low"
    assert low.metrics.num_preemptions == 0


def test_requests_with_a_common_prefix_are_admitted_next_to_each_other() -> None:
    sim = SchedulerSimulation(num_blocks=32, max_num_seqs=1, max_num_batched_tokens=32)
    for name, token in (("a1", 1), ("b1", 2), ("a2", 1), ("b2", 2), ("a3", 1)):
        sim.add(name, [token] * 9, max_tokens=1)
    sim.run()
    assert sim.admitted == ["a1", "a2", "a3", "b1", "b2"]


def test_longest_common_prefix_comes_first() -> None:
    sim = SchedulerSimulation(num_blocks=32, max_num_seqs=1, max_num_batched_tokens=32)
    system = [6] * 4
    for name, token in (("a1", 1), ("b1", 2), ("a2", 1)):
        sim.add(name, [*system, *[token] * 4, 0], max_tokens=1)
    sim.run()
    assert sim.admitted == ["a1", "a2", "b1"]


def test_common_prefix_overtakes_no_other_priority() -> None:
    sim = SchedulerSimulation(num_blocks=32, max_num_seqs=1, max_num_batched_tokens=32)
    for name, token, priority in (("a1", 1, HIGH), ("b1", 2, HIGH), ("a2", 1, LOW)):
        sim.add(name, [token] * 9, max_tokens=1, priority=priority)
    sim.run()
    assert sim.admitted == ["a1", "b1", "a2"]


def test_request_is_overtaken_a_bounded_number_of_times() -> None:
    sim = SchedulerSimulation(num_blocks=32, max_num_seqs=1, max_num_batched_tokens=32)
    sim.add("a", [1] * 9, max_tokens=1)
    lonely = sim.add("lonely", [2] * 9, max_tokens=1)
    for index in range(2 * MAX_OVERTAKEN):
        sim.add(f"a{index}", [1] * 9, max_tokens=1)
    sim.run()
    assert lonely.num_overtaken == MAX_OVERTAKEN
    assert sim.admitted.index("lonely") == MAX_OVERTAKEN + 1


def test_out_of_memory_preempts_the_later_half_and_the_limits_grow_back() -> None:
    sim = SchedulerSimulation(num_blocks=256, max_num_seqs=8, max_num_batched_tokens=32)
    requests = [sim.add(str(i), [i, i], max_tokens=3 * STEPS_TO_GROW) for i in range(7)]
    sim.step()
    sim.step(is_out_of_memory=True)
    assert sim.scheduler.running == requests[:3]
    assert {request.status for request in requests[3:]} == {RequestStatus.PREEMPTED}
    sizes = [len(sim.step().scheduled) for _ in range(2 * STEPS_TO_GROW + 1)]
    assert sizes[:STEPS_TO_GROW] == [3] * STEPS_TO_GROW
    assert sizes[-1] == 7
    sim.run()
    for index, request in enumerate(requests):
        assert request.output_token_ids == generate_alone([index, index], 3 * STEPS_TO_GROW)


def test_prompt_too_large_for_memory_is_computed_in_smaller_chunks() -> None:
    sim = SchedulerSimulation(num_blocks=64, max_num_batched_tokens=32)
    request = sim.add("a", [1] * 40, max_tokens=1)
    sim.step(is_out_of_memory=True)
    sim.step(is_out_of_memory=True)
    assert sim.step().num_tokens == 8
    sim.run()
    assert request.output_token_ids == generate_alone([1] * 40, 1)


def test_request_that_runs_out_of_memory_alone_ends_and_others_continue() -> None:
    sim = SchedulerSimulation(num_blocks=64)
    hopeless = sim.add("a", [1] * 5, max_tokens=2)
    other = sim.add("b", [2] * 5, max_tokens=2)
    sim.step(is_out_of_memory=True)
    for _ in range(MAX_FAILURES_ALONE):
        assert hopeless.status is not RequestStatus.FINISHED
        sim.step(is_out_of_memory=True)
    assert sim.out_of_memory == [hopeless]
    sim.run()
    assert other.output_token_ids == generate_alone([2] * 5, 2)
