"""NVIDIA's ModelOpt: 8-bit floats with one scale, and NVFP4, also mixed in one model.

Source: the package nvidia-modelopt 0.47, its `export`.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from .dense import Tiles, dense_weight
from .fp4 import unpack_fp4
from .fp8 import SCALE, WEIGHT, keep_fp8, unpack_fp8
from .module import Layout, StoredModule
from .scheme import Settings, choose

_OUTER_SCALE: Final = ".weight_scale_2"
_GROUP_SIZE: Final = 16
_FP8: Final = ("FP8", "FP8_PER_CHANNEL_PER_TOKEN")
_NVFP4: Final = ("NVFP4", "W4A16_NVFP4")
_MIXED: Final = "MIXED_PRECISION"


class ModelOpt:
    """Weights that ModelOpt has exported."""

    name: Final = "ModelOpt"
    parts: Final = (WEIGHT, SCALE, _OUTER_SCALE)
    ignored_parts: Final = (".input_scale", ".k_scale", ".v_scale", ".k_bias", ".v_bias")

    def __init__(self, settings: Settings) -> None:
        """Read the algorithms.

        Raises:
            UnsupportedModelError: the weights are stored in a way that is not read.
        """
        choose(self.name, settings, "quant_algo", (*_FP8, *_NVFP4, _MIXED))
        layers: Any = settings.get("quantized_layers") or {}
        for layer in layers.values():
            choose(self.name, layer, "quant_algo", (*_FP8, *_NVFP4))
        self._algorithms = {name: layer["quant_algo"] for name, layer in layers.items()}
        self._algorithm = settings["quant_algo"]

    def layout(self, module: str, stored: Collection[str]) -> Layout | None:
        """Return how a weight is stored; see `Scheme`."""
        if set(stored) == {WEIGHT}:
            return None
        algorithm = self._algorithms.get(module, self._algorithm)
        is_fp4 = algorithm in _NVFP4 or (algorithm == _MIXED and _OUTER_SCALE in stored)
        if is_fp4:
            return Layout(_unpack_nvfp4, (WEIGHT, SCALE, _OUTER_SCALE))
        return Layout(
            partial(unpack_fp8, scale=SCALE, block=None),
            (WEIGHT, SCALE),
            keep_fp8=partial(keep_fp8, scale=SCALE, block=None),
        )


def _unpack_nvfp4(module: StoredModule, dtype: torch.dtype) -> Tensor:
    packed = module.take(WEIGHT, (torch.uint8,), None, None)
    num_rows, num_columns = len(packed), 2 * packed.shape[1]
    if num_columns % _GROUP_SIZE:
        raise module.error(WEIGHT, f"has rows of {num_columns} numbers, not a multiple of 16")
    shape = num_rows, num_columns // _GROUP_SIZE
    scales = module.take(SCALE, (torch.float8_e4m3fn,), *shape).float()
    scales = scales * module.number(_OUTER_SCALE).float()
    tiles = Tiles.of(1, _GROUP_SIZE, num_columns)
    return dense_weight(
        (num_rows, num_columns),
        dtype,
        lambda rows: unpack_fp4(packed[rows]) * tiles.spread(scales, rows),
    )
