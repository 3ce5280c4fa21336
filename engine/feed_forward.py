"""Feed-forward networks of a decoder layer: one gated network, or a mixture of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from batchmill.kernels.dispatch import Backend
from batchmill.kernels.gelu_and_mul import gelu_and_mul
from batchmill.kernels.linear import Linear
from batchmill.kernels.silu_and_mul import silu_and_mul

from .model_config import Activation, ExpertsConfig, ModelConfig
from .weights import DenseWeights, ExpertWeights

#: Makes a matrix multiplication of a weight [out, in] and a bias.
LinearFactory = Callable[[Tensor, Tensor | None], Linear]
#: [num_tokens, hidden] -> [num_tokens, hidden].
FeedForward = Callable[[Tensor], Tensor]
_ACTIVATIONS = {"silu": silu_and_mul, "gelu_tanh": gelu_and_mul}


def build_feed_forward(
    weights: DenseWeights | ExpertWeights,
    config: ModelConfig,
    linear: LinearFactory,
    backend: Backend,
) -> FeedForward:
    """Turn a layer's weights into its feed-forward network."""
    activate = _activation(config.activation, backend)
    if isinstance(weights, DenseWeights):
        return GatedNetwork(
            linear(weights.gate_up, weights.gate_up_bias),
            linear(weights.down, weights.down_bias),
            activate,
        )
    assert config.experts is not None, "a sparse layer's configuration has experts"
    networks = [
        GatedNetwork(linear(gate_up, None), linear(down, None), activate)
        for gate_up, down in zip(weights.gate_up, weights.down, strict=True)
    ]
    return ExpertMixture(weights.router, networks, config.experts)


class GatedNetwork:
    """down(activate(gate(x)) * up(x))."""

    def __init__(
        self, gate_up: Linear, down: Linear, activate_and_mul: Callable[[Tensor], Tensor]
    ) -> None:
        self._gate_up = gate_up
        self._down = down
        self._activate_and_mul = activate_and_mul

    def __call__(self, x: Tensor) -> Tensor:
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
        likings = torch.softmax(F.linear(x, self._router).float(), dim=-1)
        shares, chosen = torch.topk(likings, num_chosen)  # [num_tokens, num_chosen]
        if self._config.normalise_weights:
            shares = shares / shares.sum(dim=-1, keepdim=True)
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


def _activation(name: Activation, backend: Backend) -> Callable[[Tensor], Tensor]:
    return partial(_ACTIVATIONS[name], backend=backend)
