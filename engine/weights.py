"""Weight tensors of a decoder, and reading them from safetensors files without a second copy."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import ModelLoadError
from .model_config import ModelConfig


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer; matrices are [out, in] as in `torch.nn.functional.linear`.

    Attributes:
        input_norm: [hidden].
        qkv: [(num_heads + 2 * num_kv_heads) * head_dim, hidden]: queries, keys, values.
        qkv_bias: Its bias, or None.
        q_norm: [head_dim], or None where queries are not normalised.
        k_norm: As `q_norm`, for keys.
        output: [hidden, num_heads * head_dim].
        output_bias: Its bias, or None.
        post_attention_norm: [hidden].
        gate_up: [2 * intermediate, hidden]: gate, then up.
        gate_up_bias: Its bias, or None.
        down: [hidden, intermediate].
        down_bias: Its bias, or None.
    """

    input_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    output: Tensor
    output_bias: Tensor | None
    post_attention_norm: Tensor
    gate_up: Tensor
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """All weights of a decoder.

    Attributes:
        embedding: [vocab_size, hidden].
        layers: One entry a layer.
        final_norm: [hidden].
        head: [vocab_size, hidden]; the embedding itself where they are tied.
    """

    embedding: Tensor
    layers: tuple[LayerWeights, ...]
    final_norm: Tensor
    head: Tensor


def allocate_weights(
    config: ModelConfig, dtype: torch.dtype, device: torch.device | str
) -> DecoderWeights:
    """Weights of the right shapes with arbitrary contents."""

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    def bias(wanted: bool, size: int) -> Tensor | None:
        return empty(size) if wanted else None

    hidden, inner = config.hidden_size, config.intermediate_size
    qkv_size = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    layers = tuple(
        LayerWeights(
            input_norm=empty(hidden),
            qkv=empty(qkv_size, hidden),
            qkv_bias=bias(config.qkv_bias, qkv_size),
            q_norm=bias(config.qk_norm, config.head_dim),
            k_norm=bias(config.qk_norm, config.head_dim),
            output=empty(hidden, config.num_heads * config.head_dim),
            output_bias=bias(config.output_bias, hidden),
            post_attention_norm=empty(hidden),
            gate_up=empty(2 * inner, hidden),
            gate_up_bias=bias(config.mlp_bias, 2 * inner),
            down=empty(hidden, inner),
            down_bias=bias(config.mlp_bias, hidden),
        )
        for _ in range(config.num_layers)
    )
    embedding = empty(config.vocab_size, hidden)
    head = embedding if config.tie_word_embeddings else empty(config.vocab_size, hidden)
    return DecoderWeights(embedding, layers, empty(hidden), head)


def load_weights(
    folder: Path, config: ModelConfig, dtype: torch.dtype, device: torch.device | str
) -> DecoderWeights:
    """Read a Hugging Face folder's weights, each straight into its place in a fused matrix.

    Files are mapped, not read whole, so the peak is the weights in `dtype` plus one tensor.

    Raises:
        ModelLoadError: there are no safetensors, or they do not hold this model's weights.
    """
    weights = allocate_weights(config, dtype, device)
    missing = _places(config, weights)
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                for name in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                    if not _is_ignored(name, config):
                        _fill(missing, name, file.get_tensor(name), path)
        except (SafetensorError, OSError) as error:
            raise ModelLoadError(
                f"{path} cannot be read ({error}): fetch or convert it again"
            ) from error
    if missing:
        raise ModelLoadError(
            f"{folder} lacks {len(missing)} weights of a {config.architecture}, among them "
            f"{min(missing)}: is the download complete?"
        )
    return weights


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up a model.

    Raises:
        ModelLoadError: there are none, or one that the index names is missing.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    else:
        names = ["model.safetensors"]
    paths = [folder / name for name in names]
    for path in paths:
        if not path.is_file():
            raise ModelLoadError(
                f"{path} does not exist: the folder must hold the model's weights as safetensors"
            )
    return paths


def _fill(missing: dict[str, Tensor], name: str, value: Tensor, path: Path) -> None:
    """Copy one stored tensor into its place, which is then no longer missing."""
    place = missing.pop(name, None)
    if place is None:
        raise ModelLoadError(f"{path} holds {name}, which this model does not have, or has twice")
    if place.shape != value.shape:
        raise ModelLoadError(
            f"{name} in {path} is {list(value.shape)}, config.json says {list(place.shape)}"
        )
    place.copy_(value)


def _is_ignored(name: str, config: ModelConfig) -> bool:
    """Whether a stored tensor is computed here, or is a copy of another."""
    tied_head = config.tie_word_embeddings and name == "lm_head.weight"
    return tied_head or name.endswith("rotary_emb.inv_freq")


def _places(config: ModelConfig, weights: DecoderWeights) -> dict[str, Tensor]:
    """Where each stored tensor goes, by its Hugging Face name."""
    places = {
        "model.embed_tokens.weight": weights.embedding,
        "model.norm.weight": weights.final_norm,
    }
    if not config.tie_word_embeddings:
        places["lm_head.weight"] = weights.head
    for index, layer in enumerate(weights.layers):
        for name, place in _layer_places(config, layer).items():
            if place is not None:
                places[f"model.layers.{index}.{name}"] = place
    return places


def _layer_places(config: ModelConfig, layer: LayerWeights) -> dict[str, Tensor | None]:
    """Where one layer's tensors go; fused matrices are filled part by part."""
    q_size = config.num_heads * config.head_dim
    kv_size = config.num_kv_heads * config.head_dim
    places: dict[str, Tensor | None] = {
        "input_layernorm.weight": layer.input_norm,
        "self_attn.q_norm.weight": layer.q_norm,
        "self_attn.k_norm.weight": layer.k_norm,
        "self_attn.o_proj.weight": layer.output,
        "self_attn.o_proj.bias": layer.output_bias,
        "post_attention_layernorm.weight": layer.post_attention_norm,
        "mlp.down_proj.weight": layer.down,
        "mlp.down_proj.bias": layer.down_bias,
    }
    for kind, qkv, gate_up in (
        ("weight", layer.qkv, layer.gate_up),
        ("bias", layer.qkv_bias, layer.gate_up_bias),
    ):
        if qkv is not None:
            parts = torch.split(qkv, [q_size, kv_size, kv_size])
            for name, part in zip("qkv", parts, strict=True):
                places[f"self_attn.{name}_proj.{kind}"] = part
        if gate_up is not None:
            for name, part in zip(("gate", "up"), gate_up.chunk(2), strict=True):
                places[f"mlp.{name}_proj.{kind}"] = part
    return places
