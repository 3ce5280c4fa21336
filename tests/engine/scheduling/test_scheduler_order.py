"""Who goes first: priorities, ageing, shared prefixes, and what happens when memory runs out."""

from __future__ import annotations

from batchmill.engine.request.request import RequestStatus
from batchmill.engine.scheduling.batch_limits import MAX_FAILURES_ALONE, STEPS_TO_GROW
from batchmill.engine.scheduling.waiting_queue import MAX_OVERTAKEN

from .mill import Mill, generate_alone

HIGH, NORMAL, LOW = 0, 1, 2


def test_waiting_requests_are_admitted_by_priority_then_arrival() -> None:
    mill = Mill(max_num_seqs=1)
    for name, priority in (("a", LOW), ("b", NORMAL), ("c", HIGH), ("d", NORMAL), ("e", HIGH)):
        mill.add(name, [3], max_tokens=1, priority=priority)
    mill.run()
    assert mill.admitted == ["c", "e", "b", "d", "a"]


def test_urgent_request_takes_the_seat_of_the_last_lower_one() -> None:
    mill = Mill(num_blocks=32, max_num_seqs=3)
    first = mill.add("low 1", [1, 2], max_tokens=6, priority=LOW)
    last = mill.add("low 2", [3, 4], max_tokens=6, priority=LOW)
    peer = mill.add("high 1", [5], max_tokens=6, priority=HIGH)
    mill.step()
    urgent = mill.add("high 2", [6], max_tokens=2, priority=HIGH)
    batch = mill.step()
    assert batch.preempted == (last,)
    assert urgent in batch.sampled_requests
    mill.run()
    assert (first.metrics.num_preemptions, peer.metrics.num_preemptions) == (0, 0)
    assert last.output_token_ids == generate_alone([3, 4], 6)


def test_urgent_request_takes_blocks_but_no_more_than_it_needs() -> None:
    mill = Mill(num_blocks=8, block_size=4, max_num_batched_tokens=32, enable_prefix_caching=False)
    low = [mill.add(f"low {i}", [i] * 7, max_tokens=2, priority=LOW) for i in range(3)]
    mill.step()
    mill.add("high", [6] * 8, max_tokens=1, priority=HIGH)
    assert mill.step().preempted == (low[2],)
    mill.run()


def test_nobody_is_preempted_where_that_would_not_be_enough() -> None:
    mill = Mill(num_blocks=8, block_size=4, max_num_batched_tokens=32)
    mill.add("high 1", [1] * 16, max_tokens=3, priority=HIGH)
    mill.add("low", [2] * 4, max_tokens=3, priority=LOW)
    mill.step()
    mill.add("high 2", [3] * 16, max_tokens=3, priority=HIGH)
    assert mill.step().preempted == ()
    mill.run()
    assert mill.admitted == ["high 1", "low", "high 2"]


def test_blocks_that_the_urgent_request_shares_with_its_victim_are_not_counted_twice() -> None:
    mill = Mill(num_blocks=8, block_size=4, max_num_batched_tokens=32)
    mill.add("high 1", [2] * 8, max_tokens=6, priority=HIGH)
    low = mill.add("low", [1] * 9, max_tokens=6, priority=LOW)
    mill.step()
    # Of the 8 blocks 2 or 3 are the first one's; the rest holds it, but for the one to grow into.
    urgent = mill.add("high 2", [1] * 22, max_tokens=1, priority=HIGH)
    assert mill.step().preempted == ()
    assert (low.metrics.num_preemptions, urgent.status) == (0, RequestStatus.WAITING)
    mill.run()


def test_urgent_prompt_is_computed_before_a_long_one_that_is_under_way() -> None:
    mill = Mill(num_blocks=32, max_num_batched_tokens=4)
    mill.add("long", [1] * 20, max_tokens=1, priority=LOW)
    mill.step()
    mill.add("urgent", [2, 3], max_tokens=1, priority=HIGH)
    chunks = [(item.request.request_id, item.num_new_tokens) for item in mill.step().scheduled]
    assert chunks == [("urgent", 2), ("long", 2)]
    mill.run()


def test_low_request_that_waited_long_is_not_overtaken_any_more() -> None:
    mill = Mill(max_num_seqs=1, ageing_s=10)
    mill.add("old", [1], max_tokens=1, priority=LOW, waited_s=21)
    mill.add("new", [2], max_tokens=1, priority=HIGH)
    mill.run()
    assert mill.admitted == ["old", "new"]


