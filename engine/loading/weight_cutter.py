"""Cuts stored tensors for one rank of several."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from batchmill.engine.models.families import FAMILIES, family_name
from batchmill.engine.models.shard import Shard

from .stored_names import EMBEDDING, HEAD


@dataclass(frozen=True, slots=True)
class _Cut:
    """One dimension of a stored tensor: the size of the whole, and the ranges that are kept."""

    dim: int
    size: int
    kept: tuple[range, ...]

    def apply(self, value: Tensor) -> Tensor:
        parts = [value.narrow(self.dim, each.start, len(each)) for each in self.kept]
        return parts[0] if len(parts) == 1 else torch.cat(parts, self.dim)


class WeightCutter:
    """Returns the part of each stored tensor that a shard holds."""

    def __init__(self, shard: Shard) -> None:
        """Prepare the cuts of a shard's tensors."""
        self._in_layer, config = {}, shard.config
        names = FAMILIES[family_name(config.architecture)].names
        q_heads = _share(config.num_heads, shard)
        q_size, queries = _in_heads(config.num_heads, q_heads, config.head_dim)
        kv_size, keys = _in_heads(config.num_kv_heads, shard.kv_heads, config.head_dim)
        inner, columns = config.intermediate_size, _share(config.intermediate_size, shard)
        for modules, sizes, ranges in (
            (names.qkv, (q_size, kv_size, kv_size), (queries, keys, keys)),
            (names.gate_up, (inner, inner), (columns, columns)),
        ):
            for module, cut in zip(modules, _row_cuts(len(modules), sizes, ranges), strict=True):
                self._in_layer[f"{module}.weight"] = self._in_layer[f"{module}.bias"] = cut
        self._in_layer["self_attn.o_proj.weight"] = _Cut(1, q_size, (queries,))
        self._in_layer["mlp.down_proj.weight"] = _Cut(1, inner, (columns,))
        tokens = _Cut(0, config.vocab_size, (shard.token_ids,))
        self._outside = {EMBEDDING: tokens, HEAD: tokens}

    def cut(self, name: str, value: Tensor) -> Tensor:
        """Return the shard's part of a tensor; all of it if it is not divided, or too small.

        Args:
            name: Our name of the tensor.
            value: As it is stored.
        """
        cut = self._outside.get(name)
        if name.startswith("model.layers."):
            cut = self._in_layer.get(name.split(".", 3)[3])
        if cut is None or value.ndim <= cut.dim or value.shape[cut.dim] != cut.size:
            return value
        return cut.apply(value)


def _share(size: int, shard: Shard) -> range:
    """Return this rank's equal share of a size."""
    share = size // shard.num_ranks
    return range(shard.rank * share, (shard.rank + 1) * share)


def _in_heads(num_heads: int, heads: range, head_dim: int) -> tuple[int, range]:
    """Return the rows of all heads, and those of some."""
    return num_heads * head_dim, range(heads.start * head_dim, heads.stop * head_dim)


def _row_cuts(num_modules: int, sizes: tuple[int, ...], kept: tuple[range, ...]) -> list[_Cut]:
    """Return the cut of each stored tensor: it holds one of the matrices, or all in a row."""
    if num_modules > 1:
        return [_Cut(0, size, (each,)) for size, each in zip(sizes, kept, strict=True)]
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    moved = (
        range(start + each.start, start + each.stop)
        for start, each in zip(starts, kept, strict=True)
    )
    return [_Cut(0, sum(sizes), tuple(moved))]
