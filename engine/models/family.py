"""What a model family is to the native decoder, and how families read their configurations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from batchmill.engine.errors import UnsupportedModelError

from .model_config import Activation, AttentionConfig, LayerConfig, RopeConfig
from .rope_config import read_rope

#: Our names of activations, by Hugging Face's.
_ACTIVATIONS: dict[str, Activation] = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}

HfConfig = Mapping[str, Any]

#: Of layers that do not rotate queries and keys.
UNROTATED = RopeConfig(theta=1.0, rope_type="none")


@dataclass(frozen=True, slots=True)
class WeightNames:
    """Hugging Face's names of a layer's tensors, without `model.layers.<n>.` and `.weight`."""

    #: The norm before the feed-forward network.
    post_attention_norm: str = "post_attention_layernorm"
    #: The norms of queries and keys, if there are any.
    qk_norms: tuple[str, str] = ("self_attn.q_norm", "self_attn.k_norm")
    #: The norms of the outputs of attention and feed-forward network; empty if there are none.
    attention_output_norm: str = ""
    feed_forward_output_norm: str = ""
    #: Queries, keys and values: three tensors, or one.
    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    #: Gate and up: two tensors, or one.
    gate_up: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    #: Of a mixture: the module that holds router and experts, and an expert's gate, up and down.
    mixture: str = "mlp"
    expert: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    router: str = "gate"
    #: The corrections of experts' scores, and the network of all tokens and its gate.
    correction: str = "mlp.gate.e_score_correction_bias"
    #: Whether the corrections are stored as a matrix of one row.
    correction_is_row: bool = False
    shared: str = "mlp.shared_experts"
    shared_gate: str = "mlp.shared_expert_gate"
    #: Whether all experts are stored together, transposed, with gate and up in turns.
    joins_experts: bool = False
    #: All experts' gates and ups, and their downs, if they are stored together as they are used.
    stacked_experts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture."""

    #: Reads the fields of `ModelConfig` that differ from `_common`.
    features: Callable[[HfConfig], dict[str, Any]]
    names: WeightNames = field(default_factory=WeightNames)
    #: Whether its models may rotate only a part of each head.
    partial_rotary: bool = False


def head_dim_of(config: HfConfig) -> int:
    """Return the numbers of a head; without `head_dim`, or with null, heads share the hidden state.

    Raises:
        KeyError: a required value is missing.
    """
    own = config.get("head_dim")
    return int(own or int(config["hidden_size"]) // int(config["num_attention_heads"]))


def activation(config: HfConfig, key: str) -> Activation:
    """Return our name of an activation.

    Raises:
        UnsupportedModelError: it is not computed here.
    """
    name = config.get(key)
    if name not in _ACTIVATIONS:
        raise UnsupportedModelError(
            f"its {key} is {name!r}; only {' and '.join(map(repr, _ACTIVATIONS))} are supported"
        )
    return _ACTIVATIONS[name]


def layers(
    config: HfConfig,
    windows: list[int | None],
    sparse: Callable[[int], bool] = lambda index: False,
) -> tuple[LayerConfig, ...]:
    """Return layers that share one rotation."""
    rope = read_rope(config)
    return tuple(
        LayerConfig(AttentionConfig(rope, window), sparse(index))
        for index, window in enumerate(windows)
    )


def same_window(config: HfConfig, window: int | None) -> list[int | None]:
    """Return the same window for every layer."""
    return [window] * int(config["num_hidden_layers"])


def windows_by_type(config: HfConfig) -> list[int | None]:
    """Read the windows of layers that are "full_attention" or "sliding_attention"."""
    windows: list[int | None] = []
    for layer_type in config["layer_types"]:
        if layer_type not in ("full_attention", "sliding_attention"):
            raise UnsupportedModelError(
                f"it has {layer_type!r} layers; only 'full_attention' and 'sliding_attention' are "
                "supported"
            )
        windows.append(config["sliding_window"] if layer_type == "sliding_attention" else None)
    return windows


def layers_by_type(config: HfConfig) -> tuple[LayerConfig, ...]:
    """Return layers with a rotation of their own for each type, and windows by type."""
    layer_types = list(config["layer_types"])
    ropes = {layer_type: read_rope(config, layer_type) for layer_type in set(layer_types)}
    return tuple(
        LayerConfig(AttentionConfig(ropes[layer_type], window))
        for layer_type, window in zip(layer_types, windows_by_type(config), strict=True)
    )
