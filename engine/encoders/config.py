"""The sizes and features of an encoder, read from config.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from batchmill.engine.errors import ModelLoadError, UnsupportedModelError
from batchmill.engine.model_shape import ModelShape

_HEAD: Final = "ForSequenceClassification"
_ACTIVATIONS: Final = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


@dataclass(frozen=True, slots=True)
class EncoderFamily:
    """How an architecture numbers positions and names its parts."""

    #: Prefix of its tensors in a model with a head.
    prefix: str
    #: Whether position 0 is stored after the padding's.
    offsets_positions: bool = False
    #: Whether tokens of a pair's two texts have different embeddings.
    has_token_types: bool = True
    #: Whether attention adds a learned bias for each distance.
    has_relative_bias: bool = False
    #: Names of queries, keys and values, of the attention's output and of its norm in a layer.
    qkv: tuple[str, str, str] = (
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
    )
    output: str = "attention.output.dense"
    attention_norm: str = "attention.output.LayerNorm"
    #: The dense layer of the classification head, and its last layer.
    head_dense: str = "classifier.dense"
    head_output: str = "classifier.out_proj"


_ROBERTA: Final = EncoderFamily("roberta", offsets_positions=True)
#: By the stem of Hugging Face's class names.
FAMILIES: Final[Mapping[str, EncoderFamily]] = {
    "Bert": EncoderFamily("bert", head_dense="bert.pooler.dense", head_output="classifier"),
    "Roberta": _ROBERTA,
    "XLMRoberta": _ROBERTA,
    "Camembert": _ROBERTA,
    "MPNet": EncoderFamily(
        "mpnet",
        offsets_positions=True,
        has_token_types=False,
        has_relative_bias=True,
        qkv=("attention.attn.q", "attention.attn.k", "attention.attn.v"),
        output="attention.attn.o",
        attention_norm="attention.LayerNorm",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig(ModelShape):
    """Sizes and features of an encoder; it has no KV cache, so no layers with one."""

    family: EncoderFamily
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_heads: int
    layer_norm_eps: float
    activation: str
    #: Rows of the stored positions, those before the first one included.
    num_positions: int
    first_position: int
    num_token_types: int
    num_buckets: int
    #: Outputs of its classification head; 0 if it has none.
    num_labels: int


def encoder_family(config: Mapping[str, Any]) -> str | None:
    """Return the stem of an encoder's architecture; None for any other model."""
    names: Sequence[str] = config.get("architectures") or ()
    for name in names:
        stem = name.removesuffix(_HEAD)
        if stem == name and name.endswith("Model"):
            stem = name.removesuffix("Model")
        if stem != name and stem in FAMILIES:
            return stem
    return None


def read_encoder_config(config: Mapping[str, Any]) -> EncoderConfig:
    """Read the configuration of an encoder, `PreTrainedConfig.to_dict()`.

    Raises:
        UnsupportedModelError: a feature is not computed here.
        ModelLoadError: a value that every encoder has is missing.
    """
    stem = encoder_family(config)
    assert stem is not None, "the caller has asked encoder_family"
    architecture = next(name for name in config["architectures"] if name.startswith(stem))
    _refuse_features(config, architecture)
    try:
        return _read(config, architecture, FAMILIES[stem])
    except KeyError as error:
        raise ModelLoadError(
            f"the config.json of this {architecture} lacks {error.args[0]!r}: download the "
            "model again"
        ) from error


def _read(config: Mapping[str, Any], architecture: str, family: EncoderFamily) -> EncoderConfig:
    num_positions = int(config["max_position_embeddings"])
    first = int(config.get("pad_token_id") or 0) + 1 if family.offsets_positions else 0
    labels = len(config.get("id2label") or {}) if architecture.endswith(_HEAD) else 0
    hidden = int(config["hidden_size"])
    return EncoderConfig(
        architecture=architecture,
        vocab_size=int(config["vocab_size"]),
        num_layers=0,
        num_kv_heads=0,
        head_dim=0,
        max_position_embeddings=num_positions - first,
        generates=False,
        state_size=hidden,
        family=family,
        hidden_size=hidden,
        intermediate_size=int(config["intermediate_size"]),
        num_hidden_layers=int(config["num_hidden_layers"]),
        num_heads=int(config["num_attention_heads"]),
        layer_norm_eps=float(config["layer_norm_eps"]),
        activation=_ACTIVATIONS[config["hidden_act"]],
        num_positions=num_positions,
        first_position=first,
        num_token_types=int(config["type_vocab_size"]) if family.has_token_types else 0,
        num_buckets=int(config["relative_attention_num_buckets"])
        if family.has_relative_bias
        else 0,
        num_labels=labels,
    )


def _refuse_features(config: Mapping[str, Any], architecture: str) -> None:
    problem = None
    if config.get("hidden_act") not in _ACTIVATIONS:
        problem = f"its hidden_act is {config.get('hidden_act')!r}"
    elif config.get("position_embedding_type") not in (None, "absolute"):
        problem = f"its position_embedding_type is {config['position_embedding_type']!r}"
    elif config.get("is_decoder"):
        problem = "it is a decoder (is_decoder is true)"
    elif config.get("auto_map"):
        problem = "it needs code of its own (auto_map)"
    if problem is not None:
        raise UnsupportedModelError(f"this {architecture} cannot be served: {problem}")
