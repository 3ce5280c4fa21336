"""What the native decoder needs to know about a model, read from its Hugging Face configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import ModelLoadError, UnsupportedModelError

#: Architectures that the native decoder computes.
ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
#: Position scalings that it computes.
ROPE_TYPES = ("default", "linear", "llama3")


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """How positions turn into rotation angles."""

    #: Base of the wavelengths.
    theta: float
    #: One of `ROPE_TYPES`.
    rope_type: str = "default"
    #: linear, llama3: how much longer the context is than in training.
    factor: float = 1.0
    #: llama3: wavelengths above original length / this are scaled by `factor`.
    low_freq_factor: float = 1.0
    #: llama3: wavelengths below original length / this stay.
    high_freq_factor: float = 1.0
    #: llama3: context length in training, tokens.
    original_max_position_embeddings: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Sizes and features of a decoder of the Llama family."""

    #: Hugging Face class name, one of `ARCHITECTURES`.
    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    #: Numbers in one head; need not be hidden_size / num_heads.
    head_dim: int
    #: Longest sequence that the model was made for, tokens.
    max_position_embeddings: int
    rms_norm_eps: float
    rope: RopeConfig
    #: The output layer is the embedding.
    tie_word_embeddings: bool
    #: Biases of the query, key and value projections, of the attention output, and of the MLP.
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    #: Queries and keys are normalised, head by head.
    qk_norm: bool
    #: Keys that a query sees in every layer, its own included; None sees all.
    sliding_window: int | None

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> ModelConfig:
        """Read a complete Hugging Face configuration, `PretrainedConfig.to_dict()`.

        Raises:
            UnsupportedModelError: the architecture or one of its features is not computed here.
            ModelLoadError: a value that every such model has is missing.
        """
        architecture = _architecture(config)
        _refuse_unsupported(architecture, config)
        attention_bias = bool(config.get("attention_bias"))
        is_qwen2 = architecture == "Qwen2ForCausalLM"  # biases without saying so
        try:
            num_heads = int(config["num_attention_heads"])
            hidden_size = int(config["hidden_size"])
            return cls(
                architecture=architecture,
                vocab_size=int(config["vocab_size"]),
                hidden_size=hidden_size,
                intermediate_size=int(config["intermediate_size"]),
                num_layers=int(config["num_hidden_layers"]),
                num_heads=num_heads,
                num_kv_heads=int(config.get("num_key_value_heads") or num_heads),
                head_dim=int(config.get("head_dim") or hidden_size // num_heads),
                max_position_embeddings=int(config["max_position_embeddings"]),
                rms_norm_eps=float(config["rms_norm_eps"]),
                rope=_rope(architecture, config),
                tie_word_embeddings=bool(config.get("tie_word_embeddings")),
                qkv_bias=is_qwen2 or attention_bias,
                output_bias=not is_qwen2 and attention_bias,
                mlp_bias=bool(config.get("mlp_bias")),
                qk_norm=architecture == "Qwen3ForCausalLM",
                sliding_window=config.get("sliding_window"),
            )
        except KeyError as error:
            raise ModelLoadError(
                f"the configuration of this {architecture} has no {error.args[0]!r}: is its "
                "config.json complete?"
            ) from error


def _architecture(config: Mapping[str, Any]) -> str:
    """The model class that the configuration names."""
    names = config.get("architectures") or []
    for name in names:
        if name in ARCHITECTURES:
            return str(name)
    named = ", ".join(names) or f"none (model_type {config.get('model_type')!r})"
    raise UnsupportedModelError(
        f"the model's architecture is {named}; supported are {', '.join(ARCHITECTURES)}"
    )


def _refuse_unsupported(architecture: str, config: Mapping[str, Any]) -> None:
    """Name the first feature that the decoder would compute wrongly."""
    unsupported = None
    layer_types = set(config.get("layer_types") or ["full_attention"])
    quantization = config.get("quantization_config")
    if config.get("hidden_act") != "silu":
        unsupported = f"hidden_act {config.get('hidden_act')!r}; supported is 'silu'"
    elif len(layer_types) > 1:
        unsupported = f"mixed attention layers ({', '.join(sorted(layer_types))})"
    elif quantization:
        unsupported = f"quantized weights ({quantization.get('quant_method')})"
    if unsupported is not None:
        raise UnsupportedModelError(f"this {architecture} has {unsupported}")


def _rope(architecture: str, config: Mapping[str, Any]) -> RopeConfig:
    """Read the rotary embedding, in transformers 5's spelling or the older one."""
    values = config.get("rope_parameters")
    if values is None:
        values = {"rope_theta": config["rope_theta"], **(config.get("rope_scaling") or {})}
    rope_type = values.get("rope_type", "default")
    if rope_type not in ROPE_TYPES:
        raise UnsupportedModelError(
            f"this {architecture} has RoPE scaling {rope_type!r}; supported are "
            f"{', '.join(ROPE_TYPES)}"
        )
    if values.get("partial_rotary_factor", 1.0) != 1.0:
        raise UnsupportedModelError(
            f"this {architecture} has partial_rotary_factor {values['partial_rotary_factor']}; "
            "supported is 1"
        )
    theta = float(values["rope_theta"])
    if rope_type == "default":
        return RopeConfig(theta)
    if rope_type == "linear":
        return RopeConfig(theta, rope_type, factor=float(values["factor"]))
    return RopeConfig(
        theta,
        rope_type,
        factor=float(values["factor"]),
        low_freq_factor=float(values["low_freq_factor"]),
        high_freq_factor=float(values["high_freq_factor"]),
        original_max_position_embeddings=int(
            values.get("original_max_position_embeddings") or config["max_position_embeddings"]
        ),
    )
