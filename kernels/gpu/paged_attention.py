"""Triton backend of `paged_attention`: decode and prefill kernels over the same mixed batch.

Sequences with one query token go to the decode kernel, the others to the prefill kernel; each
kernel finds its own on the GPU and leaves the rest alone. Both are launched unless the caller says
that the step is all decode: lengths are device data, and reading them would stop the pipeline.

A sequence's result does not depend on which others are in the batch, except through where decode
cuts it: then by rounding in the last float32 places before the output is rounded.
"""

from __future__ import annotations

import torch
from torch import Tensor

from batchmill.kernels.reference.paged_attention_plan import AttentionPlan

from .attention_tuning import AttentionTuning, attention_tuning
from .decode_attention import decode_attention, decode_attention_kernel
from .decode_plan import DecodePlan, plan_decode
from .launch import architecture, check_device, check_fp8
from .prefill_attention import prefill_attention


def plan_step(
    cu_seqlens_q: Tensor,
    seq_lens: Tensor,
    k_cache: Tensor,
    *,
    window: int | None = None,
    only_decodes: bool = False,
    tuning: AttentionTuning | None = None,
) -> DecodePlan:
    """Plan a step for all its layers: one small kernel, nothing read on the host.

    Args:
        cu_seqlens_q: [num_seqs + 1] int32.
        seq_lens: [num_seqs] int32.
        window: As in `paged_attention`.
        k_cache: Any layer's keys: shape and dtype are looked at.
        only_decodes: Whether every sequence is known to have exactly one query token, so that the
            prefill kernel need not be launched.
        tuning: Tile sizes; None takes the shipped ones.
    """
    tuning = tuning or _shipped_tuning(k_cache)
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
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    tuning: AttentionTuning | None = None,
    num_programs: int | None = None,
) -> Tensor:
    """Same result as `batchmill.kernels.paged_attention.paged_attention`, and a little more.

    Args:
        q: As there, and so are the others that are not described.
        k_cache: May be float8_e4m3fn as well.
        v_cache: As `k_cache`.
        block_tables: As there.
        cu_seqlens_q: As there.
        seq_lens: As there; a sequence of length 0 with one query (padding in a captured graph)
            gets zeros.
        scale: As there.
        window: As there.
        plan: From `plan_step`; or the step's shared plan, in which the first layer leaves one; or
            None, and one is made.
        k_scale: What one unit in a float8 key cache stands for.
        v_scale: What one unit in a float8 value cache stands for.
        tuning: Tile sizes; None takes the shipped ones.
        num_programs: Programs that share out decode; None suits the GPU.

    Raises:
        ValueError: tensors that are not on a GPU or not contiguous, a float8 cache on a GPU that
            has none, or a plan made for another window or cache type.
    """
    check_device("paged_attention", decode_attention_kernel, q)
    check_fp8(k_cache)
    _check_contiguous(q, k_cache=k_cache, v_cache=v_cache, cu_seqlens_q=cu_seqlens_q)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if q.numel() == 0:
        return out
    tuning = tuning or _shipped_tuning(k_cache)
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
    decode_attention(*batch, *scales, plan, tuning.decode, num_programs=num_programs)
    if not plan.only_decodes:
        prefill_attention(*batch, *scales, tuning.prefill, sliding_window=window or 0)
    return out


def _shared_plan(
    shared: AttentionPlan | None,
    cu_seqlens_q: Tensor,
    seq_lens: Tensor,
    k_cache: Tensor,
    window: int | None,
    tuning: AttentionTuning,
) -> DecodePlan:
    """The plan that an earlier layer left in the step's shared one, or a new one."""
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


def _shipped_tuning(k_cache: Tensor) -> AttentionTuning:
    arch = architecture(k_cache.device)
    return attention_tuning(arch, k_cache.shape[3], k_cache.element_size())


def _check_contiguous(q: Tensor, **tensors: Tensor) -> None:
    """The kernels take these for dense; only q's and the block table's rows may lie apart."""
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
