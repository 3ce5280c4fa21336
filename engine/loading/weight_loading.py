"""Reads a decoder's weights: copies each stored tensor to its place in a fused matrix."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from batchmill.engine.errors import ModelLoadError, UnsupportedModelError
from batchmill.engine.models.families import FAMILIES, family_name
from batchmill.engine.models.family import WeightNames
from batchmill.engine.models.fp8_matrices import Fp8Matrices
from batchmill.engine.models.interleaved_rope import reorder_heads
from batchmill.engine.models.model_config import ModelConfig
from batchmill.engine.models.shard import Shard
from batchmill.engine.models.stored_groups import StoredGroups
from batchmill.engine.models.surplus_weights import StoredTensor, check_surplus
from batchmill.engine.models.weight_files import OnProgress
from batchmill.engine.models.weights import (
    DecoderWeights,
    DenseWeights,
    ExpertWeights,
    LayerWeights,
    Matrix,
    StackedMatrices,
    allocate_weights,
    allocated,
)
from batchmill.kernels.ops.fp8_weight import Fp8Weight
from batchmill.kernels.ops.grouped_weight import GroupedWeight

from .quantized.checkpoint import Checkpoint
from .quantized.scheme import Scheme
from .stored_names import EMBEDDING, HEAD, SCORE, own_names
from .weight_cutter import WeightCutter

#: Ends of the names of tensors whose last dimension has gate and up in turns.
_IN_TURNS = (".experts.gate_up_proj", ".experts.gate_up_proj_bias")


def load_weights(
    folder: Path,
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device | str,
    on_progress: OnProgress | None = None,
    *,
    layer_device: torch.device | str | None = None,
    scheme: Scheme | None = None,
    shard: Shard | None = None,
    keeps_groups: bool = False,
    in_fp8: bool = False,
) -> DecoderWeights:
    """Read the weights in a Hugging Face folder, from one file or several.

    Memory peaks at the weights in `dtype` plus the part of a file that `stream_tensors` maps, and
    one more weight if it is unpacked.

    Args:
        folder: Contains the safetensors.
        config: Sizes and features, those of the shard if there is one.
        dtype: Of the result.
        device: Of the result.
        on_progress: Called after every tensor; None logs the progress every few seconds.
        layer_device: Of the layers; None is `device`.
        scheme: The quantized format that weights are stored in; None if they are dense.
        shard: The part to read; None reads all.
        keeps_groups: Keep the integers of weights that are stored in groups of 4 bits, if there is
            a scheme.
        in_fp8: Quantize the layers' matrices to fp8 as they are read, on `device`, or keep them so
            if they are stored so. Then the matrices that are stored dense stay dense.

    Raises:
        ModelLoadError: there are no safetensors, or they do not hold this model's weights.
        UnsupportedModelError: none of the scheme's weights have integers to keep.
    """
    weights = allocate_weights(config, dtype, device, layer_device=layer_device)
    missing = _places(config, weights)
    cutter = None if shard is None else WeightCutter(shard)
    if shard is not None:  # the last ranks may have fewer tokens than rows
        for name in missing.keys() & {EMBEDDING, HEAD}:
            missing[name] = missing[name][: len(shard.token_ids)]
    checkpoint = Checkpoint(folder, scheme)
    groups = _stored_groups(checkpoint) if keeps_groups else None
    keeps_fp8 = in_fp8 and checkpoint.has_fp8
    quantized = Fp8Matrices(weights, device) if in_fp8 else None
    names = own_names(checkpoint.names, is_tied=config.tie_word_embeddings)
    _check_names(folder, config, checkpoint.names, names, missing)
    surplus = {name for name, own in names.items() if own not in missing}
    stream = checkpoint.stream(
        *(dtype, on_progress),
        unwanted=surplus,
        keeps_groups=groups is not None,
        keeps_fp8=keeps_fp8,
    )
    for name, value, path in stream:
        if names[name] in missing:
            own = names[name]
            part = value if cutter is None else cutter.cut(own, _dense(value))
            if isinstance(part, Tensor) and own.endswith(_IN_TURNS):
                part = part.unflatten(-1, (-1, 2))
            place = missing.pop(own)
            _check(place, name, part, path)
            # Those who quantized the other matrices to fp8 left this one out.
            is_left_out = keeps_fp8 and not checkpoint.is_packed(name)
            if quantized is None or not quantized.put(place, _plain(part), keeps_dense=is_left_out):
                _fill(place, part, groups)
    if missing:
        raise ModelLoadError(
            f"{folder} lacks {len(missing)} weights of a {config.architecture}, among them "
            f"{min(missing)}: the download may be incomplete, so download the model again"
        )
    if config.norm_offset:
        for norm in (weights.final_norm, *(n for layer in weights.layers for n in layer.norms)):
            norm += 1
    owner = groups or quantized
    return reorder_heads(weights if owner is None else owner.put_into(weights), config)


def _stored_groups(checkpoint: Checkpoint) -> StoredGroups | None:
    """Return where to keep integers; None if the weights are stored dense."""
    if checkpoint.scheme is None:
        return None
    if not checkpoint.has_groups:
        raise UnsupportedModelError(
            f"quantization is 'int4', but this model's weights are in {checkpoint.scheme.name} "
            "without integers of 4 bits in groups: set quantization to 'int8', or leave it out"
        )
    return StoredGroups()


def _check_names(
    folder: Path,
    config: ModelConfig,
    stored: Mapping[str, Path],
    names: Mapping[str, str],
    places: Collection[str],
) -> None:
    """Refuse two tensors for one place, and tensors without a place that would change the output.

    Args:
        folder: For messages.
        config: Sizes and features.
        stored: The file of each stored tensor.
        names: Our name of each stored tensor.
        places: The names that the model needs.
    """
    taken: dict[str, str] = {}
    for name, own in names.items():
        if own in places and taken.setdefault(own, name) != name:
            raise ModelLoadError(
                f"{folder} holds {name} and {taken[own]}, which are one weight of this model: "
                "check that the folder holds the files of one model"
            )
    copies = set() if config.has_own_head else {HEAD}
    surplus = {
        own: StoredTensor(stored[name], name)
        for name, own in names.items()
        if own not in places and name not in copies
    }
    # The output layer of a tied model has no tensor of its own, but a bias would still be its own.
    check_surplus(surplus, {*places, HEAD} if config.generates else places)


def _check(place: Tensor, name: str, value: Matrix, path: Path) -> None:
    """Refuse a stored tensor whose shape or type is not that of its place."""
    if place.shape != value.shape:
        raise ModelLoadError(
            f"{name} in {path} has shape {list(value.shape)}, but config.json requires "
            f"{list(place.shape)}: use the config.json that came with these weights"
        )
    if isinstance(value, Tensor) and (not value.is_floating_point() or value.itemsize < 2):
        raise ModelLoadError(
            f"{name} in {path} is {value.dtype}, but neither a scale that belongs to it nor "
            "quantization_config in config.json says which numbers these are: download the model "
            "again, or use its weights in bfloat16, float16 or float32"
        )


def _fill(place: Tensor, value: Matrix, groups: StoredGroups | None) -> None:
    """Copy a stored tensor to its place, or keep its integers for it."""
    if isinstance(value, GroupedWeight):
        assert groups is not None, "the checkpoint was asked to keep integers"
        groups.keep(place, value)
        return
    place.copy_(value.dense() if isinstance(value, Fp8Weight) else value)


def _plain(value: Matrix) -> Tensor | Fp8Weight:
    assert not isinstance(value, GroupedWeight), "the checkpoint was not asked to keep integers"
    return value


def _dense(value: Matrix) -> Tensor:
    assert isinstance(value, Tensor), "the weights of a shard are unpacked"
    return value


def _places(config: ModelConfig, weights: DecoderWeights) -> dict[str, Tensor]:
    """Return the place of each stored tensor, by its Hugging Face name."""
    places = {
        EMBEDDING: weights.embedding,
        "model.norm.weight": weights.final_norm,
    }
    if config.has_own_head:
        places[HEAD] = allocated(weights.head)
    if weights.score is not None:
        places[SCORE] = weights.score
    names = FAMILIES[family_name(config.architecture)].names
    for index, layer in enumerate(weights.layers):
        for name, place in _layer_places(config, names, layer):
            if place is not None:
                places[f"model.layers.{index}.{name}"] = place
    return places


def _layer_places(
    config: ModelConfig, names: WeightNames, layer: LayerWeights
) -> Iterator[tuple[str, Tensor | None]]:
    """Yield the place of each tensor of a layer; a fused matrix has several."""
    q_size = config.num_heads * config.head_dim
    kv_size = config.num_kv_heads * config.head_dim
    yield "input_layernorm.weight", layer.input_norm
    yield f"{names.qk_norms[0]}.weight", layer.q_norm
    yield f"{names.qk_norms[1]}.weight", layer.k_norm
    yield "self_attn.sinks", layer.sinks
    yield "self_attn.o_proj.weight", allocated(layer.output)
    yield "self_attn.o_proj.bias", layer.output_bias
    yield f"{names.attention_output_norm}.weight", layer.attention_output_norm
    yield f"{names.post_attention_norm}.weight", layer.post_attention_norm
    yield f"{names.feed_forward_output_norm}.weight", layer.feed_forward_output_norm
    sizes = [q_size, kv_size, kv_size]
    yield from _parts(names.qkv, "weight", allocated(layer.qkv), sizes)
    yield from _parts(names.qkv, "bias", layer.qkv_bias, sizes)
    if isinstance(layer.feed_forward, DenseWeights):
        yield from _dense_places(names, layer.feed_forward)
    else:
        yield from _expert_places(names, layer.feed_forward)


def _dense_places(names: WeightNames, weights: DenseWeights) -> Iterator[tuple[str, Tensor | None]]:
    yield "mlp.down_proj.weight", allocated(weights.down)
    yield "mlp.down_proj.bias", weights.down_bias
    gate_up = allocated(weights.gate_up)
    sizes = [len(gate_up) // 2] * 2
    yield from _parts(names.gate_up, "weight", gate_up, sizes)
    yield from _parts(names.gate_up, "bias", weights.gate_up_bias, sizes)


def _expert_places(
    names: WeightNames, weights: ExpertWeights
) -> Iterator[tuple[str, Tensor | None]]:
    yield f"{names.mixture}.{names.router}.weight", weights.router
    yield f"{names.mixture}.{names.router}.bias", weights.router_bias
    correction = weights.correction
    if correction is not None and names.correction_is_row:
        correction = correction[None]
    yield names.correction, correction
    yield f"{names.shared_gate}.weight", weights.shared_gate
    if weights.shared is not None:
        yield from _shared_places(names.shared, weights.shared)
    if names.joins_experts:
        yield from _joined_places(f"{names.mixture}.experts", weights)
        return
    if names.stacked_experts:
        gate_up_name, down_name = names.stacked_experts
        yield f"{names.mixture}.{gate_up_name}.weight", _stacked(weights.gate_up)
        yield f"{names.mixture}.{down_name}.weight", _stacked(weights.down)
        return
    gate_ups, downs = weights.of_experts(weights.gate_up), weights.of_experts(weights.down)
    for index, (gate_up, down) in enumerate(zip(gate_ups, downs, strict=True)):
        parts = (*allocated(gate_up).chunk(2), allocated(down))
        for name, part in zip(names.expert, parts, strict=True):
            yield f"{names.mixture}.experts.{index}.{name}.weight", part


def _shared_places(prefix: str, weights: DenseWeights) -> Iterator[tuple[str, Tensor | None]]:
    yield f"{prefix}.down_proj.weight", allocated(weights.down)
    yield f"{prefix}.down_proj.bias", weights.down_bias
    gate_up, names = allocated(weights.gate_up), (f"{prefix}.gate_proj", f"{prefix}.up_proj")
    sizes = [len(gate_up) // 2] * 2
    yield from _parts(names, "weight", gate_up, sizes)
    yield from _parts(names, "bias", weights.gate_up_bias, sizes)


def _stacked(matrices: StackedMatrices) -> Tensor:
    assert isinstance(matrices, Tensor), "allocate_weights has stacked them"
    return matrices


def _joined_places(prefix: str, weights: ExpertWeights) -> Iterator[tuple[str, Tensor | None]]:
    """Yield the places of experts that are stored together; see `WeightNames.joins_experts`."""
    gate_up, down = weights.gate_up, weights.down
    assert isinstance(gate_up, Tensor), "allocate_weights has stacked them"
    assert isinstance(down, Tensor), "allocate_weights has stacked them"
    # [experts, gate and up, inner, hidden] as [experts, hidden, inner, gate and up].
    yield f"{prefix}.gate_up_proj", gate_up.unflatten(1, (2, -1)).permute(0, 3, 2, 1)
    yield f"{prefix}.down_proj", down.transpose(1, 2)
    if weights.gate_up_bias is not None:
        bias = weights.gate_up_bias.unflatten(1, (2, -1)).transpose(1, 2)
        yield f"{prefix}.gate_up_proj_bias", bias
    yield f"{prefix}.down_proj_bias", weights.down_bias


def _parts(
    names: tuple[str, ...], kind: str, fused: Tensor | None, sizes: list[int]
) -> Iterator[tuple[str, Tensor]]:
    """Yield the rows of a fused matrix or bias that each stored tensor fills."""
    if fused is not None:
        parts = torch.split(fused, sizes) if len(names) > 1 else (fused,)
        for name, part in zip(names, parts, strict=True):
            yield f"{name}.{kind}", part
