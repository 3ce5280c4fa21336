"""The weight tensors of a decoder, their shapes, and their allocation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from batchmill.kernels.ops.fp8_weight import Fp8Weight
from batchmill.kernels.ops.grouped_weight import GroupedWeight
from batchmill.kernels.reference.expert_linear import Fp8Experts

from .model_config import ModelConfig

#: A matrix [out, in]: dense, as integers of 4 bits that a checkpoint holds, or in fp8.
Matrix = Tensor | GroupedWeight | Fp8Weight
#: The matrices of all experts, [num_experts, out, in]: together, or a list if some are stored as
#: integers.
StackedMatrices = Tensor | Fp8Experts | list[Matrix]


class _Allocate(Protocol):
    def __call__(self, *shape: int) -> Tensor: ...


class _AllocateNorm(Protocol):
    def __call__(self, size: int) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class DenseWeights:
    """A gated feed-forward network.

    Attributes:
        gate_up: [2 * intermediate, hidden]: gate, then up.
        gate_up_bias: Its bias, or None.
        down: [hidden, intermediate].
        down_bias: Its bias, or None.
    """

    gate_up: Matrix
    gate_up_bias: Tensor | None
    down: Matrix
    down_bias: Tensor | None

    @property
    def matrices(self) -> list[Matrix]:
        """The matrices that activations are multiplied by, [out, in] each."""
        return [self.gate_up, self.down]


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    """A mixture of gated feed-forward networks.

    Attributes:
        router: [num_experts, hidden], in float32 if the model keeps it so.
        gate_up: [num_experts, 2 * intermediate, hidden]: gate, then up.
        down: [num_experts, hidden, intermediate].
        router_bias: [num_experts], or None.
        gate_up_bias: [num_experts, 2 * intermediate], or None.
        down_bias: [num_experts, hidden], or None.
        correction: [num_experts] float32, added to scores for the choice of experts, or None.
        shared: The network that computes every token beside the experts, or None.
        shared_gate: [1, hidden], the gate of that network's output, or None.
    """

    router: Tensor
    gate_up: StackedMatrices
    down: StackedMatrices
    router_bias: Tensor | None = None
    gate_up_bias: Tensor | None = None
    down_bias: Tensor | None = None
    correction: Tensor | None = None
    shared: DenseWeights | None = None
    shared_gate: Tensor | None = None

    @property
    def matrices(self) -> list[Matrix]:
        """The matrices that activations are multiplied by, [out, in] each, without the router."""
        shared = [] if self.shared is None else self.shared.matrices
        return [*self.of_experts(self.gate_up), *self.of_experts(self.down), *shared]

    @staticmethod
    def of_experts(stacked: StackedMatrices) -> list[Matrix]:
        """Return `gate_up` or `down` expert by expert; those in fp8 become dense in float32."""
        if isinstance(stacked, Fp8Experts):
            pairs = zip(stacked.values, stacked.scales, strict=True)
            return [Fp8Weight(values, scales[:, None], torch.float32) for values, scales in pairs]
        return list(stacked)


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer; matrices are [out, in] as in `torch.nn.functional.linear`.

    Attributes:
        input_norm: [hidden], before attention, or None.
        qkv: [(num_heads + 2 * num_kv_heads) * head_dim, hidden]: queries, keys, values.
        qkv_bias: Its bias, or None.
        q_norm: [head_dim], or [num_heads * head_dim] if it spans heads; None if queries are not
            normalised.
        k_norm: As `q_norm`, for keys.
        output: [hidden, num_heads * head_dim].
        output_bias: Its bias, or None.
        attention_output_norm: [hidden], on the output of attention, or None.
        post_attention_norm: [hidden], before the feed-forward network, or None.
        feed_forward: The feed-forward network.
        feed_forward_output_norm: [hidden], on the output of that network, or None.
        sinks: [num_heads] float32, each head's score for nothing, or None.
    """

    input_norm: Tensor | None
    qkv: Matrix
    qkv_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    output: Matrix
    output_bias: Tensor | None
    attention_output_norm: Tensor | None
    post_attention_norm: Tensor | None
    feed_forward: DenseWeights | ExpertWeights
    feed_forward_output_norm: Tensor | None
    sinks: Tensor | None = None

    @property
    def matrices(self) -> list[Matrix]:
        """The matrices that activations are multiplied by, [out, in] each."""
        return [self.qkv, self.output, *self.feed_forward.matrices]

    def to(self, device: torch.device) -> LayerWeights:
        """Return the layer on a device; tensors that are there already are not copied."""
        network = self.feed_forward
        moved = _on_device(network, (field.name for field in fields(network)), device)
        if isinstance(network, ExpertWeights) and network.shared is not None:
            shared = network.shared
            on_device = _on_device(shared, (field.name for field in fields(shared)), device)
            network = replace(network, shared=replace(shared, **on_device))
        network = replace(network, **moved)
        moved = _on_device(self, (field.name for field in fields(self)), device)
        return replace(self, feed_forward=network, **moved)

    @property
    def norms(self) -> list[Tensor]:
        """The norms that this layer has."""
        norms = (
            self.input_norm,
            self.q_norm,
            self.k_norm,
            self.attention_output_norm,
            self.post_attention_norm,
            self.feed_forward_output_norm,
        )
        return [norm for norm in norms if norm is not None]


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """All weights of a decoder.

    Attributes:
        embedding: [vocab_size, hidden].
        layers: One entry per layer. `DecoderModel` takes them out one by one, so that only one
            exists twice while they are repacked.
        final_norm: [hidden].
        head: [vocab_size, hidden]; the embedding itself if they are tied, or if there is none.
        score: [num_labels, hidden], the classification head; None if there is none.
        has_stored_groups: Whether matrices that are stored as integers of 4 bits have been kept so.
        has_fp8: Whether matrices are in fp8 already; those that are not stay dense.
    """

    embedding: Tensor
    layers: list[LayerWeights]
    final_norm: Tensor
    head: Matrix
    score: Tensor | None = None
    has_stored_groups: bool = False
    has_fp8: bool = False


