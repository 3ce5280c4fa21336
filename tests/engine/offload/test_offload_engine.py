"""Engines whose cache is too small: tokens with and without KV in host memory, on every path."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from batchmill.engine import Engine, EngineConfig, SamplingParams
from batchmill.engine.errors import ConfigError
from batchmill.engine.loading.loading import LoadedModel
from batchmill.engine.offload import sizing
from batchmill.engine.parallel.start import load_parallel
from batchmill.engine.scheduling.block_pool import extend_block_hashes

from ..tiny_model import POISON, Fuse, load, run, save_model, tiny_engine

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
#: Copying always beats computing, however fast the machine is.
ALWAYS: dict[str, Any] = {"kv_host_bytes": 2**20, "kv_host_bytes_per_s": 10**15}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_model(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LoadedModel:
    return load(folder, Fuse())


@pytest.fixture(autouse=True)
def _copies_take_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchmill.engine.offload.copy_rule.COPY_OVERHEAD_S", 0.0)


def prompts(num_prefixes: int = 4, num_each: int = 3) -> list[list[int]]:
    """Prompts in rounds: each begins with one of some prefixes of 36 tokens (9 blocks)."""
    prefixes = [[(7 * which + 3 * at) % 250 for at in range(36)] for which in range(num_prefixes)]
    return [
        [*prefix, 100 + which, 50 + turn]
        for turn in range(num_each)
        for which, prefix in enumerate(prefixes)
    ]


def one_by_one(engine: Engine, texts: list[list[int]]) -> list[list[int]]:
    return [engine.generate([each], GREEDY)[0].token_ids for each in texts]


@pytest.fixture(scope="module")
def expected(loaded: LoadedModel) -> list[list[int]]:
    """The tokens of `prompts()`, each computed alone in a cache that holds everything."""
    return one_by_one(tiny_engine(loaded, 256), prompts())


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_num_batched_tokens": 8},
        {"overlap": True},
        {"num_speculative_tokens": 3},
        {"block_size": 2},
    ],
    ids=["plain", "chunked", "overlap", "drafts", "small blocks"],
)
def test_prefixes_that_the_cache_gave_up_come_back_with_the_same_tokens(
    loaded: LoadedModel, expected: list[list[int]], settings: dict[str, Any]
) -> None:
    num_blocks = 16 * 4 // settings.get("block_size", 4)
    engine = tiny_engine(loaded, num_blocks, **{**ALWAYS, **settings})

    assert one_by_one(engine, prompts()) == expected

    stats = engine.stats()
    assert stats.num_stored_blocks
    assert stats.num_restored_blocks
    engine._scheduler.check_invariants()
    assert engine._offload is not None
    engine._offload.index.check_invariants()


def test_a_few_blocks_of_host_memory_keep_what_was_evicted_last(
    loaded: LoadedModel, expected: list[list[int]]
) -> None:
    engine = tiny_engine(loaded, 16, **{**ALWAYS, "kv_host_bytes": 9 * 1024})
    assert one_by_one(engine, prompts()) == expected
    counts = engine.offload_counts()
    assert counts is not None
    assert counts.num_evicted
    assert counts.num_held == counts.num_host_blocks == 9


def test_restored_blocks_are_not_computed_and_count_as_cached(loaded: LoadedModel) -> None:
    with_host, without = tiny_engine(loaded, 16, **ALWAYS), tiny_engine(loaded, 16)
    for engine in (with_host, without):
        one_by_one(engine, prompts())

    saved = without.stats().num_computed_tokens - with_host.stats().num_computed_tokens
    assert without.stats().num_stored_blocks == 0
    assert saved == 4 * with_host.stats().num_restored_blocks
    assert with_host.stats().num_cached_tokens == without.stats().num_cached_tokens + saved


@pytest.mark.parametrize("settings", [{}, {"overlap": True}, {"max_num_batched_tokens": 9}])
def test_preempted_requests_continue_from_host_memory(
    loaded: LoadedModel, settings: dict[str, Any]
) -> None:
    texts = [[(11 * which + at) % 250 for at in range(17)] for which in range(6)]
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)

    def generate(engine: Engine) -> list[list[int]]:
        return [each.token_ids for each in engine.generate(texts, params)]

    roomy = tiny_engine(loaded, 256)
    alone = [roomy.generate([text], params)[0].token_ids for text in texts]
    with_host = tiny_engine(loaded, 24, **{**ALWAYS, **settings})
    without = tiny_engine(loaded, 24, **settings)
    assert generate(with_host) == generate(without) == alone
    assert with_host.stats().num_preemptions
    assert with_host.stats().num_restored_blocks
    assert with_host.stats().num_computed_tokens < without.stats().num_computed_tokens


def test_resumed_requests_find_their_tokens_in_host_memory(
    loaded: LoadedModel, expected: list[list[int]]
) -> None:
    engine = tiny_engine(loaded, 16, **ALWAYS)
    one_by_one(engine, prompts())
    num_computed = engine.stats().num_computed_tokens

    # Ten tokens in, another worker's request continues here; its prompt has been evicted.
    engine.add_request("resumed", prompts()[0], GREEDY, expected[0][:10])
    (output,) = run(engine)["resumed"][-1:]

    assert output.token_ids == expected[0]
    assert engine.stats().num_computed_tokens - num_computed < 10


def test_two_salts_share_nothing_in_host_memory_either(loaded: LoadedModel) -> None:
    engine = tiny_engine(loaded, 16, **ALWAYS)

    def computed(salt: str) -> int:
        before = engine.stats().num_computed_tokens
        engine.add_request("a", prompts()[0], GREEDY, cache_salt=salt)
        run(engine)
        return engine.stats().num_computed_tokens - before

    first = computed("salt")
    one_by_one(engine, prompts()[1:4])
    assert computed("pepper") == first
    one_by_one(engine, prompts()[1:4])
    assert computed("salt") < first


def test_a_reset_empties_host_memory(loaded: LoadedModel) -> None:
    engine = tiny_engine(loaded, 16, **ALWAYS)
    one_by_one(engine, prompts())
    assert engine.stats().num_host_blocks
    num_restored = engine.stats().num_restored_blocks
    engine.reset_prefix_cache()
    assert engine.stats().num_host_blocks == 0
    one_by_one(engine, prompts()[:4])
    assert engine.stats().num_restored_blocks == num_restored


def test_a_failed_request_takes_its_blocks_out_of_host_memory(
    loaded: LoadedModel, expected: list[list[int]]
) -> None:
    engine = tiny_engine(loaded, 16, **ALWAYS)
    one_by_one(engine, prompts()[:4])

    def host_has(prompt: list[int]) -> bool:
        return engine._offload is not None and bool(
            engine._offload.index.find(hashes_of(engine, prompt))
        )

    assert host_has(prompts()[0])
    (failed,) = engine.generate([[*prompts()[0][:36], POISON, 1]], GREEDY)
    assert failed.finish_reason == "error"
    assert not host_has(prompts()[0])
    assert one_by_one(engine, prompts()) == expected


def hashes_of(engine: Engine, prompt: list[int]) -> list[bytes]:
    found: list[bytes] = []
    extend_block_hashes(found, prompt, engine.config.block_size)
    return found


def test_copies_that_fail_for_memory_are_done_before_the_next_step(
    loaded: LoadedModel, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tiny_engine(loaded, 16, **ALWAYS)
    assert engine._offload is not None
    host, num_failures = engine._offload._host_blocks, 0
    for name in ("store", "restore"):
        done, calls = getattr(host, name), itertools.count()

        def fail_at_times(*copies: Any, done: Any = done, calls: Any = calls) -> None:
            nonlocal num_failures
            if next(calls) % 4 == 0:
                num_failures += 1
                raise torch.OutOfMemoryError("CUDA out of memory")
            done(*copies)

        monkeypatch.setattr(host, name, fail_at_times)

    assert one_by_one(engine, prompts()) == expected
    assert num_failures > 4
    assert engine.stats().num_restored_blocks


def test_nothing_is_copied_where_computing_is_faster(
    loaded: LoadedModel, expected: list[list[int]]
) -> None:
    engine = tiny_engine(loaded, 16, kv_host_bytes=2**20, kv_host_bytes_per_s=1)
    assert one_by_one(engine, prompts()) == expected
    counts = engine.offload_counts()
    assert counts is not None
    assert counts.num_restored == 0
    assert counts.num_not_stored > counts.num_stored


def test_two_ranks_keep_their_parts(folder: Path, expected: list[list[int]]) -> None:
    config = EngineConfig(
        model=str(folder),
        dtype="float32",
        device="cpu",
        max_model_len=64,
        block_size=4,
        max_num_seqs=8,
        max_num_batched_tokens=64,
        kv_cache_bytes=16 * 512,  # a rank has half of the heads
        tensor_parallel_size=2,
        **ALWAYS,
    )
    engine = Engine(config, loaded=load_parallel(config))
    assert engine.stats().num_blocks == 16

    assert one_by_one(engine, prompts()) == expected
    (failed,) = engine.generate([[5, POISON, *range(20)]], GREEDY)
    assert failed.finish_reason == "error"
    assert one_by_one(engine, prompts()) == expected
    assert engine.stats().num_restored_blocks


def test_a_host_without_so_much_memory_refuses_it_by_name(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sizing, "available_memory_bytes", lambda: 2**30)
    with pytest.raises(ConfigError, match=r"kv_host_bytes is 2147483648 .* lower it to at most 1"):
        tiny_engine(loaded, kv_host_bytes=2**31)


def test_host_memory_is_not_promised_to_the_cache_too(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = "batchmill.engine.execution.kv_cache_sizing.available_memory_bytes"
    monkeypatch.setattr(place, lambda: 2**20)
    tiny_engine(loaded, 64, **ALWAYS | {"kv_host_bytes": 2**18})
    with pytest.raises(ConfigError, match=r"kv_cache_bytes is 65536 .* besides kv_host_bytes"):
        tiny_engine(loaded, 64, **ALWAYS | {"kv_host_bytes": 2**20})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kv_host_bytes": 100}, "one KV block takes 1024 bytes: raise it to at least 1024"),
        (
            {"kv_host_bytes": 2**20, "enable_prefix_caching": False},
            "enable_prefix_caching is off",
        ),
        ({"kv_host_bytes": -1}, "kv_host_bytes is -1"),
        ({"kv_host_bytes_per_s": 0}, "kv_host_bytes_per_s is 0"),
    ],
)
def test_sizes_that_cannot_work_are_refused_by_name(
    loaded: LoadedModel, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_engine(loaded, **settings)
