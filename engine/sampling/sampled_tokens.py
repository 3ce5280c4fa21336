"""The tokens that a launched step samples, on their way from the device to the host."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from batchmill.engine.request.request import Request
from batchmill.engine.scheduling.scheduled_batch import NO_TOKEN

from .scorer import Scorer


class HostBuffers:
    """Host memory for the tokens of a step, and the event that marks their arrival.

    Everything that can fail for lack of memory happens in the constructor, before the step is
    launched.
    """

    def __init__(self, num_rows: int, device: torch.device) -> None:
        """Allocate memory for `num_rows` rows computed on `device`; pinned if that is a GPU."""
        is_cuda = device.type == "cuda"
        self.token_ids = torch.empty(num_rows, dtype=torch.int64, pin_memory=is_cuda)
        self.is_finite = torch.empty(num_rows, dtype=torch.bool, pin_memory=is_cuda)
        self._arrived: torch.cuda.Event | None = None
        if is_cuda:
            self._arrived = torch.cuda.Event()

    def begin_copy(self, token_ids: Tensor, is_finite: Tensor) -> None:
        """Queue the copy of a step's results on the device's stream."""
        self.token_ids.copy_(token_ids, non_blocking=True)
        self.is_finite.copy_(is_finite, non_blocking=True)
        if self._arrived is not None:
            self._arrived.record()

    def wait(self) -> None:
        """Wait until the device has computed the step and copied its results."""
        if self._arrived is not None:
            self._arrived.synchronize()


class SampledTokens:
    """Owns the tokens of a launched step until `collect`.

    The constructor queues their copy to the host, so the tensors may be overwritten after it;
    `collect` waits for the copy. On a CPU there is nothing to wait for.
    """

    def __init__(
        self,
        token_ids: Tensor,
        is_finite: Tensor,
        *,
        holds_next_step: bool = False,
        controlled: Sequence[tuple[int, Request]] = (),
        without_token: Sequence[int] = (),
        scored: Sequence[tuple[int, Request]] = (),
        scorer: Scorer | None = None,
        host_buffers: HostBuffers | None = None,
    ) -> None:
        """Begin the copy to the host.

        Args:
            token_ids: [num_rows] int64, on the step's device even if no row samples: `collect`
                waits for the step.
            is_finite: [num_rows] bool, whether the row's largest logit was a number.
            holds_next_step: Whether the next step can be scheduled only once these are known.
            controlled: Rows of requests with controls, which may leave no token.
            without_token: Rows after draft tokens that are left without one.
            scored: Rows whose token is scored.
            scorer: Scores them; None if there are none.
            host_buffers: Memory that the tokens are copied to; None allocates it here.
        """
        self.holds_next_step = holds_next_step
        self._controlled = controlled
        self._without_token = without_token
        self._scored = scored
        self._scorer = scorer
        self._host = host_buffers or HostBuffers(len(token_ids), token_ids.device)
        self._host.begin_copy(token_ids, is_finite)

    def collect(self) -> list[int | None]:
        """Wait for the tokens, and score those whose scores are requested.

        Returns:
            One token id per row. None if the row's largest logit was not finite (the weights or the
            cache are broken), or if the request's controls left no token; `NO_TOKEN` if they left
            none after draft tokens.
        """
        self._host.wait()
        is_finite: NDArray[np.bool_] = self._host.is_finite.numpy()
        token_ids: list[int | None] = self._host.token_ids.tolist()
        if self._scorer is not None:
            scores = self._scorer.score([token_ids[row] or 0 for row, _ in self._scored])
            for (_, request), score in zip(self._scored, scores, strict=True):
                assert request.scores is not None
                request.scores.put(request.num_tokens, score)
        for row in self._without_token:
            token_ids[row] = NO_TOKEN
        if not is_finite.all():
            for row in np.flatnonzero(~is_finite).tolist():
                token_ids[row] = None
        for row, request in self._controlled:
            if request.controls is not None and request.controls.is_exhausted:
                token_ids[row] = None
        return token_ids
