"""Matrices that become fp8 while a checkpoint is read, part by part."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from batchmill.kernels.ops.fp8_weight import Fp8Weight, join_fp8_rows, quantize_fp8_weight
from batchmill.kernels.reference.expert_linear import Fp8Experts

from .weights import (
    DecoderWeights,
    DenseWeights,
    ExpertWeights,
    LayerWeights,
    Matrix,
    StackedMatrices,
    allocated,
)


@dataclass(slots=True)
class _Parts:
    """What was read of one matrix, by its first row."""

    num_rows: int
    num_inputs: int
    by_row: dict[int, Tensor | Fp8Weight] = field(default_factory=dict)
    joined: Matrix | None = None


class Fp8Matrices:
    """Takes the parts of the layers' matrices, and quantizes each at once on its device.

    So one part at a time exists in another format, in files or in memory. The places that the
    parts belong to are not written, so that they take no memory.
    """

    def __init__(self, weights: DecoderWeights, device: torch.device | str) -> None:
        """Find the matrices.

        Args:
            weights: Allocated by `allocate_weights`.
            device: Of the quantized matrices.
        """
        self._device = torch.device(device)
        self._parts = {
            _address(tensor): _Parts(tensor.numel() // tensor.shape[-1], tensor.shape[-1])
            for layer in weights.layers
            for tensor in _allocations(layer)
        }

    def put(self, place: Tensor, value: Tensor | Fp8Weight, *, keeps_dense: bool) -> bool:
        """Take a part of a matrix, if its place belongs to one.

        A matrix of which a part stays dense stays so, and with it those of all experts.

        Args:
            place: Whole rows of a matrix or of all experts' matrices, in its dtype; its dimensions
                may be in another order.
            value: The same shape; it need not be valid later.
            keeps_dense: Do not quantize it.
        """
        parts = self._parts.get(_address(place))
        if parts is None:
            return False
        own: Tensor | Fp8Weight
        if isinstance(value, Fp8Weight):
            own = value.to(self._device)
        else:
            strided = torch.empty_strided(
                place.shape, place.stride(), dtype=place.dtype, device=self._device
            ).copy_(value)
            rows = strided.numel() // parts.num_inputs
            own = strided.as_strided((rows, parts.num_inputs), (parts.num_inputs, 1))
            if not keeps_dense:
                own = quantize_fp8_weight(own)
        parts.by_row[place.storage_offset() // parts.num_inputs] = own
        if sum(part.shape[0] for part in parts.by_row.values()) == parts.num_rows:
            parts.joined = _join([part for _, part in sorted(parts.by_row.items())])
            parts.by_row.clear()
        return True

    def put_into(self, weights: DecoderWeights) -> DecoderWeights:
        """Return weights with these matrices, of which every part has been read."""
        layers = [self._put_into_layer(layer) for layer in weights.layers]
        return replace(weights, layers=layers, has_fp8=True)

    def _put_into_layer(self, layer: LayerWeights) -> LayerWeights:
        network = layer.feed_forward
        changed: DenseWeights | ExpertWeights
        if isinstance(network, DenseWeights):
            changed = self._put_into_network(network)
        else:
            shared = network.shared
            changed = replace(
                network,
                gate_up=self._take_experts(network.gate_up),
                down=self._take_experts(network.down),
                shared=None if shared is None else self._put_into_network(shared),
            )
        return replace(
            layer,
            qkv=self._take(layer.qkv),
            output=self._take(layer.output),
            feed_forward=changed,
        )

    def _put_into_network(self, network: DenseWeights) -> DenseWeights:
        return replace(network, gate_up=self._take(network.gate_up), down=self._take(network.down))

    def _take_experts(self, matrices: StackedMatrices) -> StackedMatrices:
        place = _stacked(matrices)
        taken = self._take(place)
        if isinstance(taken, Fp8Weight):
            return Fp8Experts(taken.values.view(place.shape), taken.scales.view(place.shape[:2]))
        return allocated(taken).view(place.shape)

    def _take(self, matrix: Matrix) -> Matrix:
        joined = self._parts.pop(_address(matrix)).joined
        assert joined is not None, "the loader has checked that no weight is missing"
        return joined


def _join(parts: list[Tensor | Fp8Weight]) -> Matrix:
    quantized = [part for part in parts if isinstance(part, Fp8Weight)]
    if len(quantized) == len(parts):
        return join_fp8_rows(quantized)
    return torch.cat([part.dense() if isinstance(part, Fp8Weight) else part for part in parts])


def _allocations(layer: LayerWeights) -> list[Tensor]:
    """Return the layer's matrices; those of all experts are in one tensor."""
    network = layer.feed_forward
    if isinstance(network, DenseWeights):
        of_network = [allocated(each) for each in network.matrices]
    else:
        beside = [] if network.shared is None else network.shared.matrices
        of_network = [_stacked(network.gate_up), _stacked(network.down), *map(allocated, beside)]
    return [allocated(layer.qkv), allocated(layer.output), *of_network]


def _stacked(matrices: StackedMatrices) -> Tensor:
    assert isinstance(matrices, Tensor), "allocate_weights has stacked them"
    return matrices


def _address(matrix: Matrix) -> int:
    return allocated(matrix).untyped_storage().data_ptr()
