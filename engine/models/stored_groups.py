"""Keeps the 4-bit integers of a checkpoint, so that its weights need not be unpacked."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from batchmill.kernels.ops.grouped_weight import GroupedWeight, join_rows

from .weights import DecoderWeights, DenseWeights, ExpertWeights, LayerWeights, Matrix, allocated


class StoredGroups:
    """Weights that were read as integers, with the place in a fused matrix that each belongs to.

    The places are not written, so that they take no memory.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, GroupedWeight]] = []

    def keep(self, place: Tensor, value: GroupedWeight) -> None:
        """Remember the integers of a place, which is [out, in] and contiguous."""
        self._parts.append((place, value))

    def put_into(self, weights: DecoderWeights) -> DecoderWeights:
        """Return weights with integers for the matrices whose parts were all kept.

        Other kept weights are unpacked into their places: an embedding, a router, and parts of a
        matrix of which another part is stored in another way.
        """
        layers = [self._put_into_layer(layer) for layer in weights.layers]
        head: Matrix = weights.head
        if weights.head is not weights.embedding:
            head = self._matrix(weights.head)
        for place, value in self._parts:
            place.copy_(value.dense())
        self._parts.clear()
        return replace(weights, layers=layers, head=head, has_stored_groups=True)

    def _put_into_layer(self, layer: LayerWeights) -> LayerWeights:
        network = layer.feed_forward
        changed: DenseWeights | ExpertWeights
        if isinstance(network, DenseWeights):
            changed = self._dense(network)
        else:
            changed = replace(
                network,
                gate_up=[self._matrix(each) for each in network.of_experts(network.gate_up)],
                down=[self._matrix(each) for each in network.of_experts(network.down)],
                shared=None if network.shared is None else self._dense(network.shared),
            )
        return replace(
            layer,
            qkv=self._matrix(layer.qkv),
            output=self._matrix(layer.output),
            feed_forward=changed,
        )

    def _dense(self, network: DenseWeights) -> DenseWeights:
        return replace(
            network, gate_up=self._matrix(network.gate_up), down=self._matrix(network.down)
        )

    def _matrix(self, fused: Matrix) -> Matrix:
        """Return the integers of a matrix, or itself if a part of it was not kept."""
        fused = allocated(fused)
        start, end = fused.data_ptr(), fused.data_ptr() + fused.nbytes
        parts = [part for part in self._parts if start <= part[0].data_ptr() < end]
        if sum(len(place) for place, _ in parts) < len(fused):
            return fused
        parts.sort(key=lambda part: part[0].data_ptr())
        joined = join_rows([value for _, value in parts])
        if joined is None:
            return fused
        self._parts = [part for part in self._parts if not start <= part[0].data_ptr() < end]
        return joined
