"""The tokens that a step drew, before they are known on the host."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .request import Request
from .scorer import Scorer


class DrawnTokens:
    """Owns a launched step's tokens on their way to the host.

    The copy is under way when this is made, so the tensors may be written to again; `collect` waits
    for it. On a CPU there is nothing to wait for.
    """

    def __init__(
        self,
        token_ids: Tensor,
        is_finite: Tensor,
        *,
        holds_next_step: bool = False,
        controlled: Sequence[tuple[int, Request]] = (),
        scored: Sequence[tuple[int, Request]] = (),
        scorer: Scorer | None = None,
    ) -> None:
        """Start the way.

        Args:
            token_ids: [num_sampling] int64.
            is_finite: [num_sampling] bool, whether the row's largest logit was a number.
            holds_next_step: Whether the next step can be scheduled only once these are known.
            controlled: Rows of requests with controls, which may leave no token.
            scored: Rows whose token is scored.
            scorer: Scores them; None where there are none.
        """
        self.holds_next_step = holds_next_step
        self._controlled = controlled
        self._scored = scored
        self._scorer = scorer
        self._token_ids = _begin_copy(token_ids)
        self._is_finite = _begin_copy(is_finite)
        self._arrived: torch.cuda.Event | None = None
        if token_ids.device.type == "cuda":
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def collect(self) -> list[int | None]:
        """Wait for the tokens, and score those that are to be scored.

        Returns:
            One token id a row; None where a row had no finite largest logit (NaN, or infinities),
            which the model computes where its weights or its cache are broken, and where the
            request's controls left no token.
        """
        if self._arrived is not None:
            self._arrived.synchronize()
        is_finite: NDArray[np.bool_] = self._is_finite.numpy()
        drawn: list[int | None] = self._token_ids.tolist()
        if self._scorer is not None:
            scores = self._scorer.score([drawn[row] or 0 for row, _ in self._scored])
            for (_, request), score in zip(self._scored, scores, strict=True):
                assert request.scores is not None
                request.scores.put(request.num_tokens, score)
        if not is_finite.all():
            for row in np.flatnonzero(~is_finite).tolist():
                drawn[row] = None
        for row, request in self._controlled:
            if request.controls is not None and request.controls.is_exhausted:
                drawn[row] = None
        return drawn


def _begin_copy(values: Tensor) -> Tensor:
    """The same on the host, in pinned memory; complete once the device's stream got there."""
    if values.device.type == "cpu":
        return values.clone()
    target = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    return target.copy_(values, non_blocking=True)
