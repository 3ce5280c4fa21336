"""Launches of every Triton kernel for the models that we support, to compile without a GPU.

The launchers themselves run on tensors without data, so the compiled kernels are the real ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from batchmill.kernels.every_size import launching_every_size
from batchmill.kernels.gpu.attention_tuning import attention_tuning
from batchmill.kernels.gpu.decode_attention import decode_attention_kernel, merge_decode_kernel
from batchmill.kernels.gpu.decode_plan import plan_decode_kernel
from batchmill.kernels.gpu.expert_linear import expert_linear_kernel, multiply_experts_triton
from batchmill.kernels.gpu.experts import (
    combine_experts_kernel,
    combine_experts_triton,
    order_experts_kernel,
    route_experts_kernel,
    route_experts_triton,
)
from batchmill.kernels.gpu.fp8_gated_activation import (
    gated_activation_fp8_kernel,
    gated_activation_fp8_triton,
)
from batchmill.kernels.gpu.fp8_quantize import quantize_fp8_kernel, quantize_fp8_triton
from batchmill.kernels.gpu.gated_activation import (
    gated_activation_kernel,
    gelu_and_mul_triton,
    silu_and_mul_triton,
)
from batchmill.kernels.gpu.int4_linear import (
    add_int4_parts_kernel,
    int4_linear_kernel,
    multiply_int4_triton,
)
from batchmill.kernels.gpu.lora import (
    add_lora_tiles_triton,
    add_lora_triton,
    lora_down_kernel,
    lora_up_kernel,
)
from batchmill.kernels.gpu.paged_attention import paged_attention_triton
from batchmill.kernels.gpu.prefill_attention import prefill_attention_kernel
from batchmill.kernels.gpu.prefill_plan import plan_prefill_kernel
from batchmill.kernels.gpu.rms_norm import (
    add_rms_norm_triton,
    rms_norm_fp8_triton,
    rms_norm_kernel,
    rms_norm_triton,
)
from batchmill.kernels.gpu.rope import (
    apply_rope_kernel,
    apply_rope_triton,
    rope_and_cache_kernel,
    rope_and_cache_triton,
)
from batchmill.kernels.gpu.sample import sample_pick_kernel, sample_tile_kernel, sample_triton
from batchmill.kernels.gpu.sample_floor import sample_floor_kernel
from batchmill.kernels.gpu.split_prefill import (
    merge_prefill_kernel,
    split_prefill_attention_kernel,
)
from batchmill.kernels.gpu.write_kv import write_kv_kernel, write_kv_triton
from batchmill.kernels.reference.expert_linear import Fp8Experts
from batchmill.kernels.reference.fp8_rows import Fp8Rows
from batchmill.kernels.reference.int4_rows import CHUNK, PackedInt4
from batchmill.kernels.reference.lora import LoraPair, LoraRows, LoraTiles

from .launches import Launch, record_launches

#: All kernels.
KERNELS = (
    plan_decode_kernel,
    decode_attention_kernel,
    merge_decode_kernel,
    prefill_attention_kernel,
    plan_prefill_kernel,
    split_prefill_attention_kernel,
    merge_prefill_kernel,
    write_kv_kernel,
    apply_rope_kernel,
    rope_and_cache_kernel,
    rms_norm_kernel,
    gated_activation_kernel,
    gated_activation_fp8_kernel,
    quantize_fp8_kernel,
    sample_floor_kernel,
    sample_tile_kernel,
    sample_pick_kernel,
    lora_down_kernel,
    lora_up_kernel,
    route_experts_kernel,
    order_experts_kernel,
    combine_experts_kernel,
    expert_linear_kernel,
    int4_linear_kernel,
    add_int4_parts_kernel,
)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a model that the kernels see."""

    name: str
    num_heads: int
    num_kv_heads: int
    head_dim: int
    block_size: int = 16
    window: int | None = None
    dtype: torch.dtype = torch.bfloat16
    kv_dtype: torch.dtype = torch.bfloat16


