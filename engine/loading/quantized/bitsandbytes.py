"""bitsandbytes: 4 bits as indexes into a table (nf4, fp4), or 8-bit integers with a scale per row.

Numbers of 4 bits are stored flat, the upper half of a byte first, with a scale for each block; the
scales may be stored in 8 bits themselves.

Source: QLoRA, Dettmers et al. 2023, section 3; LLM.int8(), Dettmers et al. 2022, section 3.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from .bits import unpack_nibbles
from .dense import Tiles, dense_weight
from .module import Layout, StoredModule
from .scheme import Settings, choose

_WEIGHT, _ROW_SCALE, _ROW_FORMAT = ".weight", ".SCB", ".weight_format"
_SCALE, _TABLE = ".weight.absmax", ".weight.quant_map"
_NESTED_SCALE, _NESTED_TABLE = ".weight.nested_absmax", ".weight.nested_quant_map"
_STATES: Final = tuple(f".weight.quant_state.bitsandbytes__{kind}" for kind in ("nf4", "fp4"))
#: Row-major, in `weight_format`.
_ROW_MAJOR: Final = 0
_INT8_MAX: Final = 127
_TABLE_SIZE: Final = 16


class BitsAndBytes:
    """Weights of bitsandbytes, in 4 or 8 bits."""

    name: Final = "bitsandbytes"
    parts: Final = (
        *(_WEIGHT, _ROW_SCALE, _ROW_FORMAT, _SCALE, _TABLE, _NESTED_SCALE, _NESTED_TABLE),
        *_STATES,
    )
    ignored_parts: Final[tuple[str, ...]] = ()

    def __init__(self, settings: Settings) -> None:
        """Read the settings; each stored weight repeats those that it needs.

        Raises:
            UnsupportedModelError: the weights are stored in a way that is not read.
        """
        if settings.get("load_in_4bit") or settings.get("_load_in_4bit"):
            choose(self.name, settings, "bnb_4bit_quant_type", ("nf4", "fp4"))

    def layout(self, module: str, stored: Collection[str]) -> Layout | None:
        """Return how a weight is stored; see `Scheme`."""
        if set(stored) == {_WEIGHT}:
            return None
        if _ROW_SCALE in stored or _ROW_FORMAT in stored:
            return Layout(_unpack_int8, (_WEIGHT, _ROW_SCALE))
        state = next((each for each in _STATES if each in stored), _STATES[0])
        return Layout(_unpack_4_bits, (_WEIGHT, state, _SCALE, _TABLE))


def _unpack_int8(module: StoredModule, dtype: torch.dtype) -> Tensor:
    stored = module.take(_WEIGHT, (torch.int8,), None, None)
    if module.has(_ROW_FORMAT) and int(module.tensors[_ROW_FORMAT]) != _ROW_MAJOR:
        raise module.error(_ROW_FORMAT, "is not 0, and only row-major weights are read")
    num_rows, num_columns = stored.shape
    scales = module.take(_ROW_SCALE, (), num_rows).float().reshape(-1, 1) / _INT8_MAX
    tiles = Tiles.of(1, num_columns, num_columns)
    return dense_weight(
        (num_rows, num_columns),
        dtype,
        lambda rows: stored[rows].float() * tiles.spread(scales, rows),
    )


@dataclass(frozen=True, slots=True)
class _State:
    """What bitsandbytes stores as JSON beside a weight of 4 bits."""

    shape: tuple[int, int]
    block_size: int
    #: Of blocks of scales, and what is added to their products; 0 if scales are stored plainly.
    nested_block_size: int
    nested_offset: float

    @classmethod
    def read(cls, module: StoredModule) -> _State:
        """Read the state.

        Raises:
            ModelLoadError: it is broken.
        """
        part = next(each for each in _STATES if module.has(each))
        stored = module.take(part, (torch.uint8,), None)
        try:
            values: dict[str, Any] = json.loads(bytes(stored.tolist()))
            num_rows, num_columns = map(int, values["shape"])
            state = cls(
                (num_rows, num_columns),
                int(values["blocksize"]),
                int(values.get("nested_blocksize") or 0),
                float(values.get("nested_offset") or 0.0),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise module.error(
                part, f"cannot be read as the state of a weight ({type(error).__name__})"
            ) from error
        if min(*state.shape, state.block_size) < 1 or state.nested_block_size < 0:
            raise module.error(part, f"says that the weight has {state}")
        return state


def _unpack_4_bits(module: StoredModule, dtype: torch.dtype) -> Tensor:
    state = _State.read(module)
    num_rows, num_columns = state.shape
    # Some are stored in another type, so that training on several devices can split them.
    stored = module.tensors[_WEIGHT].contiguous().view(torch.uint8).flatten()
    if len(stored) != -(-num_rows * num_columns // 2):
        raise module.error(
            _WEIGHT,
            f"has {len(stored)} bytes, but a weight of {list(state.shape)} in 4 bits has "
            f"{-(-num_rows * num_columns // 2)}",
        )
    table = module.take(_TABLE, (torch.float32,), _TABLE_SIZE)
    scales = _block_scales(module, state)

    def rows_of(rows: slice) -> Tensor:
        start, stop = rows.start * num_columns, rows.stop * num_columns
        halves = unpack_nibbles(stored[start // 2 : -(-stop // 2)])
        # bitsandbytes has the upper half first.
        indexes = halves.unflatten(0, (-1, 2)).flip(1).flatten()[: stop - start]
        block_of = torch.arange(start, stop) // state.block_size
        return (table[indexes.long()] * scales[block_of]).view(-1, num_columns)

    return dense_weight(state.shape, dtype, rows_of)


def _block_scales(module: StoredModule, state: _State) -> Tensor:
    """Return the scale of each block, float32."""
    num_blocks = -(-state.shape[0] * state.shape[1] // state.block_size)
    if not state.nested_block_size:
        return module.take(_SCALE, (torch.float32,), num_blocks)
    indexes = module.take(_SCALE, (torch.uint8,), num_blocks).long()
    table = module.take(_NESTED_TABLE, (torch.float32,), 256)
    outer = module.take(_NESTED_SCALE, (torch.float32,), -(-num_blocks // state.nested_block_size))
    outer_of = torch.arange(num_blocks) // state.nested_block_size
    return table[indexes] * outer[outer_of] + state.nested_offset
