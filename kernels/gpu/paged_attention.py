"""Triton backend of `paged_attention`: decode and prefill kernels over the same mixed batch.

The decode kernel serves sequences with one query token, a prefill kernel the others; each finds its
own sequences on the GPU and skips the rest. Both are launched unless the caller knows that the step
only decodes: lengths are device data, and reading them would stop the pipeline. There are two
prefill kernels: one for many query tokens, and one for so few that their programs would not fill
the GPU, which divides the keys. Sizes that the host knows without reading decide between them.

A sequence's result does not depend on the others in the batch, with one exception: they decide
whether and how its keys are divided. That changes the last places of float32, before the output is
rounded.
"""

from __future__ import annotations

import torch
from torch import Tensor

from batchmill.kernels.every_size import launches_every_size
from batchmill.kernels.reference.paged_attention_plan import AttentionPlan

from .attention_tuning import AttentionTuning, attention_tuning
from .decode_attention import decode_attention, decode_attention_kernel
from .decode_plan import DecodePlan, plan_decode
from .launch import architecture, check_device, check_fp8, num_multiprocessors
from .prefill_attention import prefill_attention, tile_rows_of
from .prefill_plan import PrefillPlan, plan_prefill
from .split_prefill import split_prefill_attention


def plan_step(
    cu_seqlens_q: Tensor,
    seq_lens: Tensor,
    k_cache: Tensor,
    *,
    window: int | None = None,
    only_decodes: bool = False,
    tuning: AttentionTuning | None = None,
) -> DecodePlan:
    """Plan a step for all its layers in one small kernel; the host reads nothing.

    Args:
        cu_seqlens_q: [num_seqs + 1] int32.
        seq_lens: [num_seqs] int32.
        k_cache: Any layer's keys; only shape and dtype matter.
        window: As in `paged_attention`.
        only_decodes: The caller knows that every sequence has exactly one query token, so the
            prefill kernel need not be launched.
        tuning: Tile sizes; None takes those of `attention_tuning`.
    """
    tuning = tuning or _shipped_tuning(k_cache, group=1)
    return plan_decode(
        cu_seqlens_q,
        seq_lens,
        tile_tokens=tuning.decode.tile_tokens,
        sliding_window=window or 0,
        only_decodes=only_decodes,
    )


