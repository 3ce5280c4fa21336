"""AWQ: integers of 4 bits along the outputs, with a scale and a zero point for a group of inputs.

Source: AWQ, Lin et al. 2023; the layout is that of the package AutoAWQ, version "gemm".
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

import torch
from torch import Tensor

from .bits import unpack_nibbles
from .dense import Tiles
from .integers import StoredIntegers
from .module import Layout, StoredModule
from .scheme import Settings, choose, group_size

_WEIGHT, _ZEROS, _SCALES = ".qweight", ".qzeros", ".scales"
_BITS: Final = 4
#: Outputs of a word, and where in it each of them is.
_PER_WORD: Final = 8
_PLACES: Final = (0, 4, 1, 5, 2, 6, 3, 7)


class Awq:
    """Weights of AWQ."""

    name: Final = "AWQ"
    parts: Final = (_WEIGHT, _ZEROS, _SCALES)
    ignored_parts: Final[tuple[str, ...]] = ()

    def __init__(self, settings: Settings) -> None:
        """Read the settings, under their names in config.json or those of AutoAWQ.

        Raises:
            UnsupportedModelError: the weights are stored in a way that is not read.
            ModelLoadError: the settings are broken.
        """
        choose(self.name, {"bits": _either(settings, "bits", "w_bit")}, "bits", (_BITS,))
        version = str(_either(settings, "version", "format") or "gemm").lower()
        choose(self.name, {"version": version}, "version", ("gemm",))
        size = {"group_size": _either(settings, "group_size", "q_group_size")}
        self._group_size = group_size(self.name, size)
        has_zeros = settings.get("zero_point") is not False
        self._needed = (_WEIGHT, _SCALES, _ZEROS) if has_zeros else (_WEIGHT, _SCALES)

    def layout(self, module: str, stored: Collection[str]) -> Layout | None:
        """Return how a weight is stored; see `Scheme`."""
        return Layout(
            lambda module, dtype: self._read(module).dense(dtype),
            self._needed,
            keep=lambda module, dtype: self._read(module).grouped(dtype),
        )

    def _read(self, module: StoredModule) -> StoredIntegers:
        """Read a weight that is stored as [in, out]."""
        packed = module.take(_WEIGHT, (torch.int32,), None, None)
        num_inputs, num_outputs = len(packed), packed.shape[1] * _PER_WORD
        size = self._group_size or num_inputs
        if num_inputs % size:
            raise module.error(
                _WEIGHT,
                f"has {num_inputs} inputs, but the group_size in config.json is {size}, which must "
                "divide them",
                "use the config.json that came with these weights",
            )
        tiles = Tiles.of(1, size, num_inputs)
        scales = module.take(_SCALES, (), num_inputs // size, num_outputs).T.float()
        if module.has(_ZEROS):
            stored = module.take(_ZEROS, (torch.int32,), num_inputs // size, packed.shape[1])
            zeros = _outputs(stored).float()
        else:
            zeros = torch.full_like(scales, 1 << (_BITS - 1))

        def rows_of(rows: slice) -> Tensor:
            words = slice(rows.start // _PER_WORD, -(-rows.stop // _PER_WORD))
            return _outputs(packed[:, words])

        return StoredIntegers(
            shape=(num_outputs, num_inputs),
            bits=_BITS,
            rows_of=rows_of,
            tiles=tiles,
            scales=scales,
            zeros=zeros,
        )


def _outputs(words: Tensor) -> Tensor:
    """Return the integers of words [inputs, n], [8 * n, inputs] uint8."""
    nibbles = unpack_nibbles(words.contiguous().view(torch.uint8))
    outputs: Tensor = nibbles.unflatten(1, (-1, _PER_WORD))[..., _PLACES]
    return outputs.flatten(1).T


def _either(settings: Settings, name: str, other: str) -> Any:
    return settings[name] if settings.get(name) is not None else settings.get(other)
