"""What the native decoder needs to know about a model; `families.py` reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from batchmill.engine.model_shape import ModelShape

#: Functions on the gate of a feed-forward network.
Activation = Literal["silu", "gelu_tanh"]


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """How positions turn into rotation angles; `rotary.inverse_frequencies` has the formulas."""

    #: Base of the wavelengths.
    theta: float
    #: One of `rope_config.ROPE_TYPES`.
    rope_type: str = "default"
    #: linear, llama3, yarn: how much longer the context is than in training.
    factor: float = 1.0
    #: llama3: wavelengths above original length / this are scaled by `factor`.
    low_freq_factor: float = 1.0
    #: llama3: wavelengths below original length / this stay.
    high_freq_factor: float = 1.0
    #: llama3, yarn: context length in training, tokens.
    original_max_position_embeddings: int = 0
    #: yarn: waves that turn more often than this over the training context stay ...
    beta_fast: float = 32.0
    #: ... and those that turn less often than this are slowed down in full.
    beta_slow: float = 1.0
    #: yarn: the two bounds are rounded to whole dimensions.
    truncate: bool = True
    #: longrope: divisor of each frequency, for sequences within the training context.
    short_factors: tuple[float, ...] = ()
    #: yarn, longrope: factor on cosines and sines.
    attention_factor: float = 1.0
    #: Share of each head that is rotated, from its start.
    partial_rotary_factor: float = 1.0


@dataclass(frozen=True, slots=True)
class AttentionConfig:
    """What layers may have differently in their attention."""

    rope: RopeConfig
    #: Keys that a query sees, its own included; None sees all.
    window: int | None = None


@dataclass(frozen=True, slots=True)
class LayerConfig:
    """One layer."""

    attention: AttentionConfig
    #: The feed-forward network is a mixture of experts.
    sparse: bool = False


@dataclass(frozen=True, slots=True)
class ExpertsConfig:
    """The mixture of experts of sparse layers."""

    num_experts: int
    #: Experts that compute each token.
    num_experts_per_token: int
    #: Inner size of one expert.
    intermediate_size: int
    #: The chosen experts' weights are scaled to add up to 1.
    normalise_weights: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig(ModelShape):
    """Sizes and features of a decoder that is computed natively."""

    hidden_size: int
    #: Inner size of the feed-forward network of layers that are not sparse.
    intermediate_size: int
    num_heads: int
    rms_norm_eps: float
    #: One entry a layer.
    layers: tuple[LayerConfig, ...]
    #: The output layer is the embedding.
    tie_word_embeddings: bool
    #: Factor on attention scores.
    attention_scale: float
    #: Biases of the query, key and value projections, of the attention output, and of the MLP.
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    #: Queries and keys are normalised, head by head.
    qk_norm: bool = False
    activation: Activation = "silu"
    #: Stored norm weights are differences from 1.
    norm_offset: bool = False
    #: What attention and feed-forward network give is normalised too, before it is added.
    output_norms: bool = False
    #: Factor on embeddings.
    embedding_scale: float = 1.0
    #: Logits are squashed to this size, cap * tanh(logits / cap).
    logit_softcap: float | None = None
    #: None where no layer is sparse.
    experts: ExpertsConfig | None = None

    @property
    def attention_kinds(self) -> tuple[AttentionConfig, ...]:
        """The different kinds of attention among the layers, in order of appearance."""
        return tuple(dict.fromkeys(layer.attention for layer in self.layers))
