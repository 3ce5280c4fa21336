"""Requests with different salts share no block; requests with the same salt share as usual."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from batchmill.engine import Engine, RequestError, RequestOutput, SamplingParams
from batchmill.engine.scheduling.block_pool import ROOT_HASH, extend_block_hashes, salted_root

MakeEngine = Callable[..., Engine]
PROMPT = list(range(41))
GREEDY = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)


def run(engine: Engine) -> dict[str, RequestOutput]:
    outputs: dict[str, RequestOutput] = {}
    while engine.has_unfinished():
        outputs |= {output.request_id: output for output in engine.step()}
    return outputs


def cached_tokens(engine: Engine, salt: str | None) -> int:
    engine.add_request("request", PROMPT, GREEDY, cache_salt=salt)
    return run(engine)["request"].usage.cached_tokens


def test_prefix_is_found_again_under_its_own_salt_only(byte_engine: MakeEngine) -> None:
    engine = byte_engine()
    for salt in ("anna", "otto", None, "anna "):
        assert cached_tokens(engine, salt) == 0
        assert cached_tokens(engine, salt) == 40


def test_requests_of_one_step_share_within_their_salt_only(byte_engine: MakeEngine) -> None:
    engine = byte_engine()
    salts = ["a", "b", None, "b", "a", None]
    for index, salt in enumerate(salts):
        engine.add_request(f"{index}", PROMPT, GREEDY, cache_salt=salt)
    engine.step()
    assert engine.stats().num_computed_tokens == 3 * 41 + 3 * 1
    groups: dict[str | None, set[int]] = {}
    for request in engine._scheduler.running:
        groups.setdefault(request.cache_salt, set()).update(request.block_ids[:10])
    assert len(set.union(*groups.values())) == 30
    assert len({tuple(output.token_ids) for output in run(engine).values()}) == 1


def test_samples_share_under_a_salt(byte_engine: MakeEngine) -> None:
    engine = byte_engine()
    params = SamplingParams(n=4, max_tokens=3, seed=1, ignore_eos=True)
    engine.add_request("request", PROMPT, params, cache_salt="a")
    run(engine)
    assert engine.stats().num_computed_tokens == 41 + 3 * 1 + 4 * 2


@pytest.mark.parametrize("seed", range(4))
def test_random_trace_of_salts_generates_the_tokens_of_an_engine_without_a_cache(
    byte_engine: MakeEngine, seed: int
) -> None:
    rng = random.Random(seed)
    prefixes = [[rng.randrange(256) for _ in range(12)] for _ in range(2)]
    trace = [
        (f"{index}", rng.choice(prefixes) + [rng.randrange(4)] * rng.randint(1, 6), salt)
        for index in range(24)
        for salt in [rng.choice([None, "a", "b"])]
    ]
    engine = byte_engine(
        kv_cache_bytes=24 << 10, max_model_len=64, max_num_seqs=6, max_num_batched_tokens=40
    )
    outputs: dict[str, RequestOutput] = {}
    arriving = list(trace)
    while arriving or engine.has_unfinished():
        for name, prompt, salt in arriving[:3]:
            engine.add_request(name, prompt, GREEDY, cache_salt=salt)
        del arriving[:3]
        outputs |= {output.request_id: output for output in engine.step()}
        engine._scheduler.check_invariants()
    plain = byte_engine(enable_prefix_caching=False)
    expected = plain.generate([prompt for _, prompt, _ in trace], GREEDY)
    assert [outputs[name].token_ids for name, _, _ in trace] == [
        output.token_ids for output in expected
    ]
    assert engine.stats().num_cached_tokens > 0


def test_roots_of_salts_differ_from_each_other_and_from_every_block() -> None:
    roots = {salted_root(salt) for salt in ("a", "b", "", "\ud800", "a" * 1000)}
    assert len(roots) == 5
    assert salted_root(None) == ROOT_HASH
    chain: list[bytes] = []
    extend_block_hashes(chain, [1, 2, 3, 4], 2)
    assert roots.isdisjoint(chain)


@pytest.mark.parametrize("salt", ["", 5, b"x"])
def test_salt_that_is_not_a_non_empty_string_is_refused(
    byte_engine: MakeEngine, salt: object
) -> None:
    with pytest.raises(RequestError, match="cache_salt"):
        byte_engine().add_request("request", PROMPT, cache_salt=salt)  # type: ignore[arg-type]
