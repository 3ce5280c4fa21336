"""The rows of a step that are guided by another one of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from batchmill.engine.request.request import Request
from batchmill.engine.step.upload import Uploader


@dataclass(frozen=True, slots=True)
class GuidedRows:
    """Pairs of rows: one that is guided, and its guide's.

    Attributes:
        guided: [num_pairs] int64.
        guides: [num_pairs] int64.
        scales: [num_pairs, 1] float32.
    """

    guided: Tensor
    guides: Tensor
    scales: Tensor

    @classmethod
    def of(cls, requests: Sequence[Request], uploader: Uploader) -> GuidedRows | None:
        """Return the pairs among the requests of a step's rows; None if there are none."""
        links = [(row, each.guidance) for row, each in enumerate(requests) if each.guidance]
        if not links:
            return None
        row_of = {requests[row]: row for row, _ in links}
        pairs = [
            (row, row_of[link.partner], link.scale) for row, link in links if not link.is_guide
        ]
        assert 2 * len(pairs) == len(links), "a guided request samples without its guide"
        guided, guides, scales = zip(*pairs, strict=True)
        return cls(
            *uploader.upload(
                np.array(guided, dtype=np.int64),
                np.array(guides, dtype=np.int64),
                np.array(scales, dtype=np.float32)[:, None],
            )
        )

    def guide(self, logits: Tensor, is_finite: Tensor) -> None:
        """Move each guided row away from its guide's, in place.

        Args:
            logits: [num_rows, vocab_size] float32.
            is_finite: [num_rows] bool; both rows of a pair are finite, or neither counts as such.

        Source: `UnbatchedClassifierFreeGuidanceLogitsProcessor` of transformers.
        """
        own = logits[self.guided].log_softmax(dim=-1)
        other = logits[self.guides].log_softmax(dim=-1)
        guided = other + self.scales * (own - other)
        # A token that is impossible after the negative prompt has no distance to move by.
        logits[self.guided] = torch.where(other.isneginf(), own, guided)
        both = is_finite[self.guided] & is_finite[self.guides]
        is_finite[self.guided] = both
        is_finite[self.guides] = both

    def share_tokens(self, token_ids: Tensor) -> None:
        """Give each guide the token of the row that it guides, in place, [num_rows] int64."""
        token_ids[self.guides] = token_ids[self.guided]
