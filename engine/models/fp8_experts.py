"""Mixtures of experts in fp8: grouped products of weights and activations in eight-bit floats.

    x -> router                              in the activations' dtype
    x -> quantize -> gate and up -> activate and quantize -> down -> sum

As with other mixtures whose products are grouped, nothing is read on the host.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from torch import Tensor

from batchmill.kernels.ops.dispatch import Backend
from batchmill.kernels.ops.expert_linear import multiply_experts, quantize_experts
from batchmill.kernels.ops.experts import combine_experts
from batchmill.kernels.ops.fp8_quantize import quantize_fp8
from batchmill.kernels.reference.expert_linear import Fp8Experts
from batchmill.kernels.reference.fp8_rows import Fp8Rows

from .expert_choice import Router
from .model_config import ExpertsConfig
from .weights import ExpertWeights, LayerWeights


class SharedNetwork(Protocol):
    """Computes every token beside the experts."""

    def __call__(self, x: Tensor, quantized: Fp8Rows | None = None) -> Tensor:
        """Compute [num_tokens, hidden] from [num_tokens, hidden], which may be quantized too."""


class Fp8GroupedExperts:
    """A mixture whose experts have fp8 weights, with a scale per column of each expert's output.

    Each row of activations has a scale of its own, so that no row depends on another. The router
    takes the rows before they are quantized: a norm must not quantize its result for a mixture. If
    a checkpoint leaves one of the two products in its dtype, that product's rows stay in it too.
    """

    def __init__(
        self,
        weights: ExpertWeights,
        config: ExpertsConfig,
        activate_and_mul: Callable[[Tensor], Any],
        backend: Backend = "auto",
        shared: SharedNetwork | None = None,
    ) -> None:
        """Keep the experts.

        Args:
            weights: The router and all experts, of which `has_fp8_experts` is true.
            config: How many experts compute a token, and how they are weighted.
            activate_and_mul: Applied between an expert's two products; quantizes its result if
                `down` is fp8.
            backend: The backend of our kernels.
            shared: Computes every token beside the experts; None if there is none.
        """
        assert isinstance(weights.gate_up, Tensor | Fp8Experts), "fp8 keeps experts stacked"
        assert isinstance(weights.down, Tensor | Fp8Experts), "fp8 keeps experts stacked"
        self._gate_up, self._down = weights.gate_up, weights.down
        self._gate_up_bias, self._down_bias = weights.gate_up_bias, weights.down_bias
        self._router = Router(weights, config)
        self._activate_and_mul = activate_and_mul
        self._backend: Backend = backend
        self._shared = shared

    def __call__(self, x: Tensor) -> Tensor:
        """Compute [num_tokens, hidden] from [num_tokens, hidden], in its dtype."""
        backend = self._backend
        routing = self._router.route(x, backend)
        is_quantized = isinstance(self._gate_up, Fp8Experts)
        quantized = quantize_fp8(x, backend=backend) if is_quantized else None
        wide = multiply_experts(
            *(x if quantized is None else quantized, self._gate_up, routing.ends),
            rows=routing.rows,
            bias=self._gate_up_bias,
            out_dtype=x.dtype,
            backend=backend,
        )
        computed = multiply_experts(
            *(self._activate_and_mul(wide), self._down, routing.ends),
            bias=self._down_bias,
            out_dtype=x.dtype,
            backend=backend,
        )
        out = combine_experts(computed, routing, backend=backend)
        return out if self._shared is None else out + self._shared(x, quantized)


def has_fp8_experts(weights: ExpertWeights) -> bool:
    """Return whether at least one of the experts' two products is by fp8 weights."""
    return isinstance(weights.gate_up, Fp8Experts) or isinstance(weights.down, Fp8Experts)


def with_fp8_experts(layer: LayerWeights) -> LayerWeights:
    """Return a layer with its experts quantized, if it has any that are dense."""
    network = layer.feed_forward
    if not isinstance(network, ExpertWeights):
        return layer
    gate_up, down = network.gate_up, network.down
    assert isinstance(gate_up, Tensor), "no other format is quantized to fp8"
    assert isinstance(down, Tensor), "it is stored as gate and up are"
    quantized = replace(network, gate_up=quantize_experts(gate_up), down=quantize_experts(down))
    return replace(layer, feed_forward=quantized)
