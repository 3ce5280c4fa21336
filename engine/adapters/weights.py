"""From an adapter's files to its matrices in the layout of the decoder's products."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from safetensors import safe_open
from torch import Tensor

from batchmill.engine.errors import AdapterError
from batchmill.engine.models.adapted_layers import LoraSite
from batchmill.kernels.ops.lora import LoraWeights
from batchmill.kernels.reference.lora import LoraPair

from .digest import weights_file
from .folder import AdapterFiles
from .module_names import ModuleMatrices, place_of

#: The sites of each layer of a model.
Sites = Sequence[Sequence[LoraSite]]


@dataclass(frozen=True, slots=True)
class PlacedModule:
    """A module of an adapter, and where the decoder computes it.

    Attributes:
        name: In the model.
        matrices: What the adapter has for it.
        layer: Its layer.
        site: Its place among the sites of the layer.
        part: Its place among the parts of the site.
    """

    name: str
    matrices: ModuleMatrices
    layer: int
    site: int
    part: int


def place_modules(files: AdapterFiles, sites: Sites) -> list[PlacedModule]:
    """Find the place of each module of an adapter in a model.

    Raises:
        AdapterError: the model does not have a module, or in another size.
    """
    placed = []
    for name, matrices in files.modules.items():
        at = place_of(name)
        found = None if at is None or at[0] >= len(sites) else _site_of(at[1], sites[at[0]])
        if at is None or found is None:
            raise AdapterError(
                f"it changes {name}, where this model takes none: only the projections of attention"
                " and of dense feed-forward networks can have adapters"
            )
        site = sites[at[0]][found[0]]
        expected = (site.in_features, site.widths[found[1]])
        if (matrices.in_features, matrices.out_features) != expected:
            raise AdapterError(
                f"{name} has {matrices.in_features} inputs and {matrices.out_features} outputs in "
                f"it, and {expected[0]} and {expected[1]} in this model: it belongs to another one"
            )
        placed.append(PlacedModule(name, matrices, at[0], *found))
    places = {(each.layer, each.site, each.part) for each in placed}
    if len(places) < len(placed):
        raise AdapterError("it changes a module twice, under two names: save it again")
    return placed


def _site_of(module: str, sites: Sequence[LoraSite]) -> tuple[int, int] | None:
    for index, site in enumerate(sites):
        if module in site.modules:
            return index, site.modules.index(module)
    return None


def resident_bytes(modules: Sequence[PlacedModule], sites: Sites, dtype: torch.dtype) -> int:
    """Return the memory that `load_weights` takes."""
    num_elements = 0
    for layer, site, rank in _ranks(modules):
        shape = sites[layer][site]
        num_elements += rank * (len(shape.widths) * shape.in_features + sum(shape.widths))
    return num_elements * dtype.itemsize


def _ranks(modules: Sequence[PlacedModule]) -> Iterator[tuple[int, int, int]]:
    """Yield the layer, the site and the rank of each pair: the largest of its parts."""
    ranks: dict[tuple[int, int], int] = {}
    for each in modules:
        place = each.layer, each.site
        ranks[place] = max(ranks.get(place, 0), each.matrices.rank)
    for (layer, site), rank in ranks.items():
        yield layer, site, rank


def load_weights(
    files: AdapterFiles,
    modules: Sequence[PlacedModule],
    sites: Sites,
    dtype: torch.dtype,
    device: torch.device,
) -> LoraWeights:
    """Read an adapter's matrices.

    Args:
        files: The adapter.
        modules: Its modules, from `place_modules`.
        sites: The model's.
        dtype: Of the result.
        device: Of the result.

    Raises:
        OSError, safetensors.SafetensorError: the file cannot be read any more.
    """
    pairs: list[list[LoraPair | None]] = [[None] * len(layer) for layer in sites]
    for layer, site, rank in _ranks(modules):
        shape = sites[layer][site]
        pairs[layer][site] = LoraPair(
            torch.zeros(len(shape.widths) * rank, shape.in_features, dtype=dtype),
            torch.zeros(rank, sum(shape.widths), dtype=dtype),
        )
    with safe_open(weights_file(files.path), framework="pt") as file:
        for each in modules:
            pair = pairs[each.layer][each.site]
            assert pair is not None, "each module has a pair"
            down = file.get_tensor(each.matrices.down_name)
            up = file.get_tensor(each.matrices.up_name).float()
            scaled = up * files.config.scale_of(each.name)
            _fill(pair, sites[each.layer][each.site].widths, each.part, down, scaled)
    return LoraWeights(
        tuple(
            tuple(
                None if pair is None else _place(pair, site, device)
                for pair, site in zip(*layer, strict=True)
            )
            for layer in zip(pairs, sites, strict=True)
        )
    )


def _fill(pair: LoraPair, widths: Sequence[int], part: int, down: Tensor, up: Tensor) -> None:
    rank, own_rank = len(pair.up), len(down)
    start = sum(widths[:part])
    pair.down[part * rank : part * rank + own_rank] = down
    pair.up[:own_rank, start : start + widths[part]] = up.T


def _place(pair: LoraPair, site: LoraSite, device: torch.device) -> LoraPair:
    """Return a pair on a device, with its columns in the order of the rows of the weight."""
    up = pair.up[:, torch.tensor(site.row_order)] if site.row_order else pair.up
    return LoraPair(pair.down.to(device), up.to(device))
