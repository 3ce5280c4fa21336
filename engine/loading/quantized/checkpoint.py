"""A model's stored weights as dense tensors, whatever they are stored as."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from batchmill.engine.models.weight_files import (
    OnProgress,
    stored_names,
    stream_tensors,
    weight_files,
)
from batchmill.kernels.ops.fp8_weight import Fp8Weight, quantize_fp8_weight
from batchmill.kernels.ops.grouped_weight import GroupedWeight

from .module import Layout, StoredModule
from .scheme import Scheme


@dataclass(frozen=True, slots=True)
class _PackedWeight:
    """A weight that is stored as several tensors."""

    module: str
    layout: Layout
    #: The file of each tensor, by the ending of its name.
    paths: Mapping[str, Path]


class Checkpoint:
    """The weights in a folder, as dense tensors.

    Attributes:
        folder: Contains the safetensors.
        names: The file of each dense weight, by its name; of a packed one, that of its first part.
        scheme: What the weights are stored as; None is dense.
    """

    def __init__(self, folder: Path, scheme: Scheme | None = None) -> None:
        """Read the names of the stored tensors.

        Raises:
            ModelLoadError: a file cannot be read, or lacks a part of a weight.
        """
        self.folder = folder
        self.scheme = scheme
        self._stored = stored_names(folder)
        self._packed: dict[str, _PackedWeight] = {}
        #: The dense weight to which each tensor belongs, and the ending of the tensor's name.
        self._part_of: dict[str, tuple[str, str]] = {}
        self._ignored: set[str] = set()
        if scheme is not None:
            self._find_packed(scheme)
        self.names: dict[str, Path] = {
            name: path
            for name, path in self._stored.items()
            if name not in self._part_of and name not in self._ignored
        } | {name: next(iter(each.paths.values())) for name, each in self._packed.items()}

    def is_packed(self, name: str) -> bool:
        """Return whether a dense weight is stored in the quantized format."""
        return name in self._packed

    def stream(
        self,
        dtype: torch.dtype,
        on_progress: OnProgress | None = None,
        *,
        unwanted: Collection[str] = (),
        keeps_groups: bool = False,
        keeps_fp8: bool = False,
    ) -> Iterator[tuple[str, Tensor | GroupedWeight | Fp8Weight, Path]]:
        """Yield each weight with its name and file; it is valid until the next is requested.

        The tensors of a packed weight lie side by side in a file's sorted names, so that those of
        one weight at a time are kept.

        Args:
            dtype: Of the weights that are unpacked; others are yielded as they are stored.
            on_progress: Called after every stored tensor; None logs the progress.
            unwanted: Weights that need not be unpacked.
            keeps_groups: Yield the integers of weights of 4 bits in groups, and do not unpack them.
            keeps_fp8: Yield weights that are stored as eight-bit floats so. If their scales are of
                blocks they are quantized again, by rows.

        Raises:
            ModelLoadError: a file cannot be read, or a packed weight is damaged.
        """
        waiting: dict[str, dict[str, Tensor]] = {}
        for path, name, value in stream_tensors(weight_files(self.folder), on_progress):
            if self._stored[name] != path or name in self._ignored:
                continue
            if name not in self._part_of:
                yield name, value, path
                continue
            weight, ending = self._part_of[name]
            if weight in unwanted:
                continue
            parts = waiting.setdefault(weight, {})
            parts[ending] = value.clone()
            if len(parts) == len(self._packed[weight].paths):
                packed, tensors = self._packed[weight], waiting.pop(weight)
                own: Tensor | GroupedWeight | Fp8Weight
                if keeps_fp8:
                    own = self._keep_fp8(packed, tensors, dtype)
                elif keeps_groups:
                    own = self._keep(packed, tensors, dtype)
                else:
                    own = self._unpack(packed, tensors, dtype)
                yield weight, own, self.names[weight]

    @property
    def has_groups(self) -> bool:
        """Whether some weights are stored in 4 bits, so that their integers may be kept."""
        return any(packed.layout.keep is not None for packed in self._packed.values())

    def _keep(
        self, packed: _PackedWeight, tensors: dict[str, Tensor], dtype: torch.dtype
    ) -> Tensor | GroupedWeight:
        assert self.scheme is not None, "only a scheme has packed weights"
        module = StoredModule(self.scheme.name, packed.module, tensors, packed.paths)
        keep = packed.layout.keep
        kept = None if keep is None else keep(module, dtype)
        return packed.layout.unpack(module, dtype) if kept is None else kept

    @property
    def has_fp8(self) -> bool:
        """Whether some weights are stored as eight-bit floats."""
        return any(packed.layout.keep_fp8 is not None for packed in self._packed.values())

    def _keep_fp8(
        self, packed: _PackedWeight, tensors: dict[str, Tensor], dtype: torch.dtype
    ) -> Tensor | Fp8Weight:
        assert self.scheme is not None, "only a scheme has packed weights"
        keep = packed.layout.keep_fp8
        if keep is None:
            return self._unpack(packed, tensors, dtype)
        module = StoredModule(self.scheme.name, packed.module, tensors, packed.paths)
        kept = keep(module, dtype)
        return quantize_fp8_weight(packed.layout.unpack(module, dtype)) if kept is None else kept

    def _unpack(
        self, packed: _PackedWeight, tensors: dict[str, Tensor], dtype: torch.dtype
    ) -> Tensor:
        assert self.scheme is not None, "only a scheme has packed weights"
        module = StoredModule(self.scheme.name, packed.module, tensors, packed.paths)
        return packed.layout.unpack(module, dtype)

    def _find_packed(self, scheme: Scheme) -> None:
        """Group the stored tensors by the weights that they are parts of."""
        modules: dict[str, dict[str, Path]] = {}
        for name, path in sorted(self._stored.items()):
            ending = next((part for part in scheme.parts if name.endswith(part)), None)
            if ending is not None:
                modules.setdefault(name.removesuffix(ending), {})[ending] = path
            elif name.endswith(scheme.ignored_parts):
                self._ignored.add(name)
        for module, paths in modules.items():
            layout = scheme.layout(module, paths)
            if layout is None:
                continue
            for ending in layout.needed:
                if ending not in paths:
                    StoredModule(scheme.name, module, {}, paths).take(ending, ())
            weight = module + layout.result
            self._packed[weight] = _PackedWeight(module, layout, paths)
            for ending in paths:
                self._part_of[module + ending] = weight, ending
