"""The tokens that a step drew, before they are known on the host."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from batchmill.engine.request.request import Request

from .scorer import Scorer


class HostTokens:
    """Room on the host for the tokens of a step, and the event of their arrival.

    All that can fail for want of memory is done when this is made, before the step is launched.
    """

    def __init__(self, num_rows: int, device: torch.device) -> None:
        """Make room for `num_rows` rows computed on `device`; pinned, where that is a GPU."""
        is_cuda = device.type == "cuda"
        self.token_ids = torch.empty(num_rows, dtype=torch.int64, pin_memory=is_cuda)
        self.is_finite = torch.empty(num_rows, dtype=torch.bool, pin_memory=is_cuda)
        self._arrived: torch.cuda.Event | None = None
        if is_cuda:
            self._arrived = torch.cuda.Event()

    def begin_copy(self, token_ids: Tensor, is_finite: Tensor) -> None:
        """Copy a step's results, once the device's stream gets there."""
        self.token_ids.copy_(token_ids, non_blocking=True)
        self.is_finite.copy_(is_finite, non_blocking=True)
        if self._arrived is not None:
            self._arrived.record()

    def wait(self) -> None:
        """Wait until the device has copied them, and so computed all of the step."""
        if self._arrived is not None:
            self._arrived.synchronize()


class SampledTokens:
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
        room: HostTokens | None = None,
    ) -> None:
        """Start the way.

        Args:
            token_ids: [num_sampling] int64, on the step's device also where no row samples:
                `collect` waits for the step.
            is_finite: [num_sampling] bool, whether the row's largest logit was a number.
            holds_next_step: Whether the next step can be scheduled only once these are known.
            controlled: Rows of requests with controls, which may leave no token.
            scored: Rows whose token is scored.
            scorer: Scores them; None where there are none.
            room: Where they go on the host; None makes it here.
        """
        self.holds_next_step = holds_next_step
        self._controlled = controlled
        self._scored = scored
        self._scorer = scorer
        self._host = room or HostTokens(len(token_ids), token_ids.device)
        self._host.begin_copy(token_ids, is_finite)

    def collect(self) -> list[int | None]:
        """Wait for the tokens, and score those that are to be scored.

        Returns:
            One token id a row; None where a row had no finite largest logit (NaN, or infinities),
            which the model computes where its weights or its cache are broken, and where the
            request's controls left no token.
        """
        self._host.wait()
        is_finite: NDArray[np.bool_] = self._host.is_finite.numpy()
        drawn: list[int | None] = self._host.token_ids.tolist()
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
