"""All layers of a Llama-family decoder in one C++ call; cpu/decoder.cpp says why."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import Structure, c_float, c_int, c_long, c_void_p
from dataclasses import dataclass

import torch
from torch import Tensor

from batchmill.kernels.cpu.library import default_library

from .int4_linear import Int4Linear, int4_buffers
from .int8_linear import Int8Linear
from .linear import PackedLinear
from .lora import LoraWeights

#: A weight in the C++ kernels' layout: in the activations' dtype, or in integers.
CppLinear = PackedLinear | Int8Linear | Int4Linear
_DTYPES = {torch.float32: 0, torch.bfloat16: 1}
#: Those of a layer that an adapter may change: qkv, output, gate_up and down.
_NUM_MATRICES = 4


@dataclass(frozen=True, slots=True)
class CppLayer:
    """One layer's weights; `gate_up` is gated, the norms are [hidden] or [head_dim]."""

    input_norm: Tensor
    qkv: CppLinear
    q_norm: Tensor | None
    k_norm: Tensor | None
    output: CppLinear
    post_attention_norm: Tensor
    gate_up: CppLinear
    down: CppLinear


@dataclass(frozen=True, slots=True)
class CppDecoderSizes:
    """Sizes that all layers share.

    Attributes:
        num_heads: Query heads.
        num_kv_heads: Key and value heads.
        head_dim: Elements of a head.
        rotary_dim: Elements of a head that are rotated.
        window: Keys that a query sees, or None for all.
        eps: Added to the mean square in every norm.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rotary_dim: int
    window: int | None
    eps: float


class _Format(Structure):
    """`BmFormat` of cpu/decoder.cpp."""

    _fields_ = [("kind", c_int), ("group", c_int), ("has_zeros", c_int)]


class _Layer(Structure):
    """`BmLayer` of cpu/decoder.cpp."""

    _fields_ = [
        *(
            (name, c_void_p)
            for name in (
                *("input_norm", "qkv", "q_norm", "k_norm", "output", "post_attention_norm"),
                *("gate_up", "down", "qkv_bias", "output_bias", "gate_up_bias", "down_bias"),
                *("k_cache", "v_cache"),
            )
        ),
        *((f"{name}_format", _Format) for name in ("qkv", "output", "gate_up", "down")),
    ]


class _Decoder(Structure):
    """`BmDecoder` of cpu/decoder.cpp."""

    _fields_ = [
        *(
            (name, c_int)
            for name in (
                *("num_layers", "hidden", "inner", "num_q_heads", "num_kv_heads", "head_dim"),
                *("half", "num_blocks", "block_size", "window", "dtype", "element_size"),
            )
        ),
        ("eps", c_float),
        ("scale", c_float),
    ]


class _Adapter(Structure):
    """`BmAdapter` of cpu/decoder.cpp."""

    _fields_ = [
        *((name, c_void_p) for name in ("pairs", "token_rows", "sample_rows")),
        *((name, c_int) for name in ("num_token_rows", "num_sample_rows")),
    ]


class _Step(Structure):
    """`BmStep` of cpu/decoder.cpp."""

    _fields_ = [
        *(
            (name, c_void_p)
            for name in (
                *("cos", "sin", "slots", "sample_rows", "block_tables", "cu_seqlens_q"),
                *("seq_lens", "residual", "x", "qkv", "attended", "gated", "quantized", "scales"),
            )
        ),
        *(
            (name, c_int)
            for name in ("num_tokens", "num_samples", "num_seqs", "max_blocks", "num_threads")
        ),
        ("table_stride", c_long),
        *(("adapters", c_void_p), ("gate_up", c_void_p), ("num_adapters", c_int)),
        ("phase_s", c_void_p),
    ]


@dataclass(frozen=True, slots=True)
class CppAdapter:
    """The rows of one LoRA adapter in a step, with a pair for qkv, output, gate_up and down.

    Attributes:
        weights: Its matrices, in the dtype of the activations.
        token_rows: [num_rows] int64.
        sample_rows: [num_rows] int64.
    """

    weights: LoraWeights
    token_rows: Tensor
    sample_rows: Tensor


class CppDecoder:
    """Owns packed layers that are bound to one KV cache, and runs steps over them.

    C code holds the addresses of layers and cache: neither may move while this object lives.

    Attributes:
        phase_s: For profiles, [3] float64: each run adds the seconds spent in matrix products
            (quantizing included), in attention, and in norms, rotation and cache
            writes. None disables the measurement.
    """

    def __init__(
        self,
        layers: Sequence[CppLayer],
        sizes: CppDecoderSizes,
        kv_layers: Sequence[tuple[Tensor, Tensor]],
        library: ctypes.CDLL | None = None,
    ) -> None:
        """Put the addresses of weights and caches into one table.

        Args:
            layers: The weights; this object keeps them.
            sizes: Sizes that all layers share.
            kv_layers: Each layer's key and value cache, contiguous [num_blocks, block_size,
                num_kv_heads, head_dim].
            library: The kernels to use; None loads those for this CPU.

        Raises:
            ValueError: layers and caches do not match.
        """
        self._library = library or default_library()
        self.phase_s: Tensor | None = None
        _check_caches(layers, sizes, kv_layers)
        k_cache = kv_layers[0][0]
        self._kept_alive = (tuple(layers), tuple(kv_layers))
        self._dtype, self._half = k_cache.dtype, sizes.rotary_dim // 2
        self._hidden, self._inner = layers[0].input_norm.shape[0], layers[0].down.in_features
        self._qkv_width, self._q_width = layers[0].qkv.out_features, layers[0].output.in_features
        linears = [each for layer in layers for each in _linears(layer)]
        self._quantizes = not all(isinstance(each, PackedLinear) for each in linears)
        self._table = (_Layer * len(layers))(*map(_layer_row, layers, kv_layers))
        self._decoder = _Decoder(
            num_layers=len(layers),
            hidden=self._hidden,
            inner=self._inner,
            num_q_heads=sizes.num_heads,
            num_kv_heads=sizes.num_kv_heads,
            head_dim=sizes.head_dim,
            half=self._half,
            num_blocks=k_cache.shape[0],
            block_size=k_cache.shape[1],
            window=sizes.window or 0,
            dtype=_DTYPES[self._dtype],
            element_size=k_cache.element_size(),
            eps=sizes.eps,
            scale=sizes.head_dim**-0.5,
        )

    def run_layers(
        self,
        residual: Tensor,
        cos: Tensor,
        sin: Tensor,
        slot_mapping: Tensor,
        block_tables: Tensor,
        cu_seqlens_q: Tensor,
        seq_lens: Tensor,
        sample_rows: Tensor,
        adapters: Sequence[CppAdapter] = (),
    ) -> tuple[Tensor, Tensor]:
        """Run every layer: write the step's keys and values, and compute the rows to sample from.

        Args:
            residual: [num_tokens, hidden], the embeddings; changed.
            cos: [num_tokens, rotary_dim / 2] float32.
            sin: As `cos`.
            slot_mapping: [num_tokens] int64.
            block_tables: [num_seqs, max_blocks] int32.
            cu_seqlens_q: [num_seqs + 1] int32.
            seq_lens: [num_seqs] int32.
            sample_rows: [num_samples] int64, ascending.
            adapters: What LoRA adapters add; no row is in two of them.

        Returns:
            The last layer's output and the residual that it is added to, both [num_samples,
            hidden]: the arguments of the final `add_rms_norm`.

        Raises:
            ValueError: a tensor does not have the dtype or size that C code expects, or a slot,
                length or block id lies outside the cache.
        """
        num_tokens, num_samples, num_seqs = len(residual), len(sample_rows), len(seq_lens)
        _check("residual", residual, (num_tokens, self._hidden), self._dtype)
        for name, angles in (("cos", cos), ("sin", sin)):
            _check(name, angles, (num_tokens, self._half), torch.float32)
        _check("slot_mapping", slot_mapping, (num_tokens,), torch.int64)
        _check("sample_rows", sample_rows, (num_samples,), torch.int64)
        _check_sequences(block_tables, cu_seqlens_q, seq_lens)
        widths = (self._hidden, self._qkv_width, self._q_width, self._inner)
        x, *others = (torch.empty(num_tokens, width, dtype=self._dtype) for width in widths)
        # Blocks of 4-bit products have a step each, and so need more room than rows of 8-bit ones.
        buffers = int4_buffers(num_tokens, max(widths)) if self._quantizes else (None, None)
        table = (_Adapter * len(adapters))(*(self._adapter_row(each) for each in adapters))
        gate_up = torch.empty(num_tokens, 2 * self._inner) if adapters else None
        pointers = (
            *(cos, sin, slot_mapping, sample_rows, block_tables, cu_seqlens_q, seq_lens),
            *(residual, x, *others, *buffers),
        )
        step = _Step(
            *map(_address, pointers),
            *(num_tokens, num_samples, num_seqs, block_tables.shape[1], torch.get_num_threads()),
            block_tables.stride(0),
            ctypes.addressof(table),
            _address(gate_up),
            len(adapters),
            self._phase_address(),
        )
        invalid = self._library.bm_decoder_layers(
            ctypes.byref(self._decoder), self._table, ctypes.byref(step)
        )
        if invalid:
            raise self._index_error(invalid, num_tokens)
        return x[:num_samples], residual[:num_samples]

    def _adapter_row(self, adapter: CppAdapter) -> _Adapter:
        token_rows, sample_rows = adapter.token_rows, adapter.sample_rows
        _check("token_rows", token_rows, (len(token_rows),), torch.int64)
        _check("sample_rows", sample_rows, (len(sample_rows),), torch.int64)
        table = adapter.weights.table
        if len(table) != _NUM_MATRICES * len(self._table) or adapter.weights.dtype != self._dtype:
            raise ValueError(
                f"an adapter must have {_NUM_MATRICES} pairs of {self._dtype} for each of "
                f"{len(self._table)} layers, got {len(table)} of {adapter.weights.dtype}"
            )
        return _Adapter(
            ctypes.addressof(table),
            *(token_rows.data_ptr(), sample_rows.data_ptr()),
            *(len(token_rows), len(sample_rows)),
        )

    def _index_error(self, invalid: int, num_tokens: int) -> ValueError:
        return ValueError(
            f"{_INVALID[invalid]} lies outside the cache of {self._decoder.num_blocks} blocks "
            f"of {self._decoder.block_size} or the batch of {num_tokens} tokens"
        )

    def _phase_address(self) -> int | None:
        if self.phase_s is not None:
            _check("phase_s", self.phase_s, (3,), torch.float64)
        return _address(self.phase_s)


#: Meaning of the error numbers of bm_decoder_layers.
_INVALID = {
    1: "an entry of slot_mapping",
    2: "an entry of cu_seqlens_q, seq_lens or block_tables",
    3: "an entry of sample_rows",
    4: "a row of an adapter",
}


def _layer_row(layer: CppLayer, caches: tuple[Tensor, Tensor]) -> _Layer:
    linears = _linears(layer)
    qkv, output, gate_up, down = (linear.packed.data_ptr() for linear in linears)
    return _Layer(
        layer.input_norm.data_ptr(),
        qkv,
        _address(layer.q_norm),
        _address(layer.k_norm),
        output,
        layer.post_attention_norm.data_ptr(),
        gate_up,
        down,
        *(_address(linear.bias) for linear in linears),
        *(cache.data_ptr() for cache in caches),
        *(_Format(*linear.cpp_format) for linear in linears),
    )


def _linears(layer: CppLayer) -> tuple[CppLinear, CppLinear, CppLinear, CppLinear]:
    return layer.qkv, layer.output, layer.gate_up, layer.down


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _check(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if tensor.shape != shape or tensor.dtype != dtype or not tensor.is_contiguous():
        raise ValueError(
            f"{name} must be {list(shape)} {dtype} and contiguous, got {list(tensor.shape)} "
            f"{tensor.dtype} with strides {list(tensor.stride())}"
        )


def _check_sequences(block_tables: Tensor, cu_seqlens_q: Tensor, seq_lens: Tensor) -> None:
    num_seqs = len(seq_lens)
    _check("block_tables", block_tables, (num_seqs, block_tables.shape[-1]), torch.int32)
    _check("cu_seqlens_q", cu_seqlens_q, (num_seqs + 1,), torch.int32)
    _check("seq_lens", seq_lens, (num_seqs,), torch.int32)


def _check_caches(
    layers: Sequence[CppLayer], sizes: CppDecoderSizes, kv_layers: Sequence[tuple[Tensor, Tensor]]
) -> None:
    if len(layers) != len(kv_layers) or not layers:
        raise ValueError(
            f"got {len(layers)} layers and {len(kv_layers)} caches: pass one per layer"
        )
    dtype = layers[0].input_norm.dtype
    if dtype not in _DTYPES:
        raise ValueError(f"the C++ decoder computes in float32 or bfloat16, not in {dtype}")
    shape = (*kv_layers[0][0].shape[:2], sizes.num_kv_heads, sizes.head_dim)
    for caches in kv_layers:
        for cache in caches:
            _check("each cache", cache, shape, dtype)
