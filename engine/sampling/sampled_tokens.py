"""The tokens that a launched step samples, on their way from the device to the host."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from batchmill.engine.request.request import Request
from batchmill.engine.scheduling.scheduled_batch import NO_TOKEN

from .scorer import CopiedScores, PackedScores


class HostBuffers:
    """Host memory for the tokens of a step, and the event that marks their arrival.

    Everything that can fail for lack of memory happens in the constructor, before the step is
    launched.
    """

    def __init__(self, num_rows: int, device: torch.device) -> None:
        """Allocate memory for `num_rows` rows computed on `device`; pinned if that is a GPU."""
        is_cuda = device.type == "cuda"
        self.token_ids = torch.empty(num_rows, dtype=torch.int64, pin_memory=is_cuda)
        flags = torch.empty((2, num_rows), dtype=torch.bool, pin_memory=is_cuda)
        self.is_finite, self.is_empty = flags
        self._arrived: torch.cuda.Event | None = None
        if is_cuda:
            self._arrived = torch.cuda.Event()

    def begin_copy(self, token_ids: Tensor, is_finite: Tensor, is_empty: Tensor | None) -> None:
        """Queue the copy of a step's results on the device's stream."""
        self.token_ids.copy_(token_ids, non_blocking=True)
        self.is_finite.copy_(is_finite, non_blocking=True)
        if is_empty is not None:
            self.is_empty.copy_(is_empty, non_blocking=True)
        if self._arrived is not None:
            self._arrived.record()

    def wait(self) -> None:
        """Wait until the device has computed the step and copied its results."""
        if self._arrived is not None:
            self._arrived.synchronize()


@dataclass(frozen=True, slots=True)
class SampledScores:
    """The scores of sampled tokens, on their way to the host."""

    rows: Sequence[tuple[int, Request]]
    copied: CopiedScores | PackedScores

    def put(self, token_ids: Sequence[int], is_put: Callable[[int, Request], bool]) -> None:
        """Give each request its token's score, if `is_put` says so; `token_ids` are of all rows."""
        scores = self.copied.read([token_ids[row] for row, _ in self.rows])
        for (row, request), score in zip(self.rows, scores, strict=True):
            if request.scores is not None and is_put(row, request):
                request.scores.put(request.num_tokens, score)


@dataclass(frozen=True, slots=True)
class KnownScores:
    """The scores of known tokens, on their way to the host."""

    tokens: Sequence[tuple[Request, int, int]]  # request, position, token id
    copied: CopiedScores

    def put(self, discarded: Collection[Request]) -> None:
        """Give each request its tokens' scores."""
        scores = self.copied.read([token_id for *_, token_id in self.tokens])
        for (request, position, _), score in zip(self.tokens, scores, strict=True):
            if request.scores is not None and request not in discarded:
                request.scores.put(position, score)


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
        is_empty: Tensor | None = None,
        restrictive: Sequence[tuple[int, Request]] = (),
        drafted_rows: Collection[int] = (),
        scores: SampledScores | None = None,
        known_scores: KnownScores | None = None,
        host_buffers: HostBuffers | None = None,
    ) -> None:
        """Begin the copy to the host.

        Args:
            token_ids: [num_rows] int64, on the step's device even if no row samples: `collect`
                waits for the step.
            is_finite: [num_rows] bool, whether the row's largest logit was a number.
            is_empty: [num_rows] bool, whether the controls left no token; None if all rows have
                one.
            restrictive: Rows of requests whose controls may leave no token.
            drafted_rows: Rows after draft tokens.
            scores: Scores of tokens sampled here, whose copy was queued before.
            known_scores: The same of known tokens.
            host_buffers: Memory that the tokens are copied to; None allocates it here.
        """
        self._restrictive = restrictive
        self._drafted_rows = drafted_rows
        self._scores = scores
        self._known_scores = known_scores
        self._host = host_buffers or HostBuffers(len(token_ids), token_ids.device)
        self._host.begin_copy(token_ids, is_finite, is_empty)

    def collect(self, discarded: Collection[Request] = ()) -> list[int | None]:
        """Wait for the tokens and their scores; mark requests that are left without a token.

        Args:
            discarded: Requests that ended or lost their blocks after the launch.

        Returns:
            One token id per row. None if the row's largest logit was not finite (the weights or the
            cache are broken), or if the request's controls left no token; `NO_TOKEN` if they left
            none after draft tokens, which is no fault of the request: the drafts may be wrong, or
            end its output.
        """
        self._host.wait()
        is_finite: NDArray[np.bool_] = self._host.is_finite.numpy()
        sampled: list[int] = self._host.token_ids.tolist()
        if self._known_scores is not None:
            self._known_scores.put(discarded)
        if self._scores is not None:
            self._scores.put(sampled, lambda row, each: is_finite[row] and each not in discarded)
        token_ids: list[int | None] = list(sampled)
        if not is_finite.all():
            for row in np.flatnonzero(~is_finite).tolist():
                token_ids[row] = None
        is_empty: NDArray[np.bool_] = self._host.is_empty.numpy()
        for row, request in self._restrictive:
            if row in self._drafted_rows:
                if is_empty[row] and is_finite[row]:
                    token_ids[row] = NO_TOKEN
            elif request.controls is not None and request not in discarded:
                request.controls.is_exhausted = bool(is_empty[row])
                if is_empty[row]:
                    token_ids[row] = None
        return token_ids
