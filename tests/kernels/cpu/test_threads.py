"""The C++ kernels' helper threads: several callers at once, forked children, the decoder call."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from batchmill.kernels.ops.decoder_layers import CppAdapter, CppDecoder, CppDecoderSizes, CppLayer
from batchmill.kernels.ops.linear import PackedLinear
from batchmill.kernels.ops.lora import LoraWeights
from batchmill.kernels.reference.lora import LoraPair

USE_AFTER_FORK = """
import os, torch
from batchmill.kernels.ops.linear import PackedLinear
torch.set_num_threads(3)
x, weight = torch.randn(40, 64), torch.randn(640, 64)
linear = PackedLinear([weight], [None])
before = linear(x)
child = os.fork()
same = torch.equal(linear(x), before)
if child == 0:
    os._exit(0 if same else 1)
assert same
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


def test_callers_on_several_threads_get_their_own_results() -> None:
    torch.manual_seed(0)
    linear = PackedLinear([torch.randn(640, 64)], [None])
    arguments = [torch.randn(40, 64) for _ in range(50)]
    want = [linear(x) for x in arguments]
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with ThreadPoolExecutor(4) as callers:
            assert all(map(torch.equal, callers.map(linear, arguments), want))
    finally:
        torch.set_num_threads(before)


def test_a_forked_child_has_its_own_helpers() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", USE_AFTER_FORK],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")


HIDDEN, INNER, HEAD_DIM, NUM_BLOCKS, BLOCK_SIZE = 16, 24, 8, 3, 4
SIZES = CppDecoderSizes(
    num_heads=2, num_kv_heads=1, head_dim=HEAD_DIM, rotary_dim=HEAD_DIM, window=None, eps=1e-5
)


def make_layer() -> CppLayer:
    return CppLayer(
        input_norm=torch.ones(HIDDEN),
        qkv=PackedLinear([torch.randn(4 * HEAD_DIM, HIDDEN)], [None]),
        q_norm=None,
        k_norm=None,
        output=PackedLinear([torch.randn(HIDDEN, 2 * HEAD_DIM)], [None]),
        post_attention_norm=torch.ones(HIDDEN),
        gate_up=PackedLinear([torch.randn(INNER, HIDDEN)] * 2, [None, None]),
        down=PackedLinear([torch.randn(HIDDEN, INNER)], [None]),
    )


def make_caches() -> tuple[torch.Tensor, torch.Tensor]:
    shape = (NUM_BLOCKS, BLOCK_SIZE, 1, HEAD_DIM)
    return torch.zeros(shape), torch.zeros(shape)


def step_arguments(**changes: Any) -> dict[str, Any]:
    """Return the arguments of a step: one sequence of two tokens, both sampled."""
    arguments: dict[str, Any] = {
        "residual": torch.randn(2, HIDDEN),
        "cos": torch.ones(2, HEAD_DIM // 2),
        "sin": torch.zeros(2, HEAD_DIM // 2),
        "slot_mapping": torch.tensor([4, 5]),
        "block_tables": torch.tensor([[1]], dtype=torch.int32),
        "cu_seqlens_q": torch.tensor([0, 2], dtype=torch.int32),
        "seq_lens": torch.tensor([2], dtype=torch.int32),
        "sample_rows": torch.tensor([0, 1]),
    }
    return arguments | changes


def test_the_decoder_refuses_rows_and_pairs_of_adapters_that_do_not_fit() -> None:
    decoder = CppDecoder([make_layer()], SIZES, [make_caches()])
    pair = LoraPair(torch.zeros(3, HIDDEN), torch.zeros(1, 4 * HEAD_DIM))
    inside, outside = torch.tensor([0, 1]), torch.tensor([0, 2])
    for weights, token_rows, sample_rows, named in (
        (LoraWeights(((pair, None, None, None),)), outside, inside, "a row of an adapter"),
        (LoraWeights(((pair, None, None, None),)), inside, outside, "a row of an adapter"),
        (LoraWeights(((pair, None),)), inside, inside, "4 pairs of torch.float32 for each of 1"),
    ):
        adapters = [CppAdapter(weights, token_rows, sample_rows)]
        with pytest.raises(ValueError, match=named):
            decoder.run_layers(**step_arguments(adapters=adapters))


def test_the_decoder_refuses_indices_outside_cache_and_batch() -> None:
    decoder = CppDecoder([make_layer()], SIZES, [make_caches()])
    assert [list(part.shape) for part in decoder.run_layers(**step_arguments())] == [
        [2, HIDDEN]
    ] * 2
    for name, value, said in (
        ("slot_mapping", torch.tensor([4, 12]), "an entry of slot_mapping"),
        ("block_tables", torch.tensor([[3]], dtype=torch.int32), "block_tables lies outside"),
        ("seq_lens", torch.tensor([5], dtype=torch.int32), "seq_lens or block_tables"),
        ("sample_rows", torch.tensor([0, 2]), "an entry of sample_rows"),
        ("sample_rows", torch.tensor([1, 0]), "an entry of sample_rows"),
    ):
        with pytest.raises(ValueError, match=said):
            decoder.run_layers(**step_arguments(**{name: value}))


def test_a_profiled_step_reports_its_time_and_computes_the_same() -> None:
    torch.manual_seed(0)
    layer, caches, given = make_layer(), make_caches(), step_arguments()
    decoder = CppDecoder([layer, layer], SIZES, [caches, caches])

    def run() -> list[torch.Tensor]:
        return list(decoder.run_layers(**{**given, "residual": given["residual"].clone()}))

    plain = run()
    decoder.phase_s = torch.zeros(3, dtype=torch.float64)
    started_at_s = time.perf_counter()
    profiled = run()
    elapsed_s = time.perf_counter() - started_at_s
    assert all(map(torch.equal, plain, profiled))
    assert all(phase_s > 0 for phase_s in decoder.phase_s.tolist())
    assert decoder.phase_s.sum() <= elapsed_s
    once = decoder.phase_s.clone()
    run()
    assert bool((decoder.phase_s > once).all())  # added, not overwritten
    decoder.phase_s = torch.zeros(2, dtype=torch.float64)
    with pytest.raises(ValueError, match="phase_s must be"):
        run()


def test_the_decoder_refuses_tensors_that_c_code_would_misread() -> None:
    decoder = CppDecoder([make_layer()], SIZES, [make_caches()])
    for name, value in (
        ("residual", torch.zeros(2, HIDDEN).double()),
        ("cos", torch.zeros(1, HEAD_DIM // 2)),
        ("slot_mapping", torch.tensor([4, 5], dtype=torch.int32)),
        ("block_tables", torch.zeros(1, 4, dtype=torch.int32)[:, ::2]),
    ):
        with pytest.raises(ValueError, match=f"{name} must be"):
            decoder.run_layers(**step_arguments(**{name: value}))
    keys, values = make_caches()
    with pytest.raises(ValueError, match="each cache must be"):
        CppDecoder([make_layer()], SIZES, [(keys, values.transpose(0, 1))])
    with pytest.raises(ValueError, match="got 1 layers and 0 caches"):
        CppDecoder([make_layer()], SIZES, [])