def paged_attention_triton(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    cu_seqlens_q: Tensor,
    seq_lens: Tensor,
    scale: float,
    *,
    window: int | None = None,
    plan: AttentionPlan | DecodePlan | None = None,
    sinks: Tensor | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    tuning: AttentionTuning | None = None,
    num_programs: int | None = None,
    num_prefill_programs: int | None = None,
) -> Tensor:
    """Compute `paged_attention`.

    A sequence of length 0 with one query (padding in a captured graph) yields zeros. `plan` may be
    a plan of `plan_step`, or the step's shared plan, in which the first layer stores one. `tuning`
    replaces the tiles of `attention_tuning`, `num_programs` the programs that share decode, and
    `num_prefill_programs` those that share prefill, or would leave some of so many idle.

    Raises:
        ValueError: a tensor is not on a GPU or not contiguous, the GPU cannot read a float8 cache,
            or the plan was made for another window or cache type.
    """
    check_device("paged_attention", decode_attention_kernel, q)
    check_fp8(k_cache)
    _check_contiguous(q, k_cache=k_cache, v_cache=v_cache, cu_seqlens_q=cu_seqlens_q)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if q.numel() == 0:
        return out
    tuning = tuning or _shipped_tuning(k_cache, group=q.shape[1] // k_cache.shape[2])
    shared = None if isinstance(plan, DecodePlan) else plan
    if not isinstance(plan, DecodePlan):
        plan = _shared_plan(plan, cu_seqlens_q, seq_lens, k_cache, window, tuning)
    if (plan.sliding_window, plan.tile_tokens) != (window or 0, tuning.decode.tile_tokens):
        raise ValueError(
            f"the plan was made for window {plan.sliding_window or None} and tiles of "
            f"{plan.tile_tokens} tokens, this call has window {window} and tiles of "
            f"{tuning.decode.tile_tokens}: make one with plan_step for this window and cache"
        )
    batch = (out, q, k_cache, v_cache, block_tables, cu_seqlens_q, seq_lens)
    scales = (scale, k_scale, v_scale)
    decode_attention(*batch, *scales, plan, tuning.decode, sinks=sinks, num_programs=num_programs)
    if not plan.only_decodes:
        programs = num_prefill_programs or num_multiprocessors(q.device)
        _attend_prompts(batch, scales, tuning, window or 0, sinks, shared, programs)
    return out


def _attend_prompts(
    batch: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor],
    scales: tuple[float, float, float],
    tuning: AttentionTuning,
    window: int,
    sinks: Tensor | None,
    shared: AttentionPlan | None,
    num_programs: int,
) -> None:
    """Attend with all sequences of two or more queries, by the kernel that fills the GPU."""
    _, q, k_cache, _, _, cu_seqlens_q, seq_lens = batch
    num_kv_heads = k_cache.shape[2]
    group = q.shape[1] // num_kv_heads
    queries_per_tile = tile_rows_of(tuning.split_prefill, group) // group
    # Without padding, at least so many programs of `prefill_attention` have work.
    num_pairs = (len(q) - len(seq_lens)) // queries_per_tile * num_kv_heads
    if num_pairs >= num_programs or launches_every_size():
        prefill_attention(*batch, *scales, tuning.prefill, sliding_window=window, sinks=sinks)
    if num_pairs < num_programs or launches_every_size():
        plan = None if shared is None else shared.triton_prefill
        if not isinstance(plan, PrefillPlan):
            plan = plan_prefill(
                *(cu_seqlens_q, seq_lens),
                num_tokens=len(q),
                queries_per_tile=queries_per_tile,
                tile_tokens=tuning.split_prefill.tile_tokens,
                sliding_window=window,
            )
        if shared is not None:
            shared.triton_prefill = plan
        split_prefill_attention(
            *(*batch, *scales, plan, tuning.split_prefill),
            num_programs=num_programs,
            sliding_window=window,
            sinks=sinks,
        )


def _shared_plan(
    shared: AttentionPlan | None,
    cu_seqlens_q: Tensor,
    seq_lens: Tensor,
    k_cache: Tensor,
    window: int | None,
    tuning: AttentionTuning,
) -> DecodePlan:
    """Return the plan that an earlier layer stored in the step's shared plan, or a new one."""
    if shared is not None and isinstance(shared.triton, DecodePlan):
        return shared.triton
    plan = plan_step(
        cu_seqlens_q,
        seq_lens,
        k_cache,
        window=window,
        only_decodes=shared is not None and shared.only_decodes,
        tuning=tuning,
    )
    if shared is not None:
        shared.triton = plan
    return plan


def _shipped_tuning(k_cache: Tensor, group: int) -> AttentionTuning:
    _, block_size, _, head_dim = k_cache.shape
    arch, kv_bytes = architecture(k_cache.device), k_cache.element_size()
    return attention_tuning(arch, head_dim, kv_bytes, block_size=block_size, group=group)


def _check_contiguous(q: Tensor, **tensors: Tensor) -> None:
    """Refuse tensors with gaps: only the rows of q and of the block table may lie apart."""
    if q.stride(2) != 1 or q.stride(1) != q.shape[2]:
        raise ValueError(
            f"the last two dimensions of q must be contiguous, its strides are {list(q.stride())} "
            f"for {list(q.shape)}: call .contiguous()"
        )
    for name, tensor in tensors.items():
        if not tensor.is_contiguous():
            raise ValueError(
                f"{name} must be contiguous, its strides are {list(tensor.stride())} for "
                f"{list(tensor.shape)}: call .contiguous()"
            )
