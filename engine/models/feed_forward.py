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
from batchmill.kernels.ops.experts import combine_experts
from batchmill.kernels.ops.fp8_fused import gated_activation_fp8
from batchmill.kernels.ops.fp8_linear import takes_fp8_rows
from batchmill.kernels.ops.gated_activation import gelu_and_mul, silu_and_mul
from batchmill.kernels.ops.linear import Linear
from batchmill.kernels.reference.experts import Routing

from .expert_choice import Router
from .model_config import ExpertsConfig, ModelConfig
from .weights import DenseWeights, ExpertWeights, Matrix

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

    A mixture's experts are multiplied in groups if `can_group` allows it. Otherwise they are
    multiplied one by one through `linear`, for which the host waits for the router.

    Args:
        weights: The layer's weights.
        config: The model's configuration.
        linear: Makes the matrix products.
        backend: The backend of our kernels.
        summed: Makes the product by `down`, of which each rank has a part; None is `linear`.
        is_plain: `linear` multiplies by the weights as they are, so that a grouped product may
            replace it.
        is_fp8: `linear` multiplies rows that are quantized already.
    """
    if isinstance(weights, DenseWeights):
        gate_up = linear(weights.gate_up, weights.gate_up_bias)
        down = (summed or linear)(weights.down, weights.down_bias)
        in_fp8 = is_fp8 and takes_fp8_rows(down)
        return GatedNetwork(gate_up, down, _activation(config, backend, is_fp8=in_fp8))
    activate = _activation(config, backend, is_fp8=is_fp8)
    assert config.experts is not None, "a sparse layer's configuration has experts"
    if is_plain and can_group(weights.gate_up, backend):
        shared = _shared_network(weights, linear, activate)
        return GroupedExperts(weights, config.experts, activate, backend, shared)
    shared = _shared_network(weights, linear, activate)
    none = [None] * config.experts.num_experts
    parts = zip(
        weights.gate_up,
        none if weights.gate_up_bias is None else weights.gate_up_bias,
        weights.down,
        none if weights.down_bias is None else weights.down_bias,
        strict=True,
    )
    networks = [
        GatedNetwork(linear(gate_up, gate_up_bias), linear(down, down_bias), activate)
        for gate_up, gate_up_bias, down, down_bias in parts
    ]
    return ExpertMixture(Router(weights, config.experts), networks, config.experts, shared)


def _shared_network(
    weights: ExpertWeights, linear: LinearFactory, activate: Callable[[Tensor], Any]
) -> FeedForward | None:
    """Return the network that computes every token beside the experts; None if there is none."""
    if weights.shared is None:
        return None
    network = GatedNetwork(
        linear(weights.shared.gate_up, weights.shared.gate_up_bias),
        linear(weights.shared.down, weights.shared.down_bias),
        activate,
    )
    gate = weights.shared_gate
    if gate is None:
        return network
    return lambda x: network(x) * F.linear(x, gate).sigmoid()


def can_group(weight: Tensor | list[Matrix], backend: Backend) -> bool:
    """Return whether torch multiplies by all experts in one call that reads nothing on the host.

    On GPUs before compute capability 9.0, and in other dtypes than bfloat16, torch loops over the
    experts on the host. `backend="triton"` skips that check, for tests without a GPU.
    """
    if _grouped_product() is None or not isinstance(weight, Tensor):
        return False
    if backend == "triton":
        return True
    if backend != "auto" or weight.device.type != "cuda" or weight.dtype != torch.bfloat16:
        return False
    return torch.cuda.get_device_capability(weight.device) >= (9, 0)


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


class GroupedExperts:
    """The same mixture in two grouped matrix products, which read no length on the host.

    A step with it can therefore be captured in a CUDA graph. Results are added in the order of the
    experts of a token, without atomics: the same bits every time. With Triton a mixture launches
    eight kernels: the router's product, two for the routing, a gather, two grouped products, the
    activation between them, and the sum.
    """

    def __init__(
        self,
        weights: ExpertWeights,
        config: ExpertsConfig,
        activate_and_mul: Callable[[Tensor], Tensor],
        backend: Backend = "auto",
        shared: FeedForward | None = None,
    ) -> None:
        """Keep the experts.

        Args:
            weights: The router and all experts.
            config: How many experts compute a token, and how they are weighted.
            activate_and_mul: Applied between an expert's two products.
            backend: The backend of the routing and the sum.
            shared: Computes every token beside the experts; None if there is none.
        """
        self._backend: Backend = backend
        self._router = Router(weights, config)
        self._shared = shared
        self._weights = weights
        self._activate_and_mul = activate_and_mul

    def __call__(self, x: Tensor) -> Tensor:
        """Compute [num_tokens, hidden] from [num_tokens, hidden]."""
        multiply = _grouped_product()
        assert multiply is not None, "can_group has checked this"
        gate_up, down = self._weights.gate_up, self._weights.down
        assert isinstance(gate_up, Tensor), "can_group has checked this"
        assert isinstance(down, Tensor), "it is stored as gate and up are"
        routing = self._router.route(x, self._backend)
        rows = x.index_select(0, routing.rows)
        wide = multiply(rows, gate_up.transpose(1, 2), offs=routing.ends)
        hidden = self._activate_and_mul(self._add_bias(wide, self._weights.gate_up_bias, routing))
        computed = multiply(hidden, down.transpose(1, 2), offs=routing.ends)
        computed = self._add_bias(computed, self._weights.down_bias, routing)
        out = combine_experts(computed, routing, backend=self._backend)
        return out if self._shared is None else out + self._shared(x)

    @staticmethod
    def _add_bias(rows: Tensor, bias: Tensor | None, routing: Routing) -> Tensor:
        """Add to each row the bias of its expert, without a read on the host."""
        if bias is None:
            return rows
        numbers = torch.arange(len(rows), dtype=torch.int32, device=rows.device)
        return rows + bias.index_select(0, torch.searchsorted(routing.ends, numbers, right=True))


def _grouped_product() -> Callable[..., Tensor] | None:
    """Return torch's grouped matrix product, under its public or earlier private name, or None."""
    found: Callable[..., Tensor] | None = getattr(F, "grouped_mm", None)
    return found or getattr(torch, "_grouped_mm", None)


def _activation(config: ModelConfig, backend: Backend, *, is_fp8: bool) -> Callable[[Tensor], Any]:
    name = config.activation
    if name == "clamped_swiglu":  # only of mixtures, which fp8 does not compute
        return partial(clamped_swiglu, alpha=config.gate_alpha, limit=config.gate_limit)
    if is_fp8:
        return partial(gated_activation_fp8, activation=name, backend=backend)
    return partial(_ACTIVATIONS[name], backend=backend)