def test_low_request_ends_under_an_endless_stream_of_urgent_ones() -> None:
    mill = Mill(max_num_seqs=1, ageing_s=1e-9)
    low = mill.add("low", [1], max_tokens=3, priority=LOW)
    for index in range(5):
        mill.add(f"high {index}", [2], max_tokens=3, priority=HIGH)
        mill.step()
    mill.run()
    assert mill.admitted[0] == "low"
    assert low.metrics.num_preemptions == 0


def test_requests_with_a_common_prefix_are_admitted_next_to_each_other() -> None:
    mill = Mill(num_blocks=32, max_num_seqs=1, max_num_batched_tokens=32)
    for name, token in (("a1", 1), ("b1", 2), ("a2", 1), ("b2", 2), ("a3", 1)):
        mill.add(name, [token] * 9, max_tokens=1)
    mill.run()
    assert mill.admitted == ["a1", "a2", "a3", "b1", "b2"]


def test_longest_common_prefix_comes_first() -> None:
    mill = Mill(num_blocks=32, max_num_seqs=1, max_num_batched_tokens=32)
    system = [6] * 4
    for name, token in (("a1", 1), ("b1", 2), ("a2", 1)):
        mill.add(name, [*system, *[token] * 4, 0], max_tokens=1)
    mill.run()
    assert mill.admitted == ["a1", "a2", "b1"]


def test_common_prefix_overtakes_no_other_priority() -> None:
    mill = Mill(num_blocks=32, max_num_seqs=1, max_num_batched_tokens=32)
    for name, token, priority in (("a1", 1, HIGH), ("b1", 2, HIGH), ("a2", 1, LOW)):
        mill.add(name, [token] * 9, max_tokens=1, priority=priority)
    mill.run()
    assert mill.admitted == ["a1", "b1", "a2"]


def test_request_is_overtaken_a_bounded_number_of_times() -> None:
    mill = Mill(num_blocks=32, max_num_seqs=1, max_num_batched_tokens=32)
    mill.add("a", [1] * 9, max_tokens=1)
    lonely = mill.add("lonely", [2] * 9, max_tokens=1)
    for index in range(2 * MAX_OVERTAKEN):
        mill.add(f"a{index}", [1] * 9, max_tokens=1)
    mill.run()
    assert lonely.num_overtaken == MAX_OVERTAKEN
    assert mill.admitted.index("lonely") == MAX_OVERTAKEN + 1


def test_out_of_memory_lets_the_later_half_wait_and_grows_back() -> None:
    mill = Mill(num_blocks=256, max_num_seqs=8, max_num_batched_tokens=32)
    requests = [mill.add(str(i), [i, i], max_tokens=3 * STEPS_TO_GROW) for i in range(7)]
    mill.step()
    mill.step(is_out_of_memory=True)
    assert mill.scheduler.running == requests[:3]
    assert {request.status for request in requests[3:]} == {RequestStatus.PREEMPTED}
    sizes = [len(mill.step().scheduled) for _ in range(2 * STEPS_TO_GROW + 1)]
    assert sizes[:STEPS_TO_GROW] == [3] * STEPS_TO_GROW
    assert sizes[-1] == 7
    mill.run()
    for index, request in enumerate(requests):
        assert request.output_token_ids == generate_alone([index, index], 3 * STEPS_TO_GROW)


def test_prompt_too_large_for_memory_is_computed_in_smaller_chunks() -> None:
    mill = Mill(num_blocks=64, max_num_batched_tokens=32)
    request = mill.add("a", [1] * 40, max_tokens=1)
    mill.step(is_out_of_memory=True)
    mill.step(is_out_of_memory=True)
    assert mill.step().num_tokens == 8
    mill.run()
    assert request.output_token_ids == generate_alone([1] * 40, 1)


def test_request_that_runs_out_of_memory_alone_is_given_up_and_others_go_on() -> None:
    mill = Mill(num_blocks=64)
    hopeless = mill.add("a", [1] * 5, max_tokens=2)
    other = mill.add("b", [2] * 5, max_tokens=2)
    mill.step(is_out_of_memory=True)
    for _ in range(MAX_FAILURES_ALONE):
        assert hopeless.status is not RequestStatus.FINISHED
        mill.step(is_out_of_memory=True)
    assert mill.given_up == [hopeless]
    mill.run()
    assert other.output_token_ids == generate_alone([2] * 5, 2)
