"""Models whose rotated pairs are neighbours: their heads are reordered once, when they are loaded.

Our kernels rotate element i of a head with element i + half. Scores are sums over the elements of
a head, so the same new order in queries and keys changes nothing else.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from batchmill.kernels.ops.fp8_weight import Fp8Weight
from batchmill.kernels.ops.grouped_weight import GroupedWeight

from .model_config import ModelConfig
from .weights import DecoderWeights, LayerWeights, Matrix


def qkv_row_order(config: ModelConfig) -> tuple[int, ...]:
    """Return which stored row each row of queries, keys and values is; empty if all stay."""
    if not config.interleaved_rope:
        return ()
    head_dim, (kind,) = config.head_dim, config.attention_kinds
    rotary_dim = int(head_dim * kind.rope.partial_rotary_factor)
    in_head = [*range(0, rotary_dim, 2), *range(1, rotary_dim, 2), *range(rotary_dim, head_dim)]
    first_value = (config.num_heads + config.num_kv_heads) * head_dim
    end = first_value + config.num_kv_heads * head_dim
    rotated = (start + row for start in range(0, first_value, head_dim) for row in in_head)
    return (*rotated, *range(first_value, end))


def reorder_heads(weights: DecoderWeights, config: ModelConfig) -> DecoderWeights:
    """Return weights with the rows of queries and keys in our order, layer by layer."""
    rows = qkv_row_order(config)
    if not rows:
        return weights
    order = torch.tensor(rows)
    for index, layer in enumerate(weights.layers):
        weights.layers[index] = _reorder(layer, order)
    return weights


def _reorder(layer: LayerWeights, order: Tensor) -> LayerWeights:
    order = order.to(layer.qkv.device)
    bias = layer.qkv_bias
    if bias is not None:
        bias = bias.index_select(0, order.to(bias.device))
    return replace(layer, qkv=_select_rows(layer.qkv, order), qkv_bias=bias)


def _select_rows(matrix: Matrix, order: Tensor) -> Matrix:
    if isinstance(matrix, Tensor):
        return matrix.index_select(0, order)
    if isinstance(matrix, Fp8Weight):
        return matrix.select_rows(order)
    assert isinstance(matrix, GroupedWeight), "no other matrices exist"
    zeros = None if matrix.zeros is None else matrix.zeros.index_select(0, order)
    q, scales = matrix.q.index_select(0, order), matrix.scales.index_select(0, order)
    return replace(matrix, q=q, scales=scales, zeros=zeros)
