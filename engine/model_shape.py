"""The sizes of a model that the cache, the scheduler and the steps need to know."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Sizes of a model, whichever implementation computes it."""

    #: Hugging Face class name.
    architecture: str
    vocab_size: int
    num_layers: int
    num_kv_heads: int
    #: Elements per head; need not be hidden_size / num_heads.
    head_dim: int
    #: Longest sequence that the model was made for, tokens.
    max_position_embeddings: int
    #: Whether it has an output layer over the vocabulary. `architecture` says the same, so the
    #: identities of models that have one stay what they were.
    generates: bool = field(default=True, repr=False)
    #: Numbers of a token's final state; 0 if the states are not shown.
    state_size: int = field(default=0, repr=False)

    @property
    def uses_grids(self) -> bool:
        """Whether it rotates the tokens of a picture by time, row and column."""
        return False

    @property
    def keeps_kv(self) -> bool:
        """Whether it keeps keys and values; an encoder computes each text whole and keeps none."""
        return self.num_layers > 0