#: One per branch of the tuning table and of the attention kernels, named for a model.
ATTENTION_SHAPES = (
    ModelShape("Llama-3.1-8B, Qwen3-8B", 32, 8, 128),
    ModelShape("Llama-3.1-8B, fp8 cache", 32, 8, 128, kv_dtype=torch.float8_e4m3fn),
    ModelShape("Qwen3-0.6B, blocks of 64", 16, 8, 128, block_size=64),
    ModelShape("Llama-3.1-8B, blocks of 32", 32, 8, 128, block_size=32),
    ModelShape(
        "Llama-3.1-8B, blocks of 64, fp8 cache",
        32,
        8,
        128,
        block_size=64,
        kv_dtype=torch.float8_e4m3fn,
    ),
    ModelShape("Llama-3.2-1B, blocks of 64", 32, 8, 64, block_size=64),
    ModelShape("Gemma-7B, blocks of 64", 16, 16, 256, block_size=64),
    ModelShape("Gemma-7B, blocks of 32", 16, 16, 256, block_size=32),
    ModelShape("Gemma-7B", 16, 16, 256),
    ModelShape("32 heads on one KV head, blocks of 64", 32, 1, 128, block_size=64),
    ModelShape("SmolLM2-135M", 9, 3, 64),
    ModelShape("Mistral-7B, window", 32, 8, 128, window=4096),
    ModelShape("Phi-2, 80 dimensions", 32, 32, 80),
    ModelShape("SmolLM2-135M, fp8 cache", 9, 3, 64, kv_dtype=torch.float8_e4m3fn),
    ModelShape(
        "Mistral-7B, window, fp8 cache", 32, 8, 128, window=4096, kv_dtype=torch.float8_e4m3fn
    ),
    ModelShape("Gemma-7B, fp8 cache", 16, 16, 256, kv_dtype=torch.float8_e4m3fn),
    ModelShape(
        "Gemma-2B, one KV head, fp16", 8, 1, 256, dtype=torch.float16, kv_dtype=torch.float16
    ),
    ModelShape("Llama-3.1-8B, float32", 32, 8, 128, dtype=torch.float32, kv_dtype=torch.float32),
    ModelShape("Gemma-7B, float32", 16, 16, 256, dtype=torch.float32, kv_dtype=torch.float32),
)
_HIDDEN_SIZES = (576, 16384)
#: Rows that fit a program's registers, and one that is read twice (Llama-3.1-70B's feed-forward).
_FP8_SIZES = (576, 4096, 14336, 28672)
_VOCAB_SIZE = 151936
_NUM_TOKENS = 64
#: Ranks of adapters, and number formats.
_LORA_KINDS = (
    (8, torch.bfloat16),
    (16, torch.bfloat16),
    (64, torch.bfloat16),
    (64, torch.float16),
    (64, torch.float32),
)
#: Columns and rows of products by 4-bit weights: each tile, and one whose inputs are divided.
_INT4_SIZES = ((4096, 16), (4096, 32), (4096, 64), (4096, 4096), (64, 16))
_INT4_INPUTS = 4096
#: Kinds of 4-bit weights: inputs of a group, whether there are zero points, and the format of the
#: scales: the activations', or another one.
_INT4_KINDS = (
    (32, False, torch.bfloat16),
    (128, True, torch.float16),
)


@dataclass(frozen=True, slots=True)
class Variant:
    """A launch and the name of its shape."""

    label: str
    launch: Launch


def shipped_variants(arch: int) -> list[Variant]:
    """Return all launches to check on compute capability `arch`, without repetitions."""
    seen = set()
    variants = []
    with launching_every_size():
        all_variants = list(_all_variants(arch))
    for variant in all_variants:
        launch = variant.launch
        key = (
            launch.name,
            tuple(launch.signature.items()),
            tuple(launch.constants.items()),
            launch.aligned,
        )
        if key not in seen:
            seen.add(key)
            variants.append(variant)
    return variants


