"""One rank's shard of a decoder: which heads, columns and tokens it has."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from batchmill.engine.errors import UnsupportedModelError

from .model_config import ModelConfig


@dataclass(frozen=True)
class Shard:
    """The part of a decoder that one of several ranks computes.

    Attention is divided by heads, the feed-forward network by its inner columns, and embedding and
    output layer by tokens. Norms are whole on every rank, and so are the states between layers.

    Source: Megatron-LM, Shoeybi et al. 2019, section 3.

    Attributes:
        config: The whole model's sizes and features.
        rank: Number of this rank; rank 0 samples.
        num_ranks: Ranks that compute the model together.

    Raises:
        UnsupportedModelError: the model cannot be divided by so many ranks.
    """

    config: ModelConfig
    rank: int
    num_ranks: int

    def __post_init__(self) -> None:
        config, num_ranks = self.config, self.num_ranks
        setting = f"tensor_parallel_size is {num_ranks}"
        if config.experts is not None:
            raise UnsupportedModelError(
                f"{setting}, and this {config.architecture} is a mixture of experts, which is not "
                "divided: leave tensor_parallel_size out"
            )
        if config.qk_norm_spans_heads:
            raise UnsupportedModelError(
                f"{setting}, and this {config.architecture} normalises all heads together, which "
                "is not divided: leave tensor_parallel_size out"
            )
        for what, size in (
            ("attention heads", config.num_heads),
            ("inner columns of its feed-forward network", config.intermediate_size),
        ):
            if size % num_ranks:
                raise UnsupportedModelError(
                    f"{setting}, and this {config.architecture} has {size} {what}: use a divisor "
                    f"of {size}"
                )
        heads = config.num_kv_heads
        if heads % num_ranks and num_ranks % heads:
            raise UnsupportedModelError(
                f"{setting}, and this {config.architecture} has {heads} key/value heads: use a "
                f"divisor or a multiple of {heads}"
            )

    @cached_property
    def local_config(self) -> ModelConfig:
        """The sizes that this rank computes with; its logits are those of the whole model."""
        config, num_ranks = self.config, self.num_ranks
        return replace(
            config,
            num_heads=config.num_heads // num_ranks,
            num_kv_heads=max(1, config.num_kv_heads // num_ranks),
            intermediate_size=config.intermediate_size // num_ranks,
        )

    @property
    def weights_config(self) -> ModelConfig:
        """The sizes of this rank's weights."""
        return replace(self.local_config, vocab_size=self.num_token_rows)

    @property
    def num_token_rows(self) -> int:
        """Rows of embedding and output layer, the same on every rank; see `token_ids`."""
        return -(-self.config.vocab_size // self.num_ranks)

    @property
    def kv_heads(self) -> range:
        """Key/value heads of this rank; several ranks have the same one if they are too few."""
        num_local = self.local_config.num_kv_heads
        start = self.rank * self.config.num_kv_heads // self.num_ranks
        return range(start, start + num_local)

    @property
    def token_ids(self) -> range:
        """Tokens whose embeddings and logits this rank has; the last ranks may have fewer."""
        return self.token_ids_of(self.rank)

    def token_ids_of(self, rank: int) -> range:
        """Return the tokens of a rank."""
        size, num_rows = self.config.vocab_size, self.num_token_rows
        return range(min(rank * num_rows, size), min((rank + 1) * num_rows, size))
