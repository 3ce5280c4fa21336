"""The feed-forward network of a decoder layer: one gated network, or a mixture of experts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from batchmill.kernels.ops.clamped_swiglu import clamped_swiglu
from batchmill.kernels.ops.dispatch import Backend
from batchmill.kernels.ops.fp8_fused import gated_activation_fp8
from batchmill.kernels.ops.fp8_linear import takes_fp8_rows
from batchmill.kernels.ops.fp8_quantize import quantize_fp8
from batchmill.kernels.ops.gated_activation import gelu_and_mul, silu_and_mul
from batchmill.kernels.ops.linear import Linear
from batchmill.kernels.reference.expert_linear import Fp8Experts
from batchmill.kernels.reference.fp8_rows import Fp8Rows

from .expert_choice import Router
from .fp8_experts import Fp8GroupedExperts, has_fp8_experts
from .grouped_experts import GroupedExperts, can_group
from .model_config import ExpertsConfig, ModelConfig
from .weights import DenseWeights, ExpertWeights

#: Makes a matrix product from a `Matrix` [out, in] and a bias. Only factories for "int4" get one
#: that is not a tensor.
LinearFactory = Callable[[Any, Tensor | None], Linear]
#: Takes a norm's output, [num_tokens, hidden], quantized if the weights are fp8; returns it dense.
FeedForward = Callable[[Any], Tensor]
_ACTIVATIONS = {"silu": silu_and_mul, "gelu_tanh": gelu_and_mul}


def build_feed_forward(
    weights: DenseWeights | ExpertWeights,
    config: ModelConfig,
    linear: LinearFactory,
    backend: Backend,
    *,
    summed: LinearFactory | None = None,
    is_plain: bool = False,
    is_fp8: bool = False,
) -> FeedForward:
    """Build a layer's feed-forward network from its weights.

    A mixture's experts are multiplied in groups if they are fp8, or if `can_group` allows it.
    Otherwise they are multiplied one by one through `linear`, for which the host waits for the
    router.

    Args:
        weights: The layer's weights.
        config: The model's configuration.
        linear: Makes the matrix products.
        backend: The backend of our kernels.
        summed: Makes the product by `down`, of which each rank has a part; None is `linear`.
        is_plain: `linear` multiplies by the weights as they are, so that a grouped product may
            replace it.
        is_fp8: `linear` multiplies rows that are quantized already, unless it gets a dense weight
            that a checkpoint leaves out; experts are fp8 already, unless they are such.
    """
    if isinstance(weights, DenseWeights):
        gate_up = linear(weights.gate_up, weights.gate_up_bias)
        down = (summed or linear)(weights.down, weights.down_bias)
        in_fp8 = is_fp8 and takes_fp8_rows(down)
        return GatedNetwork(gate_up, down, _activation(config, backend, is_fp8=in_fp8))
    assert config.experts is not None, "a sparse layer's configuration has experts"
    shared = None
    if weights.shared is not None:
        network = build_feed_forward(weights.shared, config, linear, backend, is_fp8=is_fp8)
        shared = _SharedNetwork(network, weights.shared_gate)
    activate = _activation(config, backend, is_fp8=isinstance(weights.down, Fp8Experts))
    if has_fp8_experts(weights):
        return Fp8GroupedExperts(weights, config.experts, activate, backend, shared)
    if (is_plain or is_fp8) and can_group(weights.gate_up, backend):
        folded = None if config.activation == "clamped_swiglu" else config.activation
        return GroupedExperts(weights, config.experts, activate, backend, shared, folded=folded)
    none = [None] * config.experts.num_experts
    parts = zip(
        weights.of_experts(weights.gate_up),
        none if weights.gate_up_bias is None else weights.gate_up_bias,
        weights.of_experts(weights.down),
        none if weights.down_bias is None else weights.down_bias,
        strict=True,
    )
    networks = [
        GatedNetwork(linear(gate_up, gate_up_bias), linear(down, down_bias), activate)
        for gate_up, gate_up_bias, down, down_bias in parts
    ]
    return ExpertMixture(Router(weights, config.experts), networks, config.experts, shared)


class _SharedNetwork:
    """The network that computes every token beside the experts, and the gate of its output."""

    def __init__(self, network: FeedForward, gate: Tensor | None) -> None:
        """Keep a network, and its gate [1, hidden] if it has one."""
        self._network = network
        self._takes_fp8_rows = takes_fp8_rows(network)
        self._gate = gate

    def __call__(self, x: Tensor, quantized: Fp8Rows | None = None) -> Tensor:
        """Compute [num_tokens, hidden] from [num_tokens, hidden], which may be quantized too."""
        is_used = self._takes_fp8_rows and quantized is not None
        out = self._network(quantized if is_used else x)
        return out if self._gate is None else out * F.linear(x, self._gate).sigmoid()


class GatedNetwork:
    """down(activate(gate(x)) * up(x))."""

    def __init__(
        self, gate_up: Linear, down: Linear, activate_and_mul: Callable[[Tensor], Any]
    ) -> None:
        self._gate_up = gate_up
        self._down = down
        self._activate_and_mul = activate_and_mul
        #: Whether it takes rows that are quantized already.
        self.takes_fp8_rows = takes_fp8_rows(gate_up)

    def wrapped(
        self, wrap_gate_up: Callable[[Linear], Linear], wrap_down: Callable[[Linear], Linear]
    ) -> GatedNetwork:
        """Return the same network with its products wrapped."""
        return GatedNetwork(
            wrap_gate_up(self._gate_up), wrap_down(self._down), self._activate_and_mul
        )

    def __call__(self, x: Any) -> Tensor:
        """Compute [num_tokens, hidden] from [num_tokens, hidden]."""
        return self._down(self._activate_and_mul(self._gate_up(x)))


class ExpertMixture:
    """Sends each token through the experts that its router scores highest, and adds their outputs.

    Every expert computes all its tokens of the step in one call. The choice of experts depends on
    the token alone, so that requests do not influence each other.

    Source: Mixtral of Experts, Jiang et al. 2024, section 2.1.
    """

    def __init__(
        self,
        router: Router,
        networks: list[GatedNetwork],
        config: ExpertsConfig,
        shared: FeedForward | None = None,
    ) -> None:
        """Keep the experts.

        Args:
            router: Chooses the experts of a token.
            networks: The experts.
            config: How many experts compute a token.
            shared: Computes every token beside them; None if there is none.
        """
        self._router = router
        self._networks = networks
        self._config = config
        self._shared = shared

    def __call__(self, x: Tensor) -> Tensor:
        """Compute [num_tokens, hidden] from [num_tokens, hidden]."""
        num_chosen = self._config.num_experts_per_token
        shares, chosen = self._router.choose(x)
        chosen = chosen.flatten()
        order = chosen.argsort(stable=True)  # expert by expert, tokens in order
        counts = chosen.bincount(minlength=len(self._networks)).tolist()
        rows = torch.split(order // num_chosen, counts)
        shares_of = torch.split(shares.flatten()[order, None], counts)
        out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        for network, row, share in zip(self._networks, rows, shares_of, strict=True):
            if len(row):
                out.index_add_(0, row, network(x.index_select(0, row)) * share)
        return out.to(x.dtype) if self._shared is None else out.to(x.dtype) + self._shared(x)


def _activation(config: ModelConfig, backend: Backend, *, is_fp8: bool) -> Callable[[Tensor], Any]:
    name = config.activation
    if name == "clamped_swiglu":
        clamped = partial(clamped_swiglu, alpha=config.gate_alpha, limit=config.gate_limit)
        return (lambda x: quantize_fp8(clamped(x), backend=backend)) if is_fp8 else clamped
    if is_fp8:
        return partial(gated_activation_fp8, activation=name, backend=backend)
    return partial(_ACTIVATIONS[name], backend=backend)
