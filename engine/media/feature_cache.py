"""Features in memory, by the identity of their items, and the tower that computes the others."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from batchmill.engine.errors import is_out_of_memory
from batchmill.engine.request.media import MediaItem
from batchmill.engine.step.feature_rows import Features

from .model import MediaModel

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class FeatureCounts:
    """What a `FeatureCache` has done, and what it holds now."""

    #: Items that went through the tower.
    num_encoded: int = 0
    #: Items whose features were in memory.
    num_found: int = 0
    #: Runs of the tower, each over one or more items.
    num_runs: int = 0
    #: Seconds that these took on the host; a GPU may still compute when they are over.
    run_time_s: float = 0.0
    #: Memory that the kept features take now.
    num_bytes: int = 0


class FeatureCache:
    """Computes features between two steps, and keeps the last ones within a limit in bytes.

    Requests about one picture share its features, and a request that is preempted finds them
    again. What a step or a request in the middle of an item holds stays in memory, beyond the
    limit if it must.

    Attributes:
        counts: Since it was made.

    Source: the encoder cache of vLLM.
    """

    def __init__(self, model: MediaModel, max_bytes: int) -> None:
        self._model = model
        self._max_bytes = max_bytes
        self._kept: OrderedDict[bytes, Features] = OrderedDict()
        self.counts = FeatureCounts()

    def features_of(self, items: Sequence[MediaItem]) -> list[Features]:
        """Return the features of each item; compute those that are not in memory at once.

        Raises:
            Exception: memory ran out; whatever else a tower raises marks the items concerned, see
                `Features.problem`.
        """
        distinct = {item.digest: item for item in items}
        found = {digest: self._kept[digest] for digest in distinct if digest in self._kept}
        missing = [item for digest, item in distinct.items() if digest not in found]
        computed = dict(zip((item.digest for item in missing), self._encode(missing), strict=True))
        self.counts.num_found += len(found)
        self.counts.num_encoded += len(missing)
        for digest, features in (found | computed).items():
            self._keep(digest, features)
        return [(found | computed)[item.digest] for item in items]

    def _keep(self, digest: bytes, features: Features) -> None:
        if features.problem is not None or features.num_bytes > self._max_bytes:
            return
        if digest not in self._kept:
            self._kept[digest] = features
            self.counts.num_bytes += features.num_bytes
        self._kept.move_to_end(digest)
        while self.counts.num_bytes > self._max_bytes:
            _, dropped = self._kept.popitem(last=False)
            self.counts.num_bytes -= dropped.num_bytes

    def _encode(self, items: Sequence[MediaItem]) -> list[Features]:
        """Run the tower over all items, or over each by itself if that fails."""
        if not items:
            return []
        try:
            return self._checked(items, self._run(items))
        except Exception as error:  # a processor raises what it likes
            if is_out_of_memory(error):
                raise
            if len(items) > 1:
                return [self._encode([item])[0] for item in items]
            _log.exception("the features of an item could not be computed")
            return [self._failed(items[0], error)]

    def _run(self, items: Sequence[MediaItem]) -> list[Features]:
        started_at = time.perf_counter()
        try:
            return self._model.encode(items)
        finally:
            self.counts.num_runs += 1
            self.counts.run_time_s += time.perf_counter() - started_at

    def _checked(self, items: Sequence[MediaItem], found: list[Features]) -> list[Features]:
        for item, features in zip(items, found, strict=True):
            if len(features.rows) != item.num_features:
                raise ValueError(
                    f"the tower made {len(features.rows)} rows, {item.num_features} were expected"
                )
        # A part of a batch would keep the memory of the whole batch.
        return [each.to(self._model.dtype, copy=len(items) > 1) for each in found]

    def _failed(self, item: MediaItem, error: Exception) -> Features:
        """Return features that end their request, and no other one, with an error."""
        rows = torch.full(
            (item.num_features, self._model.hidden_size),
            torch.nan,
            dtype=self._model.dtype,
            device=self._model.device,
        )
        problem = (
            f"the {item.medium.kind} could not be turned into features ({type(error).__name__}): "
            "send another one, or report the model"
        )
        return Features(rows, (torch.zeros_like(rows),) * self._model.num_deepstack, problem)
