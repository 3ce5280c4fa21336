"""The two ways of computing a mixture of experts."""

from __future__ import annotations

import pytest
import torch

from batchmill.engine.models.feed_forward import (
    ExpertMixture,
    GatedNetwork,
    GroupedExperts,
    can_group,
)
from batchmill.engine.models.model_config import ExpertsConfig
from batchmill.engine.models.weights import ExpertWeights
from batchmill.kernels.ops.gated_activation import silu_and_mul_reference
from batchmill.kernels.ops.linear import dense_linear


@pytest.mark.parametrize("normalise_weights", [True, False])
@pytest.mark.parametrize("num_tokens", [1, 2, 23])
def test_grouped_experts_compute_the_same_as_single_ones(
    num_tokens: int, normalise_weights: bool
) -> None:
    torch.manual_seed(num_tokens)
    num_experts, hidden, inner = 6, 16, 24
    weights = ExpertWeights(
        router=torch.randn(num_experts, hidden),
        gate_up=torch.randn(num_experts, 2 * inner, hidden),
        down=torch.randn(num_experts, hidden, inner),
    )
    config = ExpertsConfig(num_experts, 2, inner, normalise_weights)
    networks = [
        GatedNetwork(dense_linear(gate_up, None), dense_linear(down, None), silu_and_mul_reference)
        for gate_up, down in zip(weights.gate_up, weights.down, strict=True)
    ]
    x = torch.randn(num_tokens, hidden)
    grouped = GroupedExperts(weights, config, silu_and_mul_reference)(x)
    one_by_one = ExpertMixture(weights.router, networks, config)(x)
    torch.testing.assert_close(grouped, one_by_one, atol=1e-3, rtol=1e-5)


def test_experts_are_grouped_on_a_cpu_only_by_request() -> None:
    weight = torch.zeros(2, 8, 8, dtype=torch.bfloat16)
    assert can_group(weight, "triton")
    assert not can_group(weight, "auto")
    assert not can_group(weight, "reference")