def _on_device(owner: object, names: Iterable[str], device: torch.device) -> dict[str, Any]:
    """Return an owner's fields that are tensors, on a device."""
    values = {name: getattr(owner, name) for name in names}
    return {name: each.to(device) for name, each in values.items() if isinstance(each, Tensor)}


def allocate_weights(
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device | str,
    *,
    layer_device: torch.device | str | None = None,
) -> DecoderWeights:
    """Allocate weights with the shapes of a model and arbitrary contents.

    Args:
        config: Sizes and features.
        dtype: Number format, except that offset norms are float32.
        device: Device of the weights.
        layer_device: Device of the layers; None is `device`.
    """
    layers_on = device if layer_device is None else layer_device
    # 1 + w has more digits than w, and the product should be rounded only once.
    norm_dtype = torch.float32 if config.norm_offset else dtype

    def empty(*shape: int, on: torch.device | str = layers_on) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=on)

    def norm(size: int, on: torch.device | str = layers_on) -> Tensor:
        return torch.empty(size, dtype=norm_dtype, device=on)

    embedding = empty(config.vocab_size, config.hidden_size, on=device)
    num_labels = config.num_labels
    return DecoderWeights(
        embedding=embedding,
        layers=[_allocate_layer(config, layer.sparse, empty, norm) for layer in config.layers],
        final_norm=norm(config.hidden_size, on=device),
        head=empty(config.vocab_size, config.hidden_size, on=device)
        if config.has_own_head
        else embedding,
        score=empty(num_labels, config.hidden_size, on=device) if num_labels else None,
    )


