"""Feed-forward networks of a decoder layer: one gated network, or a mixture of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from batchmill.kernels.ops.dispatch import Backend
from batchmill.kernels.ops.fp8_fused import gated_activation_fp8
from batchmill.kernels.ops.gated_activation import gelu_and_mul, silu_and_mul
from batchmill.kernels.ops.linear import Linear

from .model_config import Activation, ExpertsConfig, ModelConfig
from .weights import DenseWeights, ExpertWeights

#: Makes a matrix multiplication of a weight [out, in] and a bias.
LinearFactory = Callable[[Tensor, Tensor | None], Linear]
#: What a norm gives, [num_tokens, hidden], quantized where the weights are fp8 -> the same, dense.
FeedForward = Callable[[Any], Tensor]
_ACTIVATIONS = {"silu": silu_and_mul, "gelu_tanh": gelu_and_mul}


def build_feed_forward(
    weights: DenseWeights | ExpertWeights,
    config: ModelConfig,
    linear: LinearFactory,
    backend: Backend,
    *,
    is_plain: bool = False,
    is_fp8: bool = False,
) -> FeedForward:
    """Turn a layer's weights into its feed-forward network.

    A mixture's experts are multiplied in groups where `can_group` says so, and otherwise one by
    one through `linear`, for which the host waits for the router.

    Args:
        weights: What the layer has.
        config: The model's.
        linear: Makes the matrix multiplications.
        backend: The backend of our kernels.
        is_plain: `linear` multiplies by weights as they are, so that others may do it as well.
        is_fp8: `linear` multiplies rows that are quantized already.
    """
    activate = _activation(config.activation, backend, is_fp8=is_fp8)
    if isinstance(weights, DenseWeights):
        return GatedNetwork(
            linear(weights.gate_up, weights.gate_up_bias),
            linear(weights.down, weights.down_bias),
            activate,
        )
    assert config.experts is not None, "a sparse layer's configuration has experts"
    if is_plain and can_group(weights.gate_up, backend):
        return GroupedExperts(weights, config.experts, activate)
    networks = [
        GatedNetwork(linear(gate_up, None), linear(down, None), activate)
        for gate_up, down in zip(weights.gate_up, weights.down, strict=True)
    ]
    return ExpertMixture(weights.router, networks, config.experts)


def can_group(weight: Tensor, backend: Backend) -> bool:
    """Whether torch multiplies by a mixture's experts in one call that asks the host nothing.

    On GPUs before compute capability 9.0, and in other dtypes than bfloat16, torch loops over the
    experts on the host. `backend="triton"` insists, for tests without a GPU.
    """
    if _grouped_product() is None:
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

    def __call__(self, x: Any) -> Tensor:
        """Compute [num_tokens, hidden] from [num_tokens, hidden]."""
        return self._down(self._activate_and_mul(self._gate_up(x)))


class ExpertMixture:
    """Sends each token through the few experts that its router likes best, and adds them up.

    Every expert computes all its tokens of the step in one go. Which experts a token gets depends
    on the token alone, so that requests do not influence each other.

    Source: Mixtral of Experts, Jiang et al. 2024, section 2.1.
    """

    def __init__(self, router: Tensor, networks: list[GatedNetwork], config: ExpertsConfig) -> None:
        """Keep the experts.

        Args:
            router: [num_experts, hidden].
            networks: The experts.
            config: How many compute a token, and how they are weighed.
        """
        self._router = router
        self._networks = networks
        self._config = config

    def __call__(self, x: Tensor) -> Tensor:
        """Compute [num_tokens, hidden] from [num_tokens, hidden]."""
        num_chosen = self._config.num_experts_per_token
        shares, chosen = _route(x, self._router, self._config)
        chosen = chosen.flatten()
        order = chosen.argsort(stable=True)  # expert by expert, tokens in order
        counts = chosen.bincount(minlength=len(self._networks)).tolist()
        rows = torch.split(order // num_chosen, counts)
        shares_of = torch.split(shares.flatten()[order, None], counts)
        out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        for network, row, share in zip(self._networks, rows, shares_of, strict=True):
            if len(row):
                out.index_add_(0, row, network(x.index_select(0, row)) * share)
        return out.to(x.dtype)


class GroupedExperts:
    """The same mixture in two grouped matrix products: no length is read on the host.

    So a step that holds it can be captured in a CUDA graph. Results are added up in the order of
    the experts that a token chose, without atomics: the same bits every time.
    """

    def __init__(
        self,
        weights: ExpertWeights,
        config: ExpertsConfig,
        activate_and_mul: Callable[[Tensor], Tensor],
    ) -> None:
        """Keep the experts.

        Args:
            weights: The router and all experts.
            config: How many compute a token, and how they are weighed.
            activate_and_mul: Between an expert's two products.
        """
        self._weights = weights
        self._config = config
        self._activate_and_mul = activate_and_mul

    def __call__(self, x: Tensor) -> Tensor:
        """Compute [num_tokens, hidden] from [num_tokens, hidden]."""
        multiply = _grouped_product()
        assert multiply is not None, "can_group has looked at this"
        gate_up, down = self._weights.gate_up, self._weights.down
        shares, chosen = _route(x, self._weights.router, self._config)
        order = chosen.flatten().argsort(stable=True)  # expert by expert, tokens in order
        experts = torch.arange(len(gate_up), device=x.device)
        # Where each expert's rows end; bincount would wait for its result's size.
        ends = torch.searchsorted(chosen.flatten()[order], experts, right=True).to(torch.int32)
        rows = x.index_select(0, order // chosen.shape[1])
        hidden = self._activate_and_mul(multiply(rows, gate_up.transpose(1, 2), offs=ends))
        computed = multiply(hidden, down.transpose(1, 2), offs=ends)
        by_token = computed.index_select(0, order.argsort()).view(*chosen.shape, -1)
        return (by_token * shares[..., None]).sum(dim=1).to(x.dtype)


def _route(x: Tensor, router: Tensor, config: ExpertsConfig) -> tuple[Tensor, Tensor]:
    """Each token's experts and their shares, both [num_tokens, num_chosen]."""
    likings = torch.softmax(F.linear(x, router).float(), dim=-1)
    shares, chosen = torch.topk(likings, config.num_experts_per_token)
    if config.normalise_weights:
        shares = shares / shares.sum(dim=-1, keepdim=True)
    return shares, chosen


def _grouped_product() -> Callable[..., Tensor] | None:
    """The grouped matrix product of torch by its public name, its earlier private one, or None."""
    found: Callable[..., Tensor] | None = getattr(F, "grouped_mm", None)
    return found or getattr(torch, "_grouped_mm", None)


def _activation(name: Activation, backend: Backend, *, is_fp8: bool) -> Callable[[Tensor], Any]:
    if is_fp8:
        return partial(gated_activation_fp8, activation=name, backend=backend)
    return partial(_ACTIVATIONS[name], backend=backend)
