"""From logits to tokens: each row with its own request's controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from batchmill.kernels.sample import sample

from .logits_stage import LogitsStage
from .request import Request
from .schedule import ScheduledBatch
from .scorer import Scorer


class Sampler:
    """Gathers the controls of a step's rows, draws their tokens and scores them.

    A token depends on its row's logits, its request's controls and seed, and its index in the
    output; not on the batch. So a resumed or preempted request draws the same tokens again.
    """

    def __init__(self, vocab_size: int) -> None:
        self._stage = LogitsStage(vocab_size)
        self._begun: ScheduledBatch | None = None
        # The same requests decode together for many steps: their controls become tensors once.
        self._requests: list[Request] = []
        self._controls: _RowControls | None = None

    def begin(self, batch: ScheduledBatch) -> None:
        """Start what can be worked out while the model computes the batch's logits."""
        self._begun = batch
        self._stage.start(batch.sampling_requests)

    def sample(self, logits: Tensor, batch: ScheduledBatch) -> list[int | None]:
        """Draw a token for each row that samples, and score what is to be scored.

        Args:
            logits: [num_rows, vocab_size] float32, for each request of the batch the rows that
                score its known tokens and then the one that samples; changed in place.
            batch: The step that they come from.

        Returns:
            One token id for each of `batch.sampling_requests`; None where a row has no finite
            largest logit (NaN, or infinities), which the model computes where its weights or its
            cache are broken, and where the request's controls leave no token.
        """
        if self._begun is not batch:
            self.begin(batch)
        self._begun = None
        if any(item.scored for item in batch.scheduled):
            logits = _score_known_tokens(logits, batch)
        requests = batch.sampling_requests
        if not requests:
            return []
        if self._controls is None or requests != self._requests:
            self._requests = requests
            self._controls = _RowControls.gather(requests, logits.device)
        finite = _have_finite_maximum(logits)
        scored = self._scored_rows(requests, finite)
        scorer = _scorer(logits, requests, scored)
        self._stage.apply(logits)
        drawn = self._draw(logits, requests, self._controls)
        if scorer is not None:
            for row, score in zip(scored, scorer.score([drawn[r] for r in scored]), strict=True):
                request = requests[row]
                assert request.scores is not None
                request.scores.put(request.num_tokens, score)
        return [
            None if not is_finite or _is_exhausted(request) else token_id
            for token_id, is_finite, request in zip(drawn, finite, requests, strict=True)
        ]

    def _draw(self, logits: Tensor, requests: list[Request], controls: _RowControls) -> list[int]:
        positions = [len(request.output_token_ids) for request in requests]
        drawn: list[int] = sample(
            logits,
            controls.temperature,
            controls.top_k,
            controls.top_p,
            controls.seeds,
            torch.tensor(positions, dtype=torch.int64).to(logits.device),
        ).tolist()
        return drawn

    def _scored_rows(self, requests: list[Request], finite: list[bool]) -> list[int]:
        return [
            row
            for row, request in enumerate(requests)
            if request.scores is not None and request.scores.wants_output and finite[row]
        ]


def _have_finite_maximum(logits: Tensor) -> list[bool]:
    """Per row; a maximum passes NaN on."""
    if logits.device.type == "cpu":  # numpy, because torch's threads would spin after it
        return [bool(finite) for finite in np.isfinite(logits.numpy().max(axis=-1))]
    finite: list[bool] = torch.isfinite(logits.amax(dim=-1)).tolist()
    return finite


@dataclass(frozen=True, slots=True)
class _RowControls:
    """The controls of a step's rows, as `kernels.sample` takes them."""

    temperature: Tensor  # [num_rows] float32
    top_k: Tensor  # [num_rows] int64
    top_p: Tensor  # [num_rows] float32
    seeds: Tensor  # [num_rows] int64

    @classmethod
    def gather(cls, requests: list[Request], device: torch.device) -> _RowControls:
        params = [request.params for request in requests]
        floats = torch.tensor(
            [[each.temperature for each in params], [each.top_p for each in params]],
            dtype=torch.float32,
        ).to(device)
        integers = torch.tensor(
            [[each.num_top_k for each in params], [request.seed for request in requests]],
            dtype=torch.int64,
        ).to(device)
        return cls(temperature=floats[0], top_p=floats[1], top_k=integers[0], seeds=integers[1])


def _is_exhausted(request: Request) -> bool:
    return request.controls is not None and request.controls.is_exhausted


def _scorer(logits: Tensor, requests: Sequence[Request], rows: list[int]) -> Scorer | None:
    """A scorer of some of the sampling rows, or None where there are none."""
    if not rows:
        return None
    wanted = [scores for row in rows if (scores := requests[row].scores) is not None]
    return Scorer(
        logits[torch.tensor(rows, device=logits.device)],
        [scores.num_logprobs or 0 for scores in wanted],
        with_entropy=any(scores.wants_entropy for scores in wanted),
    )


def _score_known_tokens(logits: Tensor, batch: ScheduledBatch) -> Tensor:
    """Score the tokens that requests came with, and return the rows that sample.

    Returns:
        [num_sampling_rows, vocab_size] float32, a copy.
    """
    known: list[tuple[int, Request, int]] = []
    sampling: list[int] = []
    row = 0
    for item in batch.scheduled:
        known += [(row + i, item.request, position) for i, position in enumerate(item.scored)]
        row += len(item.scored)
        if item.samples:
            sampling.append(row)
            row += 1
    wanted = [
        (scores, position)
        for _, request, position in known
        if (scores := request.scores) is not None
    ]
    scorer = Scorer(
        logits[torch.tensor([each for each, _, _ in known], device=logits.device)],
        [scores.num_top(position) for scores, position in wanted],
        with_entropy=any(scores.wants_entropy for scores, _ in wanted),
    )
    token_ids = [
        request.token_ids_slice(position, position + 1)[0] for _, request, position in known
    ]
    for (scores, position), score in zip(wanted, scorer.score(token_ids), strict=True):
        scores.put(position, score)
    return logits[torch.tensor(sampling, dtype=torch.int64, device=logits.device)]