def weights_bytes(
    config: ModelConfig, dtype: torch.dtype, *, matrix_bits: int | None = None
) -> int:
    """Return the bytes of all weights of a model.

    Args:
        config: Sizes and features.
        dtype: Number format.
        matrix_bits: Bits of each number of the layers' matrices; None is `dtype`.
    """
    weights = allocate_weights(config, dtype, "meta")
    tensors: list[Tensor] = [weights.embedding, weights.final_norm]
    if config.has_own_head:
        tensors.append(allocated(weights.head))
    for layer in weights.layers:
        network = layer.feed_forward
        shared = network.shared if isinstance(network, ExpertWeights) else None
        for owner in (layer, network, *([] if shared is None else [shared])):
            parts = (getattr(owner, field.name) for field in fields(owner))
            tensors += [part for part in parts if isinstance(part, Tensor)]
    total = sum(tensor.nbytes for tensor in tensors)
    if matrix_bits is not None:
        matrices = [allocated(matrix) for layer in weights.layers for matrix in layer.matrices]
        total -= sum(each.nbytes - each.numel() * matrix_bits // 8 for each in matrices)
    return total


def allocated(matrix: Matrix) -> Tensor:
    """Return a matrix that is dense, as `allocate_weights` has made it."""
    assert isinstance(matrix, Tensor), "this matrix is quantized"
    return matrix


def _allocate_layer(
    config: ModelConfig, sparse: bool, empty: _Allocate, norm: _AllocateNorm
) -> LayerWeights:
    hidden = config.hidden_size
    qkv_size = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    q_norm_heads, k_norm_heads = 1, 1
    if config.qk_norm_spans_heads:
        q_norm_heads, k_norm_heads = config.num_heads, config.num_kv_heads
    return LayerWeights(
        input_norm=norm(hidden) if config.input_norms else None,
        qkv=empty(qkv_size, hidden),
        qkv_bias=empty(qkv_size) if config.qkv_bias else None,
        q_norm=norm(q_norm_heads * config.head_dim) if config.qk_norm else None,
        k_norm=norm(k_norm_heads * config.head_dim) if config.qk_norm else None,
        output=empty(hidden, config.num_heads * config.head_dim),
        output_bias=empty(hidden) if config.output_bias else None,
        attention_output_norm=norm(hidden) if config.output_norms else None,
        post_attention_norm=norm(hidden) if config.input_norms else None,
        feed_forward=_allocate_experts(config, empty)
        if sparse
        else _allocate_dense(config, config.intermediate_size, empty),
        feed_forward_output_norm=norm(hidden) if config.output_norms else None,
        sinks=empty(config.num_heads).float() if config.attention_sinks else None,
    )


def _allocate_dense(config: ModelConfig, inner: int, empty: _Allocate) -> DenseWeights:
    hidden = config.hidden_size
    return DenseWeights(
        gate_up=empty(2 * inner, hidden),
        gate_up_bias=empty(2 * inner) if config.mlp_bias else None,
        down=empty(hidden, inner),
        down_bias=empty(hidden) if config.mlp_bias else None,
    )


def _allocate_experts(config: ModelConfig, empty: _Allocate) -> ExpertWeights:
    experts, hidden = config.experts, config.hidden_size
    assert experts is not None, "a sparse layer's configuration has experts"
    router = empty(experts.num_experts, hidden)
    return ExpertWeights(
        router=router.float() if experts.keeps_router_float32 else router,
        gate_up=empty(experts.num_experts, 2 * experts.intermediate_size, hidden),
        down=empty(experts.num_experts, hidden, experts.intermediate_size),
        router_bias=empty(experts.num_experts) if experts.biases else None,
        gate_up_bias=empty(experts.num_experts, 2 * experts.intermediate_size)
        if experts.biases
        else None,
        down_bias=empty(experts.num_experts, hidden) if experts.biases else None,
        correction=empty(experts.num_experts).float() if experts.has_correction else None,
        shared=_allocate_dense(config, experts.shared_size, empty) if experts.shared_size else None,
        shared_gate=empty(1, hidden) if experts.gates_shared else None,
    )
