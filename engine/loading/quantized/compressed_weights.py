"""The weights of compressed-tensors: the settings of a group, and how each format is unpacked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
from torch import Tensor

from batchmill.kernels.ops.fp8_weight import Fp8Weight
from batchmill.kernels.ops.grouped_weight import GroupedWeight

from .bits import num_words, unpack_bits
from .dense import Tiles, dense_weight
from .fp4 import power_of_two, unpack_fp4
from .fp8 import fp8_rows, is_block
from .integers import KEPT_BITS, StoredIntegers
from .module import Layout, StoredModule
from .scheme import Settings, choose, group_size, refusal

NAME: Final = "compressed-tensors"
PACKED, PLAIN = ".weight_packed", ".weight"
SCALE, ZERO, SHAPE = ".weight_scale", ".weight_zero_point", ".weight_shape"
GLOBAL_SCALE, GROUP_INDEX = ".weight_global_scale", ".weight_g_idx"
_INTEGER_BITS: Final = tuple(range(1, 9))
_STRATEGIES: Final = ("tensor", "channel", "group", "tensor_group", "block")


@dataclass(frozen=True, slots=True)
class WeightSettings:
    """How the weights of one group are stored."""

    format: StoredFormat
    bits: int
    is_float: bool
    strategy: str
    #: Columns that share a scale, in groups.
    group_size: int | None
    #: Rows and columns that share a scale, in blocks.
    block: tuple[int, int] | None
    is_symmetric: bool
    #: Whether the group of each column is stored.
    has_group_index: bool

    @classmethod
    def read(cls, stored_as: object, weights: Settings) -> WeightSettings:
        """Read `weights` of a group that is stored in a format.

        Raises:
            UnsupportedModelError: it is a format, type or strategy that is not read.
            ModelLoadError: a value is broken.
        """
        choose(NAME, {"format": stored_as}, "format", FORMATS)
        stored = FORMATS[str(stored_as)]
        choose(NAME, weights, "type", stored.types)
        choose(NAME, weights, "num_bits", stored.bits)
        size = group_size(NAME, weights)
        default = "tensor" if size is None else "group"
        strategy = weights.get("strategy") or default
        choose(NAME, {"strategy": strategy}, "strategy", _STRATEGIES)
        if strategy in ("group", "tensor_group") and size is None:
            raise refusal(NAME, "group_size", weights.get("group_size"), "groups need a size")
        block = weights.get("block_structure")
        if strategy == "block" and not is_block(block):
            raise refusal(NAME, "block_structure", block, "blocks need two sizes above 0")
        return cls(
            format=stored,
            bits=weights["num_bits"],
            is_float=weights["type"] == "float",
            strategy=strategy,
            group_size=size,
            block=tuple(block) if strategy == "block" and block else None,
            is_symmetric=weights.get("symmetric") is not False,
            has_group_index=weights.get("actorder") in ("group", "dynamic", True),
        )

    def layout(self) -> Layout:
        """Return how a weight with these settings is stored."""
        keep = self.format.keep if self.bits == KEPT_BITS else None
        return Layout(
            partial(self.format.unpack, self),
            self.needed,
            keep=None if keep is None else partial(keep, self),
            keep_fp8=partial(_keep_fp8, self) if self._is_plain_fp8 else None,
        )

    @property
    def _is_plain_fp8(self) -> bool:
        """Whether the weights are stored as eight-bit floats with ordinary scales."""
        return self.is_float and self.format in _PLAIN_FP8

    @property
    def needed(self) -> tuple[str, ...]:
        """The endings of the tensors that must be stored."""
        needed = self.format.needed
        if not self.is_symmetric:
            needed += (ZERO,)
        return (*needed, GROUP_INDEX) if self.has_group_index else needed

    def tiles(self, module: StoredModule, shape: tuple[int, int], part: str) -> Tiles:
        """Return which numbers share a scale.

        Args:
            module: The weight.
            shape: Of the dense weight.
            part: The stored numbers, for messages.
        """
        num_rows, num_columns = shape
        if self.strategy == "tensor":
            return Tiles.of(num_rows, num_columns, num_columns)
        if self.strategy == "channel":
            return Tiles.of(1, num_columns, num_columns)
        if self.block is not None:
            return Tiles.of(*self.block, num_columns)
        assert self.group_size is not None, "read() has checked this"
        if num_columns % self.group_size:
            raise module.error(
                part,
                f"has rows of {num_columns} numbers, but the group_size in config.json is "
                f"{self.group_size}, which must divide them",
                "use the config.json that came with these weights",
            )
        if not module.has(GROUP_INDEX):
            return Tiles.of(1, self.group_size, num_columns)
        index = module.take(GROUP_INDEX, (torch.int32, torch.int64), num_columns).long()
        if int(index.min()) < 0 or int(index.max()) >= num_columns // self.group_size:
            raise module.error(GROUP_INDEX, "names a group that does not exist")
        return Tiles(1, index)


#: Unpacks a weight into a dtype.
_Unpack = Callable[[WeightSettings, StoredModule, torch.dtype], Tensor]
#: Returns a weight's integers, see `Keep`.
_Keep = Callable[[WeightSettings, StoredModule, torch.dtype], GroupedWeight | None]


@dataclass(frozen=True, slots=True)
class StoredFormat:
    """One `format` of the package."""

    unpack: _Unpack
    #: The endings of the tensors that every weight has.
    needed: tuple[str, ...]
    types: tuple[str, ...]
    bits: tuple[int, ...]
    #: Returns the integers instead of the weight; None if the format has others than 4-bit ones.
    keep: _Keep | None = None


def _take_scales(
    module: StoredModule,
    part: str,
    tiles: Tiles,
    num_rows: int,
    dtypes: tuple[torch.dtype, ...] = (),
) -> Tensor:
    """Return a table of scales or zero points with one entry for each rectangle."""
    table = (-(-num_rows // tiles.num_rows), int(tiles.column_of.max()) + 1)
    if table == (1, 1) and module.has(part) and module.tensors[part].numel() == 1:
        return module.number(part, dtypes).reshape(1, 1)
    return module.take(part, dtypes, *table)


def _read_integers(settings: WeightSettings, module: StoredModule) -> StoredIntegers:
    """Read integers that are stored side by side, with 2^(bits - 1) added to each."""
    bits = settings.bits
    stored_shape = module.take(SHAPE, (torch.int32, torch.int64), 2).tolist()
    num_rows, num_columns = map(int, stored_shape)
    if min(num_rows, num_columns) < 1:
        raise module.error(SHAPE, f"says that the weight has shape {stored_shape}")
    packed = module.take(PACKED, (torch.int32,), num_rows, num_words(num_columns, bits))
    tiles = settings.tiles(module, (num_rows, num_columns), PACKED)
    scales = _take_scales(module, SCALE, tiles, num_rows).float()
    if settings.is_symmetric:
        zeros = torch.full_like(scales, 1 << (bits - 1))
    else:
        stored = module.take(ZERO, (torch.int32,), num_words(len(scales), bits), scales.shape[1])
        zeros = unpack_bits(stored.T, bits, len(scales)).T.float()

    return StoredIntegers(
        shape=(num_rows, num_columns),
        bits=bits,
        rows_of=lambda rows: unpack_bits(packed[rows], bits, num_columns),
        tiles=tiles,
        scales=scales,
        zeros=zeros,
    )


def _unpack_integers(settings: WeightSettings, module: StoredModule, dtype: torch.dtype) -> Tensor:
    """Unpack such integers."""
    return _read_integers(settings, module).dense(dtype)


def _keep_integers(
    settings: WeightSettings, module: StoredModule, dtype: torch.dtype
) -> GroupedWeight | None:
    """Return such integers as they are, if they can be kept."""
    return _read_integers(settings, module).grouped(dtype)


def _unpack_plain(settings: WeightSettings, module: StoredModule, dtype: torch.dtype) -> Tensor:
    """Unpack numbers of one byte each."""
    stored = module.take(PLAIN, (torch.int8, torch.float8_e4m3fn), None, None)
    num_rows, num_columns = stored.shape
    tiles = settings.tiles(module, (num_rows, num_columns), PLAIN)
    if module.has(SCALE) and module.tensors[SCALE].dtype == torch.uint8:
        scales = power_of_two(_take_scales(module, SCALE, tiles, num_rows, (torch.uint8,)))
    else:
        scales = _take_scales(module, SCALE, tiles, num_rows).float()
    zeros = None
    if not settings.is_symmetric:
        zeros = _take_scales(module, ZERO, tiles, num_rows, (torch.int8, stored.dtype)).float()

    def rows_of(rows: slice) -> Tensor:
        values = stored[rows].float()
        if zeros is not None:
            values -= tiles.spread(zeros, rows)
        return values * tiles.spread(scales, rows)

    return dense_weight((num_rows, num_columns), dtype, rows_of)


def _keep_fp8(
    settings: WeightSettings, module: StoredModule, dtype: torch.dtype
) -> Fp8Weight | None:
    """Return eight-bit floats as they are stored; None if their scales are not of rows."""
    stored = module.take(PLAIN, (torch.float8_e4m3fn,), None, None)
    num_rows, num_columns = stored.shape
    tiles = settings.tiles(module, (num_rows, num_columns), PLAIN)
    if not settings.is_symmetric:
        return None
    return fp8_rows(stored, _take_scales(module, SCALE, tiles, num_rows).float(), dtype)


def _unpack_fp4(settings: WeightSettings, module: StoredModule, dtype: torch.dtype) -> Tensor:
    """Unpack floats of 4 bits; the scales of groups are powers of two, or e4m3 over a divisor."""
    packed = module.take(PACKED, (torch.uint8,), None, None)
    num_rows, num_columns = len(packed), 2 * packed.shape[1]
    tiles = settings.tiles(module, (num_rows, num_columns), PACKED)
    if GLOBAL_SCALE in settings.needed:
        scales = _take_scales(module, SCALE, tiles, num_rows).float()
        scales = scales / module.number(GLOBAL_SCALE)
    else:
        scales = power_of_two(_take_scales(module, SCALE, tiles, num_rows, (torch.uint8,)))

    def rows_of(rows: slice) -> Tensor:
        return unpack_fp4(packed[rows]) * tiles.spread(scales, rows)

    return dense_weight((num_rows, num_columns), dtype, rows_of)


_INTEGER, _FLOAT = ("int",), ("float",)
#: By `format` in config.json.
FORMATS: Final[Mapping[str, StoredFormat]] = {
    "pack-quantized": StoredFormat(
        *(_unpack_integers, (PACKED, SCALE, SHAPE), _INTEGER, _INTEGER_BITS),
        keep=_keep_integers,
    ),
    "int-quantized": StoredFormat(_unpack_plain, (PLAIN, SCALE), _INTEGER, _INTEGER_BITS),
    "float-quantized": StoredFormat(_unpack_plain, (PLAIN, SCALE), _FLOAT, (8,)),
    "naive-quantized": StoredFormat(_unpack_plain, (PLAIN, SCALE), ("int", "float"), _INTEGER_BITS),
    "mxfp8-quantized": StoredFormat(_unpack_plain, (PLAIN, SCALE), _FLOAT, (8,)),
    "nvfp4-pack-quantized": StoredFormat(_unpack_fp4, (PACKED, SCALE, GLOBAL_SCALE), _FLOAT, (4,)),
    "mxfp4-pack-quantized": StoredFormat(_unpack_fp4, (PACKED, SCALE), _FLOAT, (4,)),
}
_PLAIN_FP8: Final = (FORMATS["float-quantized"], FORMATS["naive-quantized"])