def _all_variants(arch: int) -> Iterator[Variant]:
    for shape in ATTENTION_SHAPES:
        if shape.kv_dtype == torch.float8_e4m3fn and arch < 89:
            continue
        for launch in record_launches(KERNELS, partial(_attend, shape, arch)):
            yield Variant(shape.name, launch)
    for shape in ATTENTION_SHAPES[:2]:
        if shape.kv_dtype == torch.float8_e4m3fn and arch < 89:
            continue
        for launch in record_launches(KERNELS, partial(_project, shape)):
            yield Variant(shape.name, launch)
    for size in _HIDDEN_SIZES:
        for launch in record_launches(KERNELS, partial(_elementwise, size)):
            yield Variant(f"hidden size {size}", launch)
    for size in _FP8_SIZES if arch >= 89 else ():
        for launch in record_launches(KERNELS, partial(_quantize, size)):
            yield Variant(f"fp8 weights, {size} inputs", launch)
    for launch in record_launches(KERNELS, record_sampling):
        yield Variant(f"vocabulary {_VOCAB_SIZE}", launch)
    for launch in record_launches(KERNELS, _mix):
        yield Variant("128 experts, 8 of them for a token", launch)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for launch in record_launches(KERNELS, partial(_multiply_experts, dtype)):
            yield Variant(f"128 experts of 2048 x 768, {dtype}", launch)
    for launch in record_launches(KERNELS, _multiply_experts_fp8) if arch >= 89 else ():
        yield Variant("128 experts of 2048 x 768, fp8 weights", launch)
    for rank, dtype in _LORA_KINDS:
        for launch in record_launches(KERNELS, partial(_adapt, rank, dtype)):
            yield Variant(f"adapters of rank {rank}, {dtype}", launch)
    for launch in record_launches(KERNELS, _adapt_tiles):
        yield Variant("adapters of a recorded step", launch)
    for num_columns, num_rows in _INT4_SIZES:
        for kind in _INT4_KINDS:
            multiply = partial(_multiply_int4, num_columns, num_rows, *kind)
            label = f"int4 weights in groups of {kind[0]}, {num_columns} columns, {num_rows} rows"
            for launch in record_launches(KERNELS, multiply):
                yield Variant(label, launch)


def _meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _caches(shape: ModelShape) -> tuple[Tensor, Tensor]:
    size = (_NUM_TOKENS, shape.block_size, shape.num_kv_heads, shape.head_dim)
    return _meta(*size, dtype=shape.kv_dtype), _meta(*size, dtype=shape.kv_dtype)


def _attend(shape: ModelShape, arch: int) -> None:
    paged_attention_triton(
        _meta(_NUM_TOKENS, shape.num_heads, shape.head_dim, dtype=shape.dtype),
        *_caches(shape),
        _meta(8, 33, dtype=torch.int32),
        _meta(9, dtype=torch.int32),
        _meta(8, dtype=torch.int32),
        shape.head_dim**-0.5,
        window=shape.window,
        tuning=attention_tuning(
            arch,
            shape.head_dim,
            shape.kv_dtype.itemsize,
            block_size=shape.block_size,
            group=shape.num_heads // shape.num_kv_heads,
        ),
    )


