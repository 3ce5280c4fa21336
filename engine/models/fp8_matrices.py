"""Matrices that become fp8 while a checkpoint is read, part by part."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from batchmill.kernels.ops.fp8_weight import Fp8Weight, join_fp8_rows, quantize_fp8_weight

from .weights import DecoderWeights, DenseWeights, LayerWeights, Matrix, allocated


@dataclass(slots=True)
class _Parts:
    """What was read of one matrix, by its first row."""

    num_rows: int
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
            _address(matrix): _Parts(len(allocated(matrix)))
            for layer in weights.layers
            for matrix in layer.matrices
        }

    def put(self, place: Tensor, value: Tensor | Fp8Weight, *, keeps_dense: bool) -> bool:
        """Take a part of a matrix, if its place belongs to one.

        A matrix of which a part stays dense stays so.

        Args:
            place: Whole rows of a matrix, in its dtype.
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
            own = torch.empty(value.shape, dtype=place.dtype, device=self._device).copy_(value)
            if not keeps_dense:
                own = quantize_fp8_weight(own)
        parts.by_row[place.storage_offset() // place.shape[1]] = own
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
        assert isinstance(network, DenseWeights), "fp8 computes no mixtures"
        return replace(
            layer,
            qkv=self._take(layer.qkv),
            output=self._take(layer.output),
            feed_forward=replace(
                network, gate_up=self._take(network.gate_up), down=self._take(network.down)
            ),
        )

    def _take(self, matrix: Matrix) -> Matrix:
        joined = self._parts.pop(_address(matrix)).joined
        assert joined is not None, "the loader has checked that no weight is missing"
        return joined


def _join(parts: list[Tensor | Fp8Weight]) -> Matrix:
    quantized = [part for part in parts if isinstance(part, Fp8Weight)]
    if len(quantized) == len(parts):
        return join_fp8_rows(quantized)
    return torch.cat([part.dense() if isinstance(part, Fp8Weight) else part for part in parts])


def _address(matrix: Matrix) -> int:
    return allocated(matrix).untyped_storage().data_ptr()
