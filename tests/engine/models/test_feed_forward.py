"""The two ways of computing a mixture of experts, and the choice of experts."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from batchmill.engine.models import grouped_experts
from batchmill.engine.models.expert_choice import Router, choose_corrected
from batchmill.engine.models.feed_forward import (
    ExpertMixture,
    GatedNetwork,
    build_feed_forward,
)
from batchmill.engine.models.fp8_experts import Fp8GroupedExperts
from batchmill.engine.models.grouped_experts import GroupedExperts, can_group
from batchmill.engine.models.model_config import ExpertsConfig, ModelConfig
from batchmill.engine.models.weights import DenseWeights, ExpertWeights, allocated
from batchmill.kernels.every_size import launching_every_size
from batchmill.kernels.ops.expert_linear import FoldedActivation, quantize_experts
from batchmill.kernels.ops.gated_activation import silu_and_mul_reference
from batchmill.kernels.ops.linear import dense_linear


@pytest.mark.parametrize("product", ["reference", "reference, folded", "torch"])
@pytest.mark.parametrize("normalise_weights", [True, False])
@pytest.mark.parametrize("num_tokens", [1, 2, 23])
def test_grouped_experts_compute_the_same_as_single_ones(
    num_tokens: int, normalise_weights: bool, product: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if product == "torch":
        multiply = getattr(F, "grouped_mm", None) or torch._grouped_mm
        monkeypatch.setattr(grouped_experts, "_torch_product", lambda *weights: multiply)
        monkeypatch.setattr(grouped_experts, "_ROWS_FOR_TORCH", 0)
    torch.manual_seed(num_tokens)
    num_experts, hidden, inner = 6, 16, 24
    weights = ExpertWeights(
        router=torch.randn(num_experts, hidden),
        gate_up=torch.randn(num_experts, 2 * inner, hidden),
        down=torch.randn(num_experts, hidden, inner),
    )
    config = ExpertsConfig(num_experts, 2, inner, normalise_weights)
    networks = [
        GatedNetwork(
            dense_linear(allocated(gate_up), None),
            dense_linear(allocated(down), None),
            silu_and_mul_reference,
        )
        for gate_up, down in zip(
            weights.of_experts(weights.gate_up), weights.of_experts(weights.down), strict=True
        )
    ]
    x = torch.randn(num_tokens, hidden)
    folded: FoldedActivation | None = "silu" if product == "reference, folded" else None
    grouped = GroupedExperts(weights, config, silu_and_mul_reference, folded=folded)(x)
    one_by_one = ExpertMixture(Router(weights, config), networks, config)(x)
    torch.testing.assert_close(grouped, one_by_one, atol=1e-3, rtol=1e-5)


def test_corrected_choices_and_shared_networks_are_the_same_in_groups() -> None:
    torch.manual_seed(0)
    num_experts, hidden, inner = 8, 16, 24
    weights = ExpertWeights(
        router=torch.randn(num_experts, hidden),
        gate_up=torch.randn(num_experts, 2 * inner, hidden),
        down=torch.randn(num_experts, hidden, inner),
        correction=torch.randn(num_experts),
        shared=DenseWeights(torch.randn(2 * inner, hidden), None, torch.randn(hidden, inner), None),
        shared_gate=torch.randn(1, hidden),
    )
    experts = ExpertsConfig(
        *(num_experts, 3, inner, True),
        score="sigmoid",
        has_correction=True,
        num_groups=4,
        num_groups_per_token=2,
        share_factor=1.5,
        shared_size=inner,
        gates_shared=True,
    )
    config = cast("ModelConfig", SimpleNamespace(experts=experts, activation="silu"))
    one_by_one = build_feed_forward(weights, config, dense_linear, "reference")
    shared = cast("ExpertMixture", one_by_one)._shared
    grouped = GroupedExperts(weights, experts, silu_and_mul_reference, "reference", shared)
    x = torch.randn(23, hidden)
    torch.testing.assert_close(grouped(x), one_by_one(x), atol=1e-3, rtol=1e-5)


def test_a_correction_changes_the_choice_and_not_the_shares() -> None:
    config = ExpertsConfig(4, 2, 8, True, score="sigmoid", has_correction=True)
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    shares, chosen = choose_corrected(logits, config, torch.tensor([-9.0, 0.0, 0.0, 5.0]))
    assert chosen.tolist() == [[3, 1]]
    scores = torch.sigmoid(logits[0, [3, 1]])
    torch.testing.assert_close(shares[0], scores / scores.sum())


def test_experts_come_from_the_groups_with_the_best_pairs() -> None:
    config = ExpertsConfig(
        *(6, 2, 8, False), score="sigmoid", num_groups=3, num_groups_per_token=1, share_factor=2.0
    )
    # The largest score is in the first group, the largest sum of two in the last.
    logits = torch.tensor([[4.0, -9.0, 0.0, 0.0, 2.0, 3.0]])
    shares, chosen = choose_corrected(logits, config, None)
    assert chosen.tolist() == [[5, 4]]
    torch.testing.assert_close(shares[0], 2 * torch.sigmoid(torch.tensor([3.0, 2.0])))


@pytest.mark.parametrize("left_out", ["", "gate_up", "down"])
@pytest.mark.parametrize("inner", [24, 32])
def test_experts_in_eight_bits_stay_near_the_unquantized_ones(inner: int, left_out: str) -> None:
    torch.manual_seed(inner)
    weights = ExpertWeights(
        router=torch.randn(5, 64),
        gate_up=torch.randn(5, 2 * inner, 64) * torch.rand(5, 2 * inner, 1),
        down=torch.randn(5, 64, inner) * torch.rand(5, 64, 1),
        gate_up_bias=torch.randn(5, 2 * inner),
        down_bias=torch.randn(5, 64),
    )
    config = ExpertsConfig(5, 2, inner, True)
    x = torch.randn(23, 64)
    x[3] = torch.nan
    want = GroupedExperts(weights, config, silu_and_mul_reference)(x)
    assert isinstance(weights.gate_up, Tensor)
    assert isinstance(weights.down, Tensor)
    gate_up = weights.gate_up if left_out == "gate_up" else quantize_experts(weights.gate_up)
    down = weights.down if left_out == "down" else quantize_experts(weights.down)
    model = SimpleNamespace(activation="silu", experts=config)
    network = build_feed_forward(
        replace(weights, gate_up=gate_up, down=down),
        cast(ModelConfig, model),
        *(dense_linear, "auto"),
        is_fp8=True,
    )
    assert isinstance(network, Fp8GroupedExperts)
    got = network(x)
    assert got[3].isnan().all()
    rest = [row for row in range(23) if row != 3]
    error = (got[rest] - want[rest]).pow(2).mean().sqrt() / want[rest].std()
    assert 0 < error < 0.1, "the router takes the same rows, so only rounding differs"


def test_experts_are_grouped_on_a_cpu_only_by_request() -> None:
    weight = torch.zeros(2, 8, 8, dtype=torch.bfloat16)
    assert can_group(weight, "triton")
    assert not can_group(weight, "auto")
    assert not can_group(weight, "reference")


def test_few_rows_of_an_expert_take_our_product_and_many_torchs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []

    def multiply(rows: Tensor, *weight: Tensor, offs: Tensor) -> Tensor:
        calls.append(len(rows))
        return rows.new_zeros(len(rows), weight[0].shape[2])

    monkeypatch.setattr(grouped_experts, "_torch_product", lambda *weights: multiply)
    weights = ExpertWeights(torch.randn(2, 8), torch.randn(2, 8, 8), torch.randn(2, 8, 4))
    experts = GroupedExperts(weights, ExpertsConfig(2, 1, 4, True), silu_and_mul_reference)
    experts(torch.randn(128, 8))
    assert not calls
    experts(torch.randn(129, 8))
    assert calls == [129, 129]
    calls.clear()
    with launching_every_size():
        experts(torch.randn(2, 8))
    assert calls == [2, 2], "warming up compiles both"


def test_sizes_that_torchs_product_refuses_take_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))

    def on_gpu(size: int) -> Tensor:
        """Return a stand-in for a weight on a GPU with so many inputs."""
        values = {"device": torch.device("cuda"), "dtype": torch.bfloat16, "itemsize": 2}
        return cast("Tensor", SimpleNamespace(**values, shape=(4, 64, size)))

    assert grouped_experts._torch_product(on_gpu(64), on_gpu(40)) is not None
    assert grouped_experts._torch_product(on_gpu(64), on_gpu(36)) is None
    assert grouped_experts._torch_product(on_gpu(60), on_gpu(40)) is None
