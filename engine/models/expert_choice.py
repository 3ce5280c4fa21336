"""Which experts of a mixture compute a token, and the shares of what they compute."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from batchmill.kernels.ops.dispatch import Backend
from batchmill.kernels.ops.experts import route_experts
from batchmill.kernels.reference.experts import Routing, choose_experts, order_rows

from .model_config import ExpertsConfig
from .weights import ExpertWeights


class Router:
    """Chooses the experts of each token from its state alone, and reads nothing on the host."""

    def __init__(self, weights: ExpertWeights, config: ExpertsConfig) -> None:
        """Keep the router of a mixture; one with a correction is computed in float32."""
        self._config = config
        self._correction = weights.correction
        in_float32 = weights.correction is not None
        self._weight = weights.router.float() if in_float32 else weights.router
        self._bias = weights.router_bias

    def choose(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return shares (float32) and numbers of each token's experts, [num_tokens, num_chosen]."""
        config, logits = self._config, self._logits(x)
        if config.is_plain:
            return choose_experts(logits, config.num_experts_per_token, config.normalise_weights)
        return choose_corrected(logits, config, self._correction)

    def route(self, x: Tensor, backend: Backend) -> Routing:
        """Choose the experts of each token, and order the rows expert by expert."""
        config = self._config
        if not config.is_plain:
            return order_rows(*self.choose(x), config.num_experts)
        return route_experts(
            self._logits(x),
            config.num_experts_per_token,
            normalise=config.normalise_weights,
            backend=backend,
        )

    def _logits(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self._weight.dtype), self._weight, self._bias)


def choose_corrected(
    logits: Tensor, config: ExpertsConfig, correction: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Choose experts by scores that a stored correction balances, within the best groups.

    Args:
        logits: [num_tokens, num_experts], the router's output.
        config: Scores, groups and factors.
        correction: [num_experts] float32, added for the choice only; None adds nothing.

    Returns:
        Shares (float32) and numbers of each token's experts, [num_tokens, num_chosen].

    Source: DeepSeek-V3 Technical Report, 2024, section 2.1.2 (sigmoid scores, correction, groups).
    """
    logits = logits.float()
    scores = logits.sigmoid() if config.score == "sigmoid" else logits.softmax(dim=-1)
    wanted = scores if correction is None else scores + correction
    if config.num_groups > 1:
        wanted = _within_best_groups(wanted, config)
    chosen = wanted.topk(config.num_experts_per_token, dim=-1).indices
    shares = scores.gather(1, chosen)
    if config.normalise_weights:
        shares = shares / shares.sum(dim=-1, keepdim=True).clamp(min=config.least_sum)
    return shares * config.share_factor, chosen


def _within_best_groups(wanted: Tensor, config: ExpertsConfig) -> Tensor:
    """Rule out the experts outside the groups whose best two experts have the largest sums."""
    groups = wanted.view(len(wanted), config.num_groups, -1)
    sums = groups.topk(2, dim=-1).values.sum(dim=-1)
    best = sums.topk(config.num_groups_per_token, dim=-1).indices
    is_out = torch.ones_like(sums, dtype=torch.bool).scatter(1, best, value=False)
    return groups.masked_fill(is_out[..., None], float("-inf")).flatten(1)