def _project(shape: ModelShape) -> None:
    total_heads = shape.num_heads + 2 * shape.num_kv_heads
    qkv = _meta(_NUM_TOKENS, total_heads * shape.head_dim, dtype=shape.dtype)
    heads = qkv.view(_NUM_TOKENS, total_heads, shape.head_dim)
    slots = _meta(_NUM_TOKENS, dtype=torch.int64)
    angles = _meta(_NUM_TOKENS, shape.head_dim // 2, dtype=torch.float32)
    weight = _meta(shape.head_dim, dtype=shape.dtype)
    kv = heads[:, -shape.num_kv_heads :]
    write_kv_triton(kv, kv, *_caches(shape), slots)
    apply_rope_triton(heads, angles, angles)
    rope_and_cache_triton(qkv, *_caches(shape), slots, angles, angles)
    rope_and_cache_triton(
        qkv, *_caches(shape), slots, angles, angles, q_weight=weight, k_weight=weight, eps=1e-6
    )
    rms_norm_triton(heads, weight, 1e-6)


def _elementwise(size: int) -> None:
    rms_norm_triton(_meta(_NUM_TOKENS, size), _meta(size), 1e-6)
    add_rms_norm_triton(_meta(_NUM_TOKENS, size), _meta(_NUM_TOKENS, size), _meta(size), 1e-6)
    silu_and_mul_triton(_meta(_NUM_TOKENS, 2 * size))
    gelu_and_mul_triton(_meta(_NUM_TOKENS, 2 * size))
    # Gemma's norm weights are float32 differences from 1.
    rms_norm_triton(_meta(_NUM_TOKENS, size), _meta(size, dtype=torch.float32), 1e-6)


def _quantize(size: int) -> None:
    quantize_fp8_triton(_meta(_NUM_TOKENS, size))
    for is_gelu in (False, True):
        gated_activation_fp8_triton(_meta(_NUM_TOKENS, 2 * size), is_gelu=is_gelu)
    if size <= max(_HIDDEN_SIZES):
        residual, weight = _meta(_NUM_TOKENS, size), _meta(size)
        rms_norm_fp8_triton(None, residual, weight, 1e-6)
        rms_norm_fp8_triton(_meta(_NUM_TOKENS, size), residual, weight, 1e-6)


def record_sampling() -> None:
    """Launch the sampler for a vocabulary of a usual size."""
    one = _meta(_NUM_TOKENS, dtype=torch.float32)
    whole = _meta(_NUM_TOKENS, dtype=torch.int64)
    logits = _meta(_NUM_TOKENS, _VOCAB_SIZE, dtype=torch.float32)
    sample_triton(logits, one, whole, one, one, whole, whole)


def _mix() -> None:
    routing = route_experts_triton(_meta(_NUM_TOKENS, 128), 8, normalise=True)
    computed = _meta(8 * _NUM_TOKENS, 2048)
    combine_experts_triton(computed, routing.places, routing.shares)


def _multiply_experts(dtype: torch.dtype) -> None:
    """Launch both products of Qwen3-30B-A3B's mixtures."""
    rows, ends = _meta(8 * _NUM_TOKENS, dtype=torch.int64), _meta(128, dtype=torch.int32)
    x, gate_up = _meta(_NUM_TOKENS, 2048, dtype=dtype), _meta(128, 1536, 2048, dtype=dtype)
    hidden = multiply_experts_triton(x, gate_up, ends, dtype, rows, None, "silu")
    multiply_experts_triton(
        hidden, _meta(128, 2048, 768, dtype=dtype), ends, dtype, None, None, None
    )


def _multiply_experts_fp8() -> None:
    fp8 = torch.float8_e4m3fn
    rows, ends = _meta(8 * _NUM_TOKENS, dtype=torch.int64), _meta(128, dtype=torch.int32)
    for of_row, num_rows, out, size in (
        (rows, _NUM_TOKENS, 1536, 2048),
        (None, 8 * _NUM_TOKENS, 2048, 768),
    ):
        x = Fp8Rows(_meta(num_rows, size, dtype=fp8), _meta(num_rows, 1, dtype=torch.float32))
        weight = Fp8Experts(_meta(128, out, size, dtype=fp8), _meta(128, out, dtype=torch.float32))
        multiply_experts_triton(x, weight, ends, torch.bfloat16, of_row, None, None)


def _adapt(rank: int, dtype: torch.dtype) -> None:
    widths = (4096, 1024, 1024)
    pair = LoraPair(
        _meta(len(widths) * rank, 4096, dtype=dtype), _meta(rank, sum(widths), dtype=dtype)
    )
    add_lora_triton(
        _meta(_NUM_TOKENS, sum(widths), dtype=dtype),
        _meta(_NUM_TOKENS, 4096, dtype=dtype),
        [LoraRows(_meta(count, dtype=torch.int64), pair) for count in (1, _NUM_TOKENS - 1)],
        widths,
    )


def _adapt_tiles() -> None:
    tiles = LoraTiles(
        _meta(_NUM_TOKENS, dtype=torch.int64),
        _meta(_NUM_TOKENS + 1, dtype=torch.int32),
        _meta(_NUM_TOKENS, 3, dtype=torch.int64),
        max_rank=64,
    )
    add_lora_tiles_triton(_meta(_NUM_TOKENS, 6144), _meta(_NUM_TOKENS, 4096), tiles, (6144,))


def _multiply_int4(
    num_columns: int, num_rows: int, group: int, has_zeros: bool, scales_in: torch.dtype
) -> None:
    groups = (_INT4_INPUTS // group, num_columns)
    weight = PackedInt4(
        packed=_meta(_INT4_INPUTS // CHUNK, num_columns, CHUNK // 8, dtype=torch.int32),
        scales=_meta(*groups, dtype=scales_in),
        zeros=_meta(*groups, dtype=torch.float16) if has_zeros else None,
        group_size=group,
        num_inputs=_INT4_INPUTS,
    )
    multiply_int4_triton(_meta(num_rows, _INT4_INPUTS), weight, None)
