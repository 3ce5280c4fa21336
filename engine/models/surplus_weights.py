"""Stored tensors that a model does not need: ignored, or refused because they would matter.

transformers ignores all of them with a warning. So do we with tensors that only training or other
programs use; but a tensor that would change the output if the model used it is refused by name,
because then config.json does not describe the checkpoint.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from safetensors import safe_open

from batchmill.engine.errors import ModelLoadError

#: Modules of pictures and sounds, which `engine/media` reads.
_TOWERS: Final = frozenset(
    {"vision_model", "connector", "visual", "audio_tower", "multi_modal_projector"}
)
#: Buffers that we compute, or that only quantized KV caches use.
_BUFFERS: Final = (
    *(".rotary_emb.inv_freq", ".rotary_emb.cos_cached", ".rotary_emb.sin_cached"),
    *(".attn.bias", ".attn.masked_bias", ".self_attn.bias", ".self_attn.masked_bias"),
    *(".attention.bias", ".attention.masked_bias"),
    *(".position_ids", ".k_scale", ".v_scale", ".kv_scale"),
)
_MAX_NAMED: Final = 3

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a file, and its name there."""

    path: Path
    name: str

    def __str__(self) -> str:
        return f"{self.path} holds {self.name}"

    @property
    def is_zero(self) -> bool:
        """Whether it holds nothing but zeros."""
        with safe_open(self.path, framework="pt", device="cpu") as file:
            return not bool(file.get_tensor(self.name).any())

    @property
    def is_empty(self) -> bool:
        """Whether it holds no numbers, as the weights of a network of size 0."""
        with safe_open(self.path, framework="pt", device="cpu") as file:
            return 0 in file.get_slice(self.name).get_shape()


def check_surplus(surplus: Mapping[str, StoredTensor], needed: Collection[str]) -> None:
    """Refuse stored tensors that would change the output if the model used them; log the others.

    Args:
        surplus: Tensors that the model does not need, by the names that it would have for them.
        needed: Names of its own tensors.

    Raises:
        ModelLoadError: config.json does not describe this checkpoint.
    """
    ignored = []
    modules = {name.rpartition(".")[0] for name in needed}
    for name, tensor in sorted(surplus.items()):
        if name.endswith(_BUFFERS) or _is_of_tower(name):
            continue
        owner = _owner(name, modules)
        if owner is not None and tensor.is_empty:
            continue
        if owner is not None and not (name.endswith(".bias") and tensor.is_zero):
            raise ModelLoadError(
                f"{tensor}, but by config.json {owner} has no such weight, and the output would be "
                "wrong without it: use the config.json that came with these weights, and merge "
                "adapters into them"
            )
        ignored.append(name)
    _refuse_layers(surplus, ignored, needed)
    if ignored:
        _log.warning(
            "%d stored weights are not part of the model that config.json describes, and are "
            "ignored, among them %s",
            len(ignored),
            ", ".join(ignored[:_MAX_NAMED]),
        )


def _is_of_tower(name: str) -> bool:
    """Return whether a tensor belongs to the part of a model that takes pictures or sounds."""
    return not _TOWERS.isdisjoint(name.split(".", 2)[:2])


def _owner(name: str, modules: Collection[str]) -> str | None:
    """Return the module or the layer that we compute, and to which a tensor belongs; else None."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        if (owner := ".".join(parts[:length])) in modules:
            return owner
    layer = ".".join(parts[:3])
    is_in_layer = name.endswith(".weight") and any(
        module.startswith(f"{layer}.") for module in modules
    )
    return layer if is_in_layer else None


def _refuse_layers(
    surplus: Mapping[str, StoredTensor], ignored: Iterable[str], needed: Collection[str]
) -> None:
    """Refuse whole layers beyond those of config.json; layers of another kind are ignored."""
    layers: dict[str, set[str]] = {}
    for name in ignored:
        if name.startswith("model.layers."):
            _, _, index, rest = name.split(".", 3)
            layers.setdefault(index, set()).add(rest)
    ordinary: dict[str, set[str]] = {}
    for name in needed:
        if name.startswith("model.layers."):
            _, _, index, rest = name.split(".", 3)
            ordinary.setdefault(index, set()).add(rest)
    for index, rests in layers.items():
        if any(rests <= own for own in ordinary.values()):
            tensor = surplus[f"model.layers.{index}.{min(rests)}"]
            raise ModelLoadError(
                f"{tensor}, but by config.json the model has fewer layers (num_hidden_layers): use "
                "the config.json that came with these weights"
            )
