"""The norms of queries and keys: head by head before or after the rotation, or of all heads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from batchmill.kernels.ops.dispatch import Backend
from batchmill.kernels.ops.rms_norm import rms_norm

from .model_config import ModelConfig


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """The norms of one layer.

    After the rotation, only the weights remain: a rotation without a factor on its cosines and
    sines changes no norm. A score is a sum over the elements of a head, so that the weights of keys
    may be factors on queries.

    Attributes:
        q_weight: [head_dim], applied to each head of queries before the rotation, or None.
        k_weight: As `q_weight`, for keys.
        q_weight_of_all: [num_heads * head_dim], applied to all heads together, or None.
        k_weight_of_all: [num_kv_heads * head_dim].
        query_factor: [head_dim] float32, on rotated queries, or None.
    """

    q_weight: Tensor | None
    k_weight: Tensor | None
    q_weight_of_all: Tensor | None = None
    k_weight_of_all: Tensor | None = None
    query_factor: Tensor | None = None

    @classmethod
    def build(cls, q_norm: Tensor | None, k_norm: Tensor | None, config: ModelConfig) -> HeadNorms:
        """Build from the stored weights of a layer."""
        if q_norm is None or k_norm is None:
            return cls(None, None)
        if config.qk_norm_spans_heads:
            return cls(None, None, q_norm, k_norm)
        if config.qk_norm_after_rope:
            plain = torch.ones_like(q_norm), torch.ones_like(k_norm)
            return cls(*plain, query_factor=q_norm.float() * k_norm.float())
        return cls(q_norm, k_norm)

    def normalise_all(self, qkv: Tensor, eps: float, backend: Backend) -> None:
        """Normalise all heads together, in place, if these norms do so.

        Args:
            qkv: [num_tokens, queries, keys and values].
            eps: Added to the mean square.
            backend: Of our kernels.
        """
        if self.q_weight_of_all is None or self.k_weight_of_all is None:
            return
        size = len(self.q_weight_of_all)
        queries, keys = qkv[:, :size], qkv[:, size : size + len(self.k_weight_of_all)]
        queries.copy_(rms_norm(queries, self.q_weight_of_all, eps, backend=backend))
        keys.copy_(rms_norm(keys, self.k_weight_of_all, eps, backend=backend))

    def scale_queries(self, queries: Tensor, growth: Tensor | None) -> Tensor:
        """Return rotated queries, [num_tokens, num_heads, head_dim], with their factors.

        Args:
            queries: The same.
            growth: [num_tokens, 1, 1] float32, or None.
        """
        if self.query_factor is not None:
            queries = (queries * self.query_factor).to(queries.dtype)
        return queries if growth is None else (queries * growth).to(queries.dtype)
