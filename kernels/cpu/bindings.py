"""The C++ backend of each op: check tensors, then pass pointers, sizes and strides to C.

The ops have compared shapes and dtypes before. The checks here cover everything that would make the
C code read the wrong memory: device, dtype, contiguity, indices.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .library import default_library
from .lora import rows_table

if TYPE_CHECKING:
    from batchmill.kernels.reference.lora import LoraPair, LoraRows

#: Numbers of the dtypes in the C++ sources (`with_dtype` in vec.h).
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def paged_attention_cpp(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    cu_seqlens_q: Tensor,
    seq_lens: Tensor,
    scale: float,
    *,
    window: int | None = None,
    plan: object = None,
    sinks: Tensor | None = None,
    library: ctypes.CDLL | None = None,
) -> Tensor:
    """Compute `paged_attention`; `plan` is not read.

    Here and below, `library` has the kernels to use; None loads those for this CPU.

    Raises:
        ValueError: C code cannot read a tensor (its device, dtype or layout), or a length or block
            id lies outside the cache.
    """
    dtype = _dtype_number("q", q)
    _check_rows("q", q, 2)
    _check_contiguous(k_cache=k_cache, v_cache=v_cache)
    _check_contiguous(cu_seqlens_q=cu_seqlens_q, seq_lens=seq_lens)
    _check_rows("block_tables", block_tables, 1)
    if sinks is not None:
        _check_contiguous(sinks=sinks)
    num_tokens, num_heads, head_dim = q.shape
    num_blocks, block_size, num_kv_heads, _ = k_cache.shape
    out = torch.empty((num_tokens, num_heads, head_dim), dtype=q.dtype)
    invalid = (library or default_library()).bm_paged_attention(
        out.data_ptr(), q.data_ptr(), k_cache.data_ptr(), v_cache.data_ptr(),
        block_tables.data_ptr(), cu_seqlens_q.data_ptr(), seq_lens.data_ptr(),
        num_tokens, len(seq_lens), num_heads, num_kv_heads, head_dim, num_blocks, block_size,
        block_tables.shape[1], block_tables.stride(0), q.stride(0), head_dim,
        num_heads * head_dim, head_dim, scale, window or 0,
        None if sinks is None else sinks.data_ptr(), dtype, torch.get_num_threads(),
    )  # fmt: skip
    if invalid >= 0:
        raise ValueError(
            f"sequence {invalid} has lengths or block ids outside the batch or the cache: "
            f"cu_seqlens_q {cu_seqlens_q[invalid : invalid + 2].tolist()} of {num_tokens} tokens, "
            f"seq_lens {int(seq_lens[invalid])} of {block_tables.shape[1]} blocks of {block_size}, "
            f"block ids must be below {num_blocks}"
        )
    return out


def write_kv_cpp(
    key: Tensor,
    value: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    *,
    library: ctypes.CDLL | None = None,
) -> None:
    """Compute `write_kv`.

    Raises:
        ValueError: as for `paged_attention_cpp`.
    """
    _dtype_number("key", key)
    for name, rows in (("key", key), ("value", value)):
        _check_rows(name, rows, 2)
    _check_contiguous(k_cache=k_cache, v_cache=v_cache, slot_mapping=slot_mapping)
    num_slots = k_cache.shape[0] * k_cache.shape[1]
    size = key.element_size()
    invalid = (library or default_library()).bm_write_kv(
        key.data_ptr(), value.data_ptr(), k_cache.data_ptr(), v_cache.data_ptr(),
        slot_mapping.data_ptr(), len(slot_mapping), num_slots, key.stride(0) * size,
        value.stride(0) * size, key.shape[1] * key.shape[2] * size, torch.get_num_threads(),
    )  # fmt: skip
    _refuse_invalid_slot(invalid, slot_mapping, num_slots)


def rms_norm_cpp(
    x: Tensor, weight: Tensor, eps: float, *, library: ctypes.CDLL | None = None
) -> Tensor:
    """Compute `rms_norm`.

    Raises:
        ValueError: as for `paged_attention_cpp`.
    """
    return _rms_norm(x, None, weight, eps, library)


def add_rms_norm_cpp(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, *, library: ctypes.CDLL | None = None
) -> Tensor:
    """Compute `add_rms_norm`.

    Raises:
        ValueError: as for `paged_attention_cpp`.
    """
    _check_contiguous(residual=residual)
    return _rms_norm(x, residual, weight, eps, library)


def _rms_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, library: ctypes.CDLL | None
) -> Tensor:
    dtype = _dtype_number("x", x)
    _check_contiguous(weight=weight)
    size = weight.shape[0]
    rows = x if x.dim() == 2 and x.stride(1) == 1 else x.reshape(-1, size).contiguous()
    out = torch.empty(x.shape, dtype=x.dtype)
    (library or default_library()).bm_rms_norm(
        out.data_ptr(), rows.data_ptr(), None if residual is None else residual.data_ptr(),
        weight.data_ptr(), rows.shape[0], size, rows.stride(0), eps, dtype,
        torch.get_num_threads(),
    )  # fmt: skip
    return out


def silu_and_mul_cpp(gate_up: Tensor, *, library: ctypes.CDLL | None = None) -> Tensor:
    """Compute `silu_and_mul`.

    Raises:
        ValueError: as for `paged_attention_cpp`.
    """
    dtype = _dtype_number("gate_up", gate_up)
    _check_rows("gate_up", gate_up, 1)
    num_tokens, width = gate_up.shape
    out = torch.empty((num_tokens, width // 2), dtype=gate_up.dtype)
    (library or default_library()).bm_silu_and_mul(
        out.data_ptr(), gate_up.data_ptr(), num_tokens, width // 2, gate_up.stride(0), dtype,
        torch.get_num_threads(),
    )  # fmt: skip
    return out


def apply_rope_cpp(
    x: Tensor, cos: Tensor, sin: Tensor, *, library: ctypes.CDLL | None = None
) -> None:
    """Compute `apply_rope`, in place.

    Raises:
        ValueError: as for `paged_attention_cpp`.
    """
    dtype = _dtype_number("x", x)
    _check_rows("x", x, 2)
    _check_contiguous(cos=cos, sin=sin)
    num_tokens, num_heads, head_dim = x.shape
    (library or default_library()).bm_rope(
        x.data_ptr(), cos.data_ptr(), sin.data_ptr(), num_tokens, num_heads, head_dim,
        cos.shape[1], x.stride(0), dtype, torch.get_num_threads(),
    )  # fmt: skip


def sample_cpp(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p_gaps: Tensor,
    seeds: Tensor,
    positions: Tensor,
    *,
    library: ctypes.CDLL | None = None,
) -> Tensor:
    """Compute `sample`.

    Raises:
        ValueError: as for `paged_attention_cpp`.
    """
    _dtype_number("logits", logits)
    _check_rows("logits", logits, 1)
    _check_contiguous(temperature=temperature, top_k=top_k, top_p=top_p)
    _check_contiguous(min_p_gaps=min_p_gaps, seeds=seeds, positions=positions)
    num_rows, vocab_size = logits.shape
    out = torch.empty(num_rows, dtype=torch.int64)
    (library or default_library()).bm_sample(
        out.data_ptr(), logits.data_ptr(), temperature.data_ptr(), top_k.data_ptr(),
        top_p.data_ptr(), min_p_gaps.data_ptr(), seeds.data_ptr(), positions.data_ptr(), num_rows,
        vocab_size, logits.stride(0), torch.get_num_threads(),
    )  # fmt: skip
    return out


def add_lora_cpp(
    out: Tensor,
    x: Tensor,
    groups: Sequence[LoraRows],
    widths: Sequence[int],
    *,
    library: ctypes.CDLL | None = None,
) -> None:
    """Compute `add_lora`.

    Raises:
        ValueError: C code cannot read a tensor (its device, dtype or layout), or a row lies
            outside x.
    """
    dtype = _dtype_number("x", x)
    _check_contiguous(out=out, x=x)
    if out.dtype not in (x.dtype, torch.float32):
        raise ValueError(f"out must be {x.dtype} as x or float32, got {out.dtype}")
    for rows, pair in groups:
        _check_group(rows, pair, x)
    (library or default_library()).bm_add_lora(
        out.data_ptr(), x.data_ptr(), rows_table(groups), len(groups),
        (ctypes.c_int * len(widths))(*widths), len(widths), x.shape[1], out.shape[1], dtype,
        out.dtype != x.dtype, torch.get_num_threads(),
    )  # fmt: skip


def _dtype_number(name: str, tensor: Tensor) -> int:
    number = _DTYPES.get(tensor.dtype)
    if number is None or tensor.device.type != "cpu":
        raise ValueError(
            f"{name} is {tensor.dtype} on {tensor.device}; the C++ kernels take float32, bfloat16 "
            "and float16 on the CPU: use backend='reference'"
        )
    return number


def _check_rows(name: str, tensor: Tensor, num_contiguous: int) -> None:
    """Refuse gaps in the last `num_contiguous` dimensions; the rows may lie apart."""
    size = 1
    for dim in range(1, num_contiguous + 1):
        if tensor.shape[-dim] > 1 and tensor.stride(-dim) != size:
            raise ValueError(
                f"the last {num_contiguous} dimensions of {name} must be contiguous, its shape is "
                f"{list(tensor.shape)} and its strides {list(tensor.stride())}: call .contiguous()"
            )
        size *= tensor.shape[-dim]


def _check_contiguous(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if not tensor.is_contiguous() or tensor.device.type != "cpu":
            raise ValueError(
                f"{name} must be contiguous on the CPU, its strides are {list(tensor.stride())} "
                f"for {list(tensor.shape)} on {tensor.device}: call .contiguous()"
            )


def _refuse_invalid_slot(invalid: int, slot_mapping: Tensor, num_slots: int) -> None:
    """Raise ValueError for the index that the C code returned, unless it is negative."""
    if invalid >= 0:
        raise ValueError(
            f"slot_mapping[{invalid}] is {int(slot_mapping[invalid])}, the cache has {num_slots} "
            f"slots: a slot must be 0 to {num_slots - 1}, or -1 to skip a token"
        )


def _check_group(rows: Tensor, pair: LoraPair, x: Tensor) -> None:
    _check_contiguous(rows=rows, down=pair.down, up=pair.up)
    if rows.dtype != torch.int64 or not {pair.down.dtype, pair.up.dtype} == {x.dtype}:
        raise ValueError(
            f"rows must be int64 and the pair {x.dtype}, got {rows.dtype}, {pair.down.dtype} and "
            f"{pair.up.dtype}"
        )
    if len(rows):
        least, most = map(int, rows.aminmax())
        if least < 0 or most >= len(x):
            raise ValueError(f"rows {least} to {most} lie outside x {list(x.shape)}")
