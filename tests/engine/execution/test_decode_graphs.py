"""Decode steps replayed on static buffers compute the same tokens as plain steps."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from batchmill.engine import ConfigError, Engine, EngineConfig, SamplingParams
from batchmill.engine.errors import EngineError
from batchmill.engine.execution.decode_graphs import GRAPH_SIZES
from batchmill.engine.execution.graph_recorder import CudaGraphRecorder
from batchmill.engine.sampling.sampled_tokens import HostBuffers
from batchmill.engine.step.upload import Uploader, pack, packed_size, unpack

from ..tiny_model import POISON, Fuse, run
from .cuda_stand_in import CudaStandIn


@pytest.fixture
def make_engine(make_engine: Callable[..., Engine]) -> Callable[..., Engine]:
    return partial(make_engine, decode_graphs=True)


def outputs_of(engine: Engine) -> dict[str, list[int]]:
    return {name: outputs[-1].token_ids for name, outputs in run(engine).items()}


def kinds(engine: Engine) -> dict[str, int]:
    return {str(kind): count for kind, count in engine.stats().num_steps_by_kind.items()}


def greedy(max_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)


@pytest.mark.parametrize("overlap", [False, True])
def test_every_size_and_its_neighbours_compute_the_tokens_of_plain_steps(
    make_engine: Callable[..., Engine], overlap: bool
) -> None:
    batch_sizes = {size + offset for size in GRAPH_SIZES for offset in (-1, 0, 1)} - {0}
    # One token from the prefill, then one per batch size that the request is part of.
    lengths = [1 + sum(size > index for size in batch_sizes) for index in range(257)]
    rng = random.Random(2)
    order = list(range(257))
    rng.shuffle(order)
    outputs = []
    for decode_graphs in (False, True):
        engine = make_engine(
            num_blocks=257 * 8,
            block_size=16,
            max_model_len=128,
            max_num_seqs=257,
            max_num_batched_tokens=1024,
            decode_graphs=decode_graphs,
            overlap=overlap,
        )
        for index in order:
            params = SamplingParams(
                temperature=float(index % 8 == 1),
                top_k=index % 5,
                top_p=1 - index % 4 / 8,
                seed=index,
                max_tokens=lengths[index],
                ignore_eos=True,
            )
            engine.add_request(str(index), [index % 256, index // 2], params)
        outputs.append(outputs_of(engine))
    assert outputs[0] == outputs[1]
    want = {"prefill": 1, "decode": 1, "graph": len(batch_sizes) - 1}
    assert kinds(engine) == want, "257 rows are too many for a graph; all others are replayed"


@pytest.mark.parametrize("seed", range(4))
def test_requests_that_come_and_go_get_the_same_tokens(
    make_engine: Callable[..., Engine], seed: int
) -> None:
    rng = random.Random(seed)
    trace = []
    for index in range(40):
        values: dict[str, Any] = {"temperature": rng.choice([0, 0.9]), "seed": rng.randrange(5)}
        if rng.random() < 0.1:
            values["repetition_penalty"] = 1.2  # works on whole rows
        if rng.random() < 0.1:
            values["min_p"] = 0.05
        prompt = [rng.randrange(256) for _ in range(rng.randint(1, 9))]
        if rng.random() < 0.05:
            prompt.append(POISON)
        params = SamplingParams(max_tokens=rng.randint(1, 24), **values)
        trace.append((rng.randint(0, 50), f"request {index}", prompt, params))
    trace.sort(key=lambda each: each[0])
    results = []
    for decode_graphs, overlap in ((False, False), (True, False), (True, True)):
        engine = make_engine(
            num_blocks=16, max_num_batched_tokens=16, decode_graphs=decode_graphs, overlap=overlap
        )
        waiting, step, outputs = list(trace), 0, {}
        while waiting or engine.has_unfinished():
            while waiting and waiting[0][0] <= step:
                _, name, prompt, params = waiting.pop(0)
                engine.add_request(name, prompt, params, priority=len(prompt) % 3)
            for output in engine.step():
                outputs[output.request_id] = (output.token_ids, output.text, output.finish_reason)
            engine._scheduler.check_invariants()
            step += 1
        results.append(outputs)
    assert results[0] == results[1] == results[2]
    assert min(kinds(engine)["graph"], kinds(engine)["padded"]) > 0


@pytest.mark.parametrize("lengths", [[1], [28], [29], [30], [230, 230, 49]], ids=sum)
def test_step_with_prompts_is_padded_to_the_next_size(
    make_engine: Callable[..., Engine], lengths: list[int]
) -> None:
    outputs = []
    for decode_graphs in (False, True):
        engine = make_engine(
            num_blocks=100,
            block_size=16,
            max_model_len=250,
            max_num_seqs=20,
            max_num_batched_tokens=520,
            decode_graphs=decode_graphs,
        )
        for index in range(3):
            engine.add_request(str(index), [index, 7, 9], greedy(4))
        engine.step()
        for number, length in enumerate(lengths):  # beside three decodes
            engine.add_request(f"long {number}", [length % 250] * length, greedy(3))
        outputs.append(outputs_of(engine))
    assert outputs[0] == outputs[1]
    assert kinds(engine) == {"padded": 2, "graph": 2}


def test_padded_step_with_as_many_rows_of_logits_as_tokens_samples_the_right_rows(
    make_engine: Callable[..., Engine],
) -> None:
    outputs = []
    for decode_graphs in (False, True):
        engine = make_engine(num_blocks=100, max_num_seqs=32, decode_graphs=decode_graphs)
        for index in range(20):
            engine.add_request(str(index), [index], greedy(3))
        engine.step()
        engine.add_request("more tokens than one", [30, 31, 32, 33, 34], greedy(3))
        outputs.append(outputs_of(engine))
    assert outputs[0] == outputs[1]
    assert (32, 32) in engine._pipeline._padded._sizes  # type: ignore[union-attr]
    assert kinds(engine) == {"padded": 2, "graph": 2}


def test_step_that_fits_no_padded_size_runs_kernel_by_kernel(
    make_engine: Callable[..., Engine],
) -> None:
    engine = make_engine(
        num_blocks=100, block_size=16, max_model_len=250, max_num_batched_tokens=520
    )
    for index in range(3):
        engine.add_request(str(index), [index] * 171, greedy(2))
    outputs_of(engine)
    assert kinds(engine) == {"prefill": 1, "graph": 1}


def test_steps_of_the_cpp_layers_are_padded_too(byte_engine: Callable[..., Engine]) -> None:
    prompts = [[index, *range(index, 2 * index)] for index in range(5)]
    outputs = []
    for decode_graphs in (False, True):
        engine = byte_engine(decode_graphs=decode_graphs, max_num_batched_tokens=9, max_num_seqs=9)
        outputs.append([each.token_ids for each in engine.generate(prompts, greedy(5))])
    assert outputs[0] == outputs[1]
    assert kinds(engine)["padded"] > 1


def test_padding_writes_to_no_block_and_reads_only_unused_ones(
    make_engine: Callable[..., Engine],
) -> None:
    prompts = [[1, 2, 3], [4], [5, 6], [7, 8, 9], [10]]
    settings = {"num_blocks": 40, "block_size": 16, "enable_prefix_caching": False}
    expected = make_engine(decode_graphs=False, **settings).generate(prompts, greedy(8))
    engine = make_engine(**settings)
    for index, prompt in enumerate(prompts):
        engine.add_request(str(index), prompt, greedy(8))
    engine.step()
    pool = engine._scheduler.block_pool
    free = [each for each in range(pool.num_blocks) if pool.ref_count(each) == 0]
    held = [each for each in range(pool.num_blocks) if pool.ref_count(each)]
    live = [tensor for layer in engine._kv_cache.layers for tensor in layer]
    for tensor in live:
        tensor[free] = torch.nan
    before = [tensor[held].clone() for tensor in live]
    engine.step()
    for tensor, old in zip(live, before, strict=True):
        assert tensor[free].isnan().all(), "a padding row wrote to a block that no request holds"
        changed = (tensor[held] != old).any(dim=-1).any(dim=-1)  # [num_held, block_size]
        assert changed.sum().item() <= len(prompts), "each request writes to one slot"
    outputs = outputs_of(engine)
    assert [outputs[str(index)] for index in range(5)] == [each.token_ids for each in expected]
    assert kinds(engine) == {"padded": 1, "graph": 7}
    for tensor in live:
        tensor[free] = 0


def test_padding_that_reads_nan_harms_no_row(make_engine: Callable[..., Engine]) -> None:
    prompts = [[1, 2, 3], [4], [5, 6]]
    settings = {"block_size": 16, "enable_prefix_caching": False}
    expected = make_engine(decode_graphs=False, **settings).generate(prompts, greedy(8))
    engine = make_engine(**settings)
    engine.add_request("holds block 0 and finishes", [1], greedy(1))
    for index, prompt in enumerate(prompts):
        engine.add_request(str(index), prompt, greedy(8))
    engine.step()
    pool = engine._scheduler.block_pool
    assert pool.ref_count(0) == 0
    for keys, values in engine._kv_cache.layers:
        keys[0], values[0] = torch.nan, torch.nan
    outputs = outputs_of(engine)
    assert [outputs[str(index)] for index in range(3)] == [each.token_ids for each in expected]
    engine._kv_cache.zero_blocks([0])


def test_step_that_could_not_be_launched_is_replayed_correctly(
    make_engine: Callable[..., Engine], fuse: Fuse
) -> None:
    (expected,) = make_engine(decode_graphs=False).generate([[1, 2, 3]], greedy(12))
    engine = make_engine()
    engine.add_request("a", [1, 2, 3], greedy(12))
    for _ in range(4):
        engine.step()
    fuse.is_blown = True
    with pytest.raises(RuntimeError, match="the device is lost"):
        engine.step()
    fuse.reset()
    assert outputs_of(engine)["a"] == expected.token_ids


def test_block_begun_in_a_step_that_ran_out_of_memory_reaches_the_next_replay(
    make_engine: Callable[..., Engine], fuse: Fuse
) -> None:
    prompts = {"a": [1, 2, 3], "b": list(range(4, 24))}
    expected = {
        name: make_engine(decode_graphs=False).generate([prompt], greedy(12))[0].token_ids
        for name, prompt in prompts.items()
    }
    engine = make_engine()
    engine.add_request("a", prompts["a"], greedy(12))
    engine.step()
    engine.step()
    assert kinds(engine) == {"padded": 1, "graph": 1}
    engine.add_request("b", prompts["b"], greedy(12))
    fuse.error, fuse.max_num_tokens = MemoryError(), 8
    engine.step()  # "a" begins its second block in it
    assert engine.stats().num_out_of_memory == 1
    fuse.reset()
    assert outputs_of(engine) == expected


@pytest.mark.parametrize("controls", [{}, {"repetition_penalty": 1.5}, {"logprobs": 2}], ids=str)
def test_step_without_host_memory_for_its_tokens_samples_them_again(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, controls: dict[str, Any]
) -> None:
    params = replace(greedy(12), **controls)
    (expected,) = make_engine(decode_graphs=False).generate([[1, 2, 3]], params)
    engine = make_engine()
    engine.add_request("a", [1, 2, 3], params)
    for _ in range(4):
        engine.step()

    def fail_allocation(*args: object) -> None:
        raise MemoryError("pinned memory ran out")

    with monkeypatch.context() as patch:
        patch.setattr(HostBuffers, "__init__", fail_allocation)
        engine.step()
    assert engine.stats().num_out_of_memory == 1
    assert outputs_of(engine)["a"] == expected.token_ids


@pytest.mark.parametrize("overlap", [False, True])
def test_inputs_packed_into_one_copy_as_for_a_gpu_give_the_same_tokens(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, overlap: bool
) -> None:
    prompts = [[1, 2, 3], list(range(40)), [5, 6], [7] * 9]
    params = [
        SamplingParams(temperature=0.8, seed=index, max_tokens=14, ignore_eos=True, min_p=each)
        for index, each in enumerate((0, 0.05, 0, 0))
    ]
    expected = make_engine(decode_graphs=False).generate(prompts, params)

    def upload(self: Uploader, *arrays: Any) -> list[torch.Tensor]:
        return unpack(pack(arrays, torch.empty(packed_size(arrays), dtype=torch.uint8)), arrays)

    monkeypatch.setattr(Uploader, "upload", upload)
    for decode_graphs in (False, True):
        engine = make_engine(
            decode_graphs=decode_graphs, overlap=overlap, max_num_batched_tokens=16
        )
        outputs = engine.generate(prompts, params)
        assert [each.token_ids for each in outputs] == [each.token_ids for each in expected]


def test_new_batch_uploads_only_the_used_part_of_its_block_tables(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    (expected,) = make_engine(decode_graphs=False).generate([[1, 2, 3]], greedy(20))
    widths: list[int] = []

    def upload(self: Uploader, *arrays: Any) -> list[torch.Tensor]:
        widths.extend(each.shape[1] for each in arrays if each.ndim == 2)
        return [torch.from_numpy(each) for each in arrays]

    engine = make_engine()  # blocks of 4 tokens, tables of 16 blocks
    engine.add_request("a", [1, 2, 3], greedy(20))
    engine.step()
    monkeypatch.setattr(Uploader, "upload", upload)
    engine.step()
    engine.add_request("finishes soon", [*range(4, 10)], greedy(1))
    assert outputs_of(engine)["a"] == expected.token_ids
    assert widths == [1, 2, 2], "loaded, a prefill step, loaded again"


def test_all_sizes_warm_up_and_are_captured_on_one_stream_into_one_pool(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = CudaStandIn(monkeypatch)
    recorders = [CudaGraphRecorder(), CudaGraphRecorder()]
    for recorder in recorders:
        replay = recorder.record(cuda.work)
        recorder.record(cuda.work)
        replay()
    for start in (0, 6):
        one, two = cuda.calls[start : start + 3], cuda.calls[start + 3 : start + 6]
        assert [pool is None for _, pool, _ in one] == [True, True, False], "warmed up before"
        assert [collects for *_, collects in one] == [True, True, False]
        assert {stream for stream, *_ in one} == {stream for stream, *_ in two}
        assert one[-1][1] is two[-1][1]
    assert cuda.calls[0][0] is not cuda.calls[6][0], "another engine has its own stream"
    assert cuda.calls[0][0].waited_for == [cuda.default, cuda.default]
    assert gc.isenabled()


def test_work_that_cannot_be_captured_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    CudaStandIn(monkeypatch)

    def reads_on_the_host() -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(EngineError, match="BATCHMILL_DECODE_GRAPHS=off"):
        CudaGraphRecorder().record(reads_on_the_host)
    assert gc.isenabled()


def test_decodes_are_recorded_by_default_for_our_decoder_on_a_gpu() -> None:
    config = EngineConfig(model="tiny")
    assert config.records_decodes_on("cuda", is_capturable=True)
    assert not config.records_decodes_on("cuda", is_capturable=False)
    assert not config.records_decodes_on("cpu", is_capturable=True)
    assert EngineConfig(model="tiny", decode_graphs=True).records_decodes_on(
        "cpu", is_capturable=True
    )
    with pytest.raises(ConfigError, match="decode_graphs is 3"):
        EngineConfig(model="tiny", decode_graphs=3)  # type: ignore[arg-type]
