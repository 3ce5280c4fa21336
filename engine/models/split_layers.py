"""The operations of a decoder whose weights are divided among ranks."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from batchmill.kernels.ops.linear import Linear, PackedLinear

from .feed_forward import LinearFactory
from .shard import Shard


class Ranks(Protocol):
    """Adds and gathers tensors over all ranks; every rank makes the same calls in one order."""

    @property
    def rank(self) -> int:
        """Number of this rank."""

    @property
    def num_ranks(self) -> int:
        """Ranks that compute the model together."""

    def sum(self, x: Tensor) -> Tensor:
        """Add the tensors of all ranks, in place; return the sum, which is the same on each."""

    def gather(self, part: Tensor) -> list[Tensor]:
        """Return the tensors of all ranks on rank 0, and an empty list on the others."""


def summed(linear: LinearFactory, shard: Shard, ranks: Ranks) -> LinearFactory:
    """Return a factory of products whose arguments are divided: the ranks add their results."""

    def make(weight: Tensor, bias: Tensor | None) -> Linear:
        part = linear(weight, bias if shard.rank == 0 else None)  # a sum has one bias
        return lambda x: ranks.sum(part(x))

    return make


class SplitEmbedding:
    """An embedding of which each rank has the rows of its own tokens."""

    def __init__(self, weight: Tensor, shard: Shard, ranks: Ranks) -> None:
        """Keep the rows of `shard.token_ids`; those after them are not read."""
        self._weight = weight[: len(shard.token_ids)]
        self._start = shard.token_ids.start
        self._ranks = ranks

    def __call__(self, token_ids: Tensor) -> Tensor:
        """Look up [num_tokens, hidden] from [num_tokens] int64."""
        local = token_ids - self._start
        is_elsewhere = (local < 0) | (local >= len(self._weight))
        rows = F.embedding(local.masked_fill(is_elsewhere, 0), self._weight)
        return self._ranks.sum(rows.masked_fill_(is_elsewhere[:, None], 0))


class SplitHead:
    """An output layer of which each rank computes the logits of its own tokens."""

    def __init__(self, linear: Linear, shard: Shard, ranks: Ranks) -> None:
        """Keep the product by this rank's rows."""
        self._linear = linear
        self._shard = shard
        self._ranks = ranks

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Compute all logits on rank 0.

        Args:
            x: [num_rows, hidden].
            out: [num_rows, vocab_size] float32, written on rank 0 only; None allocates it.
        """
        if out is None:
            out = torch.empty(len(x), self._shard.config.vocab_size, device=x.device)
        if isinstance(self._linear, PackedLinear):
            part = torch.empty(len(x), self._shard.num_token_rows, dtype=torch.float32)
            self._linear(x, out=part)
        else:
            part = self._linear(x).float()
        for rank, logits in enumerate(self._ranks.gather(part)):
            token_ids = self._shard.token_ids_of(rank)
            out[:, token_ids.start : token_ids.stop] = logits[:, : len(token_ids)]
        return out


class SplitDecoder:
    """What a `DecoderModel` needs to compute one rank's shard."""

    def __init__(self, shard: Shard, ranks: Ranks) -> None:
        self.shard = shard
        self._ranks = ranks

    def summed(self, linear: LinearFactory) -> LinearFactory:
        """See the function `summed`."""
        return summed(linear, self.shard, self._ranks)

    def embedding(self, weight: Tensor) -> SplitEmbedding:
        """See `SplitEmbedding`."""
        return SplitEmbedding(weight, self.shard, self._ranks)

    def head(self, linear: Linear) -> SplitHead:
        """See `SplitHead`."""
        return SplitHead(linear, self.shard, self._ranks)
