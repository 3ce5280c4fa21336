"""GPTQ: integers along the inputs, with a scale and a zero point for each group of inputs.

With `desc_act` the inputs of a group are not neighbours: `g_idx` says which group an input is in.

Source: GPTQ, Frantar et al. 2022; the layout is that of the packages AutoGPTQ and GPTQModel.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, NamedTuple

import torch

from .bits import num_words, unpack_bits
from .dense import Tiles
from .integers import KEPT_BITS, StoredIntegers
from .module import Layout, StoredModule
from .scheme import Settings, choose, group_size, matcher, refusal

_WEIGHT, _ZEROS, _SCALES, _INDEX = ".qweight", ".qzeros", ".scales", ".g_idx"
_BITS: Final = (2, 3, 4, 5, 6, 7, 8)
#: Version 1 stores zero points less 1.
_FORMATS: Final = {"gptq": 1, "gptq_v2": 0}
_NEGATIVE, _POSITIVE = "-:", "+:"


class _Widths(NamedTuple):
    """How the weights of some modules are stored."""

    bits: int
    group_size: int | None
    #: What is added to stored zero points.
    zero_offset: int


class Gptq:
    """Weights of GPTQ, with settings for some modules of their own (`dynamic`)."""

    name: Final = "GPTQ"
    parts: Final = (_WEIGHT, _ZEROS, _SCALES, _INDEX)
    ignored_parts: Final[tuple[str, ...]] = ()

    def __init__(self, settings: Settings) -> None:
        """Read the settings.

        Raises:
            UnsupportedModelError: the weights are stored in a way that is not read.
            ModelLoadError: the settings are broken.
        """
        stored_as = settings.get("checkpoint_format") or settings.get("format") or "gptq"
        choose(self.name, {"checkpoint_format": stored_as}, "checkpoint_format", _FORMATS)
        if settings.get("is_marlin_format"):
            raise refusal(self.name, "is_marlin_format", True, "only GPTQ's own layout is read")
        pack_dtype = settings.get("pack_dtype") or "int32"
        choose(self.name, {"pack_dtype": pack_dtype}, "pack_dtype", ("int32",))
        self._zero_offset = _FORMATS[stored_as]
        self._widths = self._read(settings)
        self._dynamic = [
            (matcher(self.name, pattern.removeprefix(_POSITIVE)), self._read({**settings, **own}))
            for pattern, own in (settings.get("dynamic") or {}).items()
            # A module that is not quantized is stored dense, which its tensors say too.
            if not pattern.startswith(_NEGATIVE)
        ]

    def layout(self, module: str, stored: Collection[str]) -> Layout | None:
        """Return how a weight is stored; see `Scheme`."""
        widths = next((own for match, own in self._dynamic if match(module)), self._widths)
        return Layout(
            lambda module, dtype: read_gptq(widths, module).dense(dtype),
            (_WEIGHT, _ZEROS, _SCALES),
            keep=(lambda module, dtype: read_gptq(widths, module).grouped(dtype))
            if widths.bits == KEPT_BITS
            else None,
        )

    def _read(self, settings: Settings) -> _Widths:
        bits = choose(self.name, settings, "bits", _BITS)
        return _Widths(bits, group_size(self.name, settings), self._zero_offset)


def read_gptq(widths: _Widths, module: StoredModule) -> StoredIntegers:
    """Read a weight that is stored as [in, out]."""
    bits = widths.bits
    packed = module.take(_WEIGHT, (torch.int32,), None, None)
    num_words_of_inputs, num_outputs = packed.shape
    tiles = _groups(widths, module, num_words_of_inputs * 32 // bits)
    num_inputs = len(tiles.column_of)
    num_groups = -(-num_inputs // (widths.group_size or num_inputs))
    if num_words(num_inputs, bits) != num_words_of_inputs:
        raise module.error(
            _WEIGHT,
            f"has {num_words_of_inputs} rows, but {num_inputs} inputs of {bits} bits, as "
            f"config.json says, are {num_words(num_inputs, bits)}",
            "use the config.json that came with these weights",
        )
    scales = module.take(_SCALES, (), num_groups, num_outputs).T.float()
    stored = module.take(_ZEROS, (torch.int32,), num_groups, num_words(num_outputs, bits))
    zeros = unpack_bits(stored, bits, num_outputs).T.int() + widths.zero_offset
    zeros = (zeros & ((1 << bits) - 1)).float()
    if int(tiles.column_of.min()) < 0 or int(tiles.column_of.max()) >= num_groups:
        raise module.error(_INDEX, f"names a group that is not one of {num_groups}")

    return StoredIntegers(
        shape=(num_outputs, num_inputs),
        bits=bits,
        rows_of=lambda rows: unpack_bits(packed[:, rows].T, bits, num_inputs),
        tiles=tiles,
        scales=scales,
        zeros=zeros,
    )


def _groups(widths: _Widths, module: StoredModule, num_inputs: int) -> Tiles:
    """Return the group of each input."""
    if module.has(_INDEX):
        index = module.take(_INDEX, (torch.int32, torch.int64), None)
        return Tiles(1, index.long())
    return Tiles.of(1, widths.group_size or num_inputs, num_inputs)
