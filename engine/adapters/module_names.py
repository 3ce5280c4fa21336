"""The names of an adapter's tensors: which module each changes, and as which factor."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from batchmill.engine.errors import AdapterError

from .peft_config import PeftConfig

_NAME = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")
#: A module of a layer: its layer, and its name there. Models that see or hear have their decoder
#: under a name of its own; the layers of their towers are not computed here.
_LAYER_MODULE = re.compile(
    r"(?:model\.)?(?:(?:text_model|language_model)\.)?(?:model\.)?layers\.(\d+)\.(.+)"
)


@dataclass(frozen=True, slots=True)
class ModuleMatrices:
    """The two matrices that change a module.

    Attributes:
        down_name: Name of the first factor's tensor, [rank, in].
        up_name: Name of the second factor's tensor, [out, rank].
        rank: Their common size.
        in_features: Columns of the module's argument.
        out_features: Columns of its result.
    """

    down_name: str
    up_name: str
    rank: int
    in_features: int
    out_features: int


def matrices_by_module(
    shapes: Mapping[str, tuple[int, ...]], config: PeftConfig
) -> dict[str, ModuleMatrices]:
    """Return the matrices of each module, by its name in the model.

    Raises:
        AdapterError: a tensor is of another kind, lacks its counterpart, or has a rank that the
            configuration does not give.
    """
    names: dict[str, dict[str, str]] = {}
    for name in shapes:
        found = _NAME.fullmatch(name)
        if found is None:
            raise AdapterError(
                f"it has the tensor {name!r}; only lora_A and lora_B of linear layers are computed"
            )
        if names.setdefault(found[1], {}).setdefault(found[2], name) != name:
            raise AdapterError(f"it has lora_{found[2]} of {found[1]} twice: save it again")
    if not names:
        raise AdapterError("it has no tensors: save it again")
    return {module: _matrices(module, pair, shapes, config) for module, pair in names.items()}


def _matrices(
    module: str,
    pair: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    config: PeftConfig,
) -> ModuleMatrices:
    if len(pair) < 2:
        raise AdapterError(f"it has only one of the two matrices of {module}: save it again")
    down, up = shapes[pair["A"]], shapes[pair["B"]]
    rank = config.rank_of(module)
    if len(down) != 2 or len(up) != 2 or down[0] != rank or up[1] != rank:
        raise AdapterError(
            f"the matrices of {module} are {list(down)} and {list(up)}, and its configuration "
            f"gives it the rank {rank}: the files do not belong together"
        )
    return ModuleMatrices(pair["A"], pair["B"], rank, down[1], up[0])


def place_of(module: str) -> tuple[int, str] | None:
    """Return the layer of a module and its name there; None if it is not in a layer."""
    found = _LAYER_MODULE.fullmatch(module)
    return None if found is None else (int(found[1]), found[2])
