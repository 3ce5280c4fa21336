"""The stub engine keeps to the limits that the real engine has."""

from __future__ import annotations

from batchmill.worker.engine_host.messages import AddRequest
from batchmill.worker.engine_host.stub_engine import StubConfig, StubEngine


def test_a_request_ends_at_the_length_of_the_model_and_gives_its_blocks_back() -> None:
    engine = StubEngine(StubConfig(step_time_s=0, max_model_len=64, num_blocks=4))
    engine.add(AddRequest("endless", "x" * 40, None, {"max_tokens": 10**9}))
    engine.add(AddRequest("next", "y", None, {"max_tokens": 2}))
    finished = {}
    for _ in range(200):
        for end in engine.step().finished:
            finished[end.request_id] = end
    assert len(finished["endless"].token_ids) == 64 - 10
    assert finished["endless"].finish_reason == "length"
    assert len(finished["next"].token_ids) == 2
    assert (engine.load().num_free_blocks, engine.has_unfinished()) == (4, False)
