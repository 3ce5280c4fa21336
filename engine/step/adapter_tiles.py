"""The adapters of recorded steps: tables at fixed addresses, which each replay of a graph reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from batchmill.kernels.ops.lora import LoraWeights
from batchmill.kernels.reference.lora import TILE_ROWS, LoraTiles

from .adapter_rows import AdapterRows
from .upload import Uploader


class AdapterShape(NamedTuple):
    """What all adapters of a model have in common.

    Attributes:
        sites_per_layer: Matrices of each layer that they may change, as in `LoraWeights`.
        max_rank: The largest rank.
    """

    sites_per_layer: tuple[int, ...]
    max_rank: int


class TileTable:
    """Owns the rows of adapters on the device, in tiles of one adapter each."""

    def __init__(
        self, shape: AdapterShape, most_rows: int, most_tiles: int, device: torch.device
    ) -> None:
        """Allocate a table without rows.

        Args:
            shape: Of the adapters.
            most_rows: Most rows of a step.
            most_tiles: Most tiles of a step; see `num_tiles`.
            device: Of the steps.
        """
        self._shape = shape
        self._uploader = Uploader(device)
        self._first_sites = [0, *accumulate(shape.sites_per_layer)]
        num_sites = self._first_sites[-1]
        self._rows = torch.zeros(most_rows, dtype=torch.int64, device=device)
        self._starts = torch.zeros(most_tiles + 1, dtype=torch.int32, device=device)
        self._pairs = torch.zeros(num_sites, most_tiles, 3, dtype=torch.int64, device=device)

    def fill(self, groups: Sequence[tuple[LoraWeights, Tensor]]) -> None:
        """Replace the rows by those of a step.

        Args:
            groups: Adapters, each with its rows, [num_rows] int64 on the device.
        """
        starts, owners = [0], []
        for weights, rows in groups:
            for first in range(0, len(rows), TILE_ROWS):
                starts.append(starts[-1] + min(TILE_ROWS, len(rows) - first))
                owners.append(weights)
        num_rows = starts[-1]
        starts += [num_rows] * (len(self._starts) - len(starts))
        if not owners:
            self._starts.zero_()
            return
        pairs = np.stack([each.addresses for each in owners], axis=1)
        uploaded = self._uploader.upload(np.array(starts, dtype=np.int32), pairs)
        self._starts.copy_(uploaded[0])
        self._pairs[:, : len(owners)].copy_(uploaded[1])
        self._rows[:num_rows].copy_(torch.cat([rows for _, rows in groups]))

    def tiles_of(self, layer: int, site: int, num_rows: int, num_tiles: int) -> LoraTiles:
        """Return the tiles of one matrix, for steps of at most so many rows and tiles."""
        return LoraTiles(
            self._rows[:num_rows],
            self._starts[: num_tiles + 1],
            self._pairs[self._first_sites[layer] + site, :num_tiles],
            self._shape.max_rank,
        )


class _Size(NamedTuple):
    num_rows: int
    num_tiles: int


@dataclass(frozen=True, slots=True)
class RecordedAdapters:
    """The tables of recorded steps of one size; takes the place of `StepInputs.adapters`."""

    tokens: TileTable
    samples: TileTable
    token_size: _Size
    sample_size: _Size

    def tiles_of(self, layer: int, site: int, *, of_samples: bool) -> LoraTiles:
        """Return the tiles of one matrix, of the rows of all tokens or of those that sample."""
        table, size = (
            (self.samples, self.sample_size) if of_samples else (self.tokens, self.token_size)
        )
        return table.tiles_of(layer, site, *size)


class AdapterTables:
    """Owns the tables of recorded steps of all sizes.

    A graph that has recorded a step over these tables computes the step for whatever adapters they
    have when it is replayed. Fill them when the rows of a step change.
    """

    def __init__(
        self,
        shape: AdapterShape,
        most_tokens: int,
        most_seqs: int,
        device: torch.device,
        *,
        only_decodes: bool = False,
    ) -> None:
        """Allocate tables without rows.

        Args:
            shape: Of the adapters.
            most_tokens: Most tokens of a step.
            most_seqs: Most requests of a step, and rows of logits.
            device: Of the steps.
            only_decodes: Whether each token is a request of its own, and samples.
        """
        self._tokens = TileTable(shape, *_size(most_tokens, most_seqs), device)
        self._samples = (
            self._tokens if only_decodes else TileTable(shape, most_seqs, most_seqs, device)
        )

    def fill(self, groups: Sequence[AdapterRows]) -> None:
        """Replace the rows by those of a step."""
        self._tokens.fill([(each.owner, each.token_rows) for each in groups])
        if self._samples is not self._tokens:
            self._samples.fill([(each.owner, each.sample_rows) for each in groups])

    def sized(self, num_tokens: int, num_seqs: int) -> RecordedAdapters:
        """Return the part of the tables that steps of a size read."""
        return RecordedAdapters(
            *(self._tokens, self._samples),
            token_size=_size(num_tokens, num_seqs),
            sample_size=_size(num_seqs, num_seqs),
        )


def _size(num_rows: int, num_seqs: int) -> _Size:
    """Return a size of steps, with the most tiles that their rows make.

    Each adapter has a request at least. All of its tiles but the last one are full.
    """
    return _Size(num_rows, min(num_rows, num_rows // TILE_ROWS + num_seqs))
