"""The sizes and features of a native model; `families.py` reads them from config.json."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from batchmill.engine.model_shape import ModelShape

_LATER = "later"

#: Functions of the gate of a feed-forward network.
Activation = Literal["silu", "gelu_tanh", "clamped_swiglu"]


def _later(default: Any) -> Any:
    """Return a field that `repr` shows only with another value than its default.

    `repr` is a part of a model's identity, and models from before the field keep theirs.
    """
    return field(default=default, metadata={_LATER: True})


class _Described:
    """Gives dataclasses a `repr` that leaves out later fields with their defaults."""

    __slots__ = ()

    def __repr__(self) -> str:
        shown = (
            f"{each.name}={getattr(self, each.name)!r}"
            for each in fields(self)  # type: ignore[arg-type]
            if each.repr
            and not (each.metadata.get(_LATER) and getattr(self, each.name) == each.default)
        )
        return f"{type(self).__qualname__}({', '.join(shown)})"


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """How positions turn into rotation angles; `rotary.inverse_frequencies` has the formulas."""

    #: Base of the wavelengths.
    theta: float
    #: One of `rope_config.ROPE_TYPES`, or "none" for layers that do not rotate.
    rope_type: str = "default"
    #: linear, llama3, yarn: how much longer the context is than in training.
    factor: float = 1.0
    #: llama3: wavelengths above original length / this are scaled by `factor`.
    low_freq_factor: float = 1.0
    #: llama3: wavelengths below original length / this stay.
    high_freq_factor: float = 1.0
    #: llama3, yarn: context length in training, tokens.
    original_max_position_embeddings: int = 0
    #: yarn: frequencies that turn more often than this over the training context stay ...
    beta_fast: float = 32.0
    #: ... and those that turn less often are divided by `factor`, with a ramp between the two.
    beta_slow: float = 1.0
    #: yarn: whether the two bounds are rounded to whole dimensions.
    truncate: bool = True
    #: longrope: divisor of each frequency, within the training context.
    short_factors: tuple[float, ...] = ()
    #: yarn, longrope: factor on cosines and sines.
    attention_factor: float = 1.0
    #: Share of each head that is rotated, from its start.
    partial_rotary_factor: float = 1.0
    #: Rotated pairs that turn by time, by row and by column, in models that see pictures as grids;
    #: empty if all turn by the position. `repr` leaves it out: it is part of a model's identity.
    grid_sections: tuple[int, ...] = field(default=(), repr=False)
    #: Whether time, row and column take turns from pair to pair, instead of one after another.
    interleaves_grid: bool = field(default=False, repr=False)


@dataclass(frozen=True, slots=True, repr=False)
class AttentionConfig(_Described):
    """The properties of attention that may differ between layers."""

    rope: RopeConfig
    #: Keys that a query sees, including its own; None sees all.
    window: int | None = None
    #: Growth of queries with the training contexts before them, n: 1 + growth * log(1 + n).
    query_growth: float = _later(0.0)


@dataclass(frozen=True, slots=True)
class LayerConfig:
    """The properties that may differ between layers."""

    attention: AttentionConfig
    #: Whether the feed-forward network is a mixture of experts.
    sparse: bool = False


@dataclass(frozen=True, slots=True, repr=False)
class ExpertsConfig(_Described):
    """The mixture of experts of sparse layers."""

    num_experts: int
    #: Experts that compute each token.
    num_experts_per_token: int
    #: Inner size of one expert.
    intermediate_size: int
    #: Whether the chosen experts' shares are scaled to add up to 1.
    normalise_weights: bool
    #: Whether router and experts have biases.
    biases: bool = _later(False)
    #: What makes scores of the router's outputs; the scores of the chosen experts are their shares.
    score: Literal["softmax", "sigmoid"] = _later("softmax")
    #: Whether a stored correction is added to the scores for the choice.
    has_correction: bool = _later(False)
    #: Whether the router's weight stays in float32, whatever the dtype of the others.
    keeps_router_float32: bool = _later(False)
    #: Groups of neighbouring experts, and how many of them a token may choose from.
    num_groups: int = _later(1)
    num_groups_per_token: int = _later(1)
    #: Shares are divided by their sum, or by this number if the sum is less.
    least_sum: float = _later(0.0)
    #: Factor on shares.
    share_factor: float = _later(1.0)
    #: Inner size of a network that computes every token beside the experts; 0 if there is none.
    shared_size: int = _later(0)
    #: Whether the output of that network has a gate of its own.
    gates_shared: bool = _later(False)

    @property
    def is_plain(self) -> bool:
        """Whether experts are chosen by a softmax alone, as our kernels do."""
        is_softmax = self.score == "softmax" and not self.has_correction
        return is_softmax and self.num_groups == 1 and self.share_factor == 1.0


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ModelConfig(_Described, ModelShape):
    """Sizes and features of a decoder that is computed natively."""

    hidden_size: int
    #: Inner size of the feed-forward network of layers that are not sparse.
    intermediate_size: int
    num_heads: int
    rms_norm_eps: float
    #: One entry per layer.
    layers: tuple[LayerConfig, ...]
    #: Whether the output layer is the embedding.
    tie_word_embeddings: bool
    #: Factor on attention scores.
    attention_scale: float
    #: Whether the query, key and value projections, the attention output and the MLP have biases.
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    #: Whether queries and keys are normalised, head by head.
    qk_norm: bool = False
    activation: Activation = "silu"
    #: Whether stored norm weights are differences from 1.
    norm_offset: bool = False
    #: Whether outputs of attention and feed-forward network are normalised before they are added.
    output_norms: bool = False
    #: Factor on embeddings.
    embedding_scale: float = 1.0
    #: Logits become cap * tanh(logits / cap); None leaves them.
    logit_softcap: float | None = None
    #: None if no layer is sparse.
    experts: ExpertsConfig | None = None
    #: Outputs of its classification head; 0 if it has none.
    num_labels: int = field(default=0, repr=False)
    #: Whether the pairs that rotate are neighbours in stored queries and keys; they are loaded with
    #: each head's even elements before its odd ones.
    interleaved_rope: bool = _later(False)
    #: Whether the inputs of attention and feed-forward network are normalised.
    input_norms: bool = _later(True)
    #: Whether the norms of queries and keys are over all heads together.
    qk_norm_spans_heads: bool = _later(False)
    #: Whether queries and keys are normalised after they are rotated.
    qk_norm_after_rope: bool = _later(False)
    #: Factor on the outputs of attention and feed-forward network.
    residual_scale: float = _later(1.0)
    #: Logits are divided by this.
    logit_divisor: float = _later(1.0)
    #: Whether each head has a score for nothing, a "sink".
    attention_sinks: bool = _later(False)
    #: clamped_swiglu: factor on the gate within the sigmoid, and the limit of gate and up.
    gate_alpha: float = _later(0.0)
    gate_limit: float = _later(0.0)

    @property
    def has_own_head(self) -> bool:
        """Whether it has an output layer that is not the embedding."""
        return self.generates and not self.tie_word_embeddings

    @property
    def uses_grids(self) -> bool:
        """Whether it rotates the tokens of a picture by time, row and column."""
        return any(kind.rope.grid_sections for kind in self.attention_kinds)

    @property
    def attention_kinds(self) -> tuple[AttentionConfig, ...]:
        """The different kinds of attention among the layers, in order of appearance."""
        return tuple(dict.fromkeys(layer.attention for layer in self.layers))
