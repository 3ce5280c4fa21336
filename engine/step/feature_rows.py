"""Which rows of a step take features of pictures and sounds in place of embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from batchmill.engine.request.media import FeatureSlice, MediaItem, PromptMedia
from batchmill.engine.scheduling.scheduled_batch import ScheduledBatch

from .upload import Uploader


@dataclass(frozen=True, slots=True)
class Features:
    """What a model makes of one picture or sound.

    Attributes:
        rows: [num_features, hidden], which stand in the prompt in place of embeddings.
        deepstack: For each of the first layers, [num_features, hidden] that is added to its output;
            empty for most models.
        problem: Why they could not be computed, for the request's error; the rows are then NaN.
    """

    rows: Tensor
    deepstack: tuple[Tensor, ...] = ()
    problem: str | None = None

    @property
    def num_bytes(self) -> int:
        """Memory that they take."""
        return sum(each.nbytes for each in (self.rows, *self.deepstack))

    def to(self, dtype: torch.dtype, *, copy: bool = False) -> Features:
        """Return them in a number format; with `copy`, in memory of their own in any case."""
        layers = tuple(each.to(dtype, copy=copy) for each in self.deepstack)
        return Features(self.rows.to(dtype, copy=copy), layers, self.problem)


class FeatureSource(Protocol):
    """Computes features, or has them in memory."""

    def features_of(self, items: Sequence[MediaItem]) -> Sequence[Features]:
        """Return the features of each item."""


@dataclass(frozen=True, slots=True)
class FeatureRows:
    """The features of a step.

    Attributes:
        token_rows: [num_rows] int64, ascending rows of [num_tokens].
        features: [num_rows, hidden], which replace the embeddings of these rows.
        deepstack: For each of the first layers, [num_rows, hidden], added to its output.
    """

    token_rows: Tensor
    features: Tensor
    deepstack: tuple[Tensor, ...] = ()


def gather_features(
    batch: ScheduledBatch,
    chunk_starts: NDArray[np.int64],
    source: FeatureSource,
    uploader: Uploader,
) -> FeatureRows | None:
    """Return the features that a step needs, or None if it needs none.

    Args:
        batch: The step.
        chunk_starts: [num_chunks], row of [num_tokens] at which each of its chunks begins.
        source: Has the features.
        uploader: Copies the rows to the device.
    """
    owners: list[PromptMedia] = []
    slices: list[FeatureSlice] = []
    rows: list[NDArray[np.int64]] = []
    for row, item in zip(chunk_starts.tolist(), batch.chunks, strict=True):
        media, start = item.request.media, item.num_computed_tokens
        if media is None:
            continue
        for each in media.slices_in(start, start + item.num_new_tokens):
            owners.append(media)
            slices.append(each)
            rows.append(each.positions - start + row)
    if not slices:
        return None
    features = _features_of(owners, slices, source)
    (token_rows,) = uploader.upload(np.concatenate(rows))
    return FeatureRows(
        token_rows,
        _cut_and_join((each.rows for each in features), slices),
        tuple(
            _cut_and_join(layer, slices)
            for layer in zip(*(each.deepstack for each in features), strict=True)
        ),
    )


def _features_of(
    owners: Sequence[PromptMedia], slices: Sequence[FeatureSlice], source: FeatureSource
) -> list[Features]:
    """Return the features of each slice; a prompt in the middle of an item holds on to its own."""
    held = [
        owner.held[1] if owner.held is not None and owner.held[0] is each.item else None
        for owner, each in zip(owners, slices, strict=True)
    ]
    wanted = [each.item for each, own in zip(slices, held, strict=True) if own is None]
    found = iter(source.features_of(wanted) if wanted else ())
    features = [next(found) if own is None else own for own in held]
    for owner, each, own in zip(owners, slices, features, strict=True):
        owner.held = (each.item, own) if each.stop < each.item.num_features else None
        owner.problem = owner.problem or own.problem
    return features


def _cut_and_join(tensors: Iterable[Tensor], slices: Iterable[FeatureSlice]) -> Tensor:
    parts = [tensor[each.start : each.stop] for tensor, each in zip(tensors, slices, strict=True)]
    return torch.cat(parts)
