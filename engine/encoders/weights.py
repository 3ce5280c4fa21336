"""The weights of an encoder, read from safetensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from batchmill.engine.errors import ModelLoadError
from batchmill.engine.models.weight_files import stored_names, weight_files

from .config import EncoderConfig


@dataclass(frozen=True, slots=True)
class Affine:
    """A matrix [out, in] or a norm's factors [size], and the numbers that are added, [out]."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True, slots=True)
class EncoderLayerWeights:
    """One layer."""

    #: Queries, keys and values.
    qkv: Affine
    output: Affine
    attention_norm: Affine
    up: Affine
    down: Affine
    output_norm: Affine


@dataclass(frozen=True, slots=True)
class EncoderWeights:
    """All weights of an encoder."""

    #: [vocab_size, hidden].
    tokens: Tensor
    #: [num_positions, hidden].
    positions: Tensor
    #: [num_token_types, hidden]; None without token types.
    token_types: Tensor | None
    embedding_norm: Affine
    layers: list[EncoderLayerWeights]
    #: [num_buckets, num_heads]; None without a relative bias.
    relative_bias: Tensor | None
    #: The head's layers, if it has one.
    head_dense: Affine | None
    head_output: Affine | None


def load_encoder_weights(
    folder: Path, config: EncoderConfig, dtype: torch.dtype, device: torch.device
) -> EncoderWeights:
    """Read an encoder's weights.

    Raises:
        ModelLoadError: they are missing, have another shape, or cannot be read.
    """
    reader = _Reader(folder, config, dtype, device)
    hidden, family = config.hidden_size, config.family
    types = (config.num_token_types, hidden)
    has_head = config.num_labels > 0
    return EncoderWeights(
        tokens=reader.tensor("embeddings.word_embeddings.weight", config.vocab_size, hidden),
        positions=reader.tensor(
            "embeddings.position_embeddings.weight", config.num_positions, hidden
        ),
        token_types=reader.tensor("embeddings.token_type_embeddings.weight", *types)
        if config.num_token_types
        else None,
        embedding_norm=reader.affine("embeddings.LayerNorm", hidden),
        layers=[_layer(reader, config, index) for index in range(config.num_hidden_layers)],
        relative_bias=reader.tensor(
            "encoder.relative_attention_bias.weight", config.num_buckets, config.num_heads
        )
        if config.num_buckets
        else None,
        head_dense=reader.affine(family.head_dense, hidden, hidden) if has_head else None,
        head_output=reader.affine(family.head_output, config.num_labels, hidden)
        if has_head
        else None,
    )


def _layer(reader: _Reader, config: EncoderConfig, index: int) -> EncoderLayerWeights:
    hidden, inner, family = config.hidden_size, config.intermediate_size, config.family
    at = f"encoder.layer.{index}"
    parts = [reader.affine(f"{at}.{name}", hidden, hidden) for name in family.qkv]
    return EncoderLayerWeights(
        qkv=Affine(
            torch.cat([each.weight for each in parts]), torch.cat([each.bias for each in parts])
        ),
        output=reader.affine(f"{at}.{family.output}", hidden, hidden),
        attention_norm=reader.affine(f"{at}.{family.attention_norm}", hidden),
        up=reader.affine(f"{at}.intermediate.dense", inner, hidden),
        down=reader.affine(f"{at}.output.dense", hidden, inner),
        output_norm=reader.affine(f"{at}.output.LayerNorm", hidden),
    )


class _Reader:
    """Reads tensors by their names without the model's prefix, which a file may have or lack."""

    def __init__(
        self, folder: Path, config: EncoderConfig, dtype: torch.dtype, device: torch.device
    ) -> None:
        weight_files(folder)  # refuses pickles
        self._stored: Mapping[str, Path] = stored_names(folder)
        self._folder, self._config = folder, config
        self._dtype, self._device = dtype, device

    def tensor(self, name: str, *shape: int) -> Tensor:
        """Return a tensor of a shape."""
        stored = next((each for each in self._spellings(name) if each in self._stored), None)
        if stored is None:
            raise ModelLoadError(
                f"{self._folder} lacks {name} of a {self._config.architecture}: the download may "
                "be incomplete, so download the model again"
            )
        path = self._stored[stored]
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                found: Tensor = file.get_tensor(stored)
        except (SafetensorError, OSError) as error:
            raise ModelLoadError(f"{path} cannot be read ({error}): download it again") from error
        if found.shape != shape or not found.is_floating_point():
            raise ModelLoadError(
                f"{stored} in {path} is {found.dtype} of shape {list(found.shape)}, but "
                f"config.json requires numbers of shape {list(shape)}: use the config.json that "
                "came with these weights"
            )
        return found.to(self._device, self._dtype)

    def affine(self, name: str, *shape: int) -> Affine:
        """Return a weight of a shape and its bias."""
        return Affine(self.tensor(f"{name}.weight", *shape), self.tensor(f"{name}.bias", shape[0]))

    def _spellings(self, name: str) -> Iterable[str]:
        """Yield the names that a file may have for a tensor; old files have gamma and beta."""
        old = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        old = old.replace("LayerNorm.bias", "LayerNorm.beta")
        for each in (name, old):
            yield each
            yield f"{self._config.family.prefix}.{each}"
