"""The sampler: tokens from logits, each row with its own request's controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from batchmill.engine.request.request import Request
from batchmill.engine.scheduling.scheduled_batch import ScheduledBatch
from batchmill.engine.step.request_rows import RequestRows
from batchmill.engine.step.upload import Uploader
from batchmill.kernels.ops.sample import sample

from .guided_rows import GuidedRows
from .logits_processor import LogitsProcessor
from .sampled_tokens import SampledTokens
from .scorer import Scorer
from .watermark_rows import marked_rows, with_marks


class Sampler:
    """Gathers the controls of a step's rows, samples their tokens and scores them.

    A token depends on its row's logits, its request's controls and seed, and its index in the
    output; not on the batch. So a resumed or preempted request samples the same tokens again.
    """

    def __init__(self, vocab_size: int, rows: RequestRows) -> None:
        """Make a sampler.

        Args:
            vocab_size: Columns of the logits.
            rows: Has the requests' controls, and receives the sampled tokens.
        """
        self._logits_processor = LogitsProcessor(vocab_size)
        self._rows = rows
        self._prepared: ScheduledBatch | None = None
        # One per row; empty if all rows are plain (`RequestRows.is_plain`).
        self._requests: list[Request] = []
        # The same requests decode together for many steps: upload their controls only once.
        self._sampling_rows: NDArray[np.int64] | None = None
        self._controls: _RowControls | None = None
        self._uploader = Uploader(rows.last_tokens.device)

    def prepare(self, batch: ScheduledBatch) -> None:
        """Begin the work that can be done while the model computes the batch's logits."""
        self._prepared = batch
        is_plain = bool(self._rows.is_plain[self._rows.sampling_rows_of(batch)].all())
        self._requests = [] if is_plain else batch.request_of_each_row
        self._logits_processor.prepare(self._requests, batch.drafts_of_rows)

    def sample(self, logits: Tensor, batch: ScheduledBatch) -> SampledTokens:
        """Sample a token for each row that needs one, and score the tokens that need scores.

        Args:
            logits: [num_rows, vocab_size] float32, for each request of the batch the rows that
                score its known tokens and then the rows that sample; changed in place.
            batch: The step that they come from.

        Returns:
            One token for each of `batch.request_of_each_row`, possibly still being computed.
        """
        if self._prepared is not batch:
            self.prepare(batch)
        self._prepared = None
        scores_known = any(item.scored for item in batch.chunks)
        if scores_known:
            logits = _score_known_tokens(logits, batch)
        rows = self._rows.sampling_rows_of(batch)
        if not len(rows):
            # On the device, so that collecting the step waits for it. Otherwise the host would run
            # ahead of a long prompt's chunks without bound.
            no_ids = torch.empty(0, dtype=torch.int64, device=logits.device)
            return SampledTokens(no_ids, no_ids.bool(), holds_next_step=scores_known)
        is_finite = _have_finite_maximum(logits)
        scored = self._scored_rows(is_finite)
        scorer = _scorer(logits, scored)
        guided = GuidedRows.of(self._requests, logits.device)
        if guided is not None:
            guided.guide(logits, is_finite)
        without_token = self._logits_processor.apply(logits)
        controls, positions = self._upload_controls(rows, batch)
        token_ids: Tensor = sample(logits, *controls.numbers, positions)
        if guided is not None:
            guided.share_tokens(token_ids)
        is_marked = any(each.watermark is not None for each in self._requests)
        controlled = [pair for pair in enumerate(self._requests) if pair[1].controls is not None]
        sampled = SampledTokens(
            token_ids,
            is_finite,
            holds_next_step=bool(
                controlled or scored or scores_known or is_marked or guided is not None
            ),
            controlled=controlled,
            without_token=without_token,
            scored=scored,
            scorer=scorer,
        )
        # Last, so that if anything failed before, the retried step finds the tokens that it began
        # with. A request with draft tokens may get the token of any of its rows here; the host
        # corrects that once it knows which drafts are accepted.
        self._rows.last_tokens.index_copy_(0, controls.rows, token_ids)
        return sampled

    def _upload_controls(
        self, rows: NDArray[np.int64], batch: ScheduledBatch
    ) -> tuple[_RowControls, Tensor]:
        """Return the rows' controls, and the output index of each new token, [num_rows] int64."""
        table = self._rows
        positions = _num_tokens(batch, table) - table.num_prompt_tokens[rows]
        seeds = table.seeds[rows]
        marks = marked_rows(batch) if self._requests else []
        if marks:
            seeds, positions = with_marks(seeds, positions, marks)
        elif rows is self._sampling_rows and self._controls is not None:
            return self._controls, self._uploader.upload(positions)[0]
        # In one asynchronous copy, because the model's step is still running.
        uploaded_positions, *controls = self._uploader.upload(
            positions,
            table.temperature[rows],
            table.top_k[rows],
            table.top_p[rows],
            seeds,
            rows,
        )
        # Marked places have other seeds in each step.
        self._sampling_rows = None if marks else rows
        self._controls = _RowControls(*controls)
        return self._controls, uploaded_positions

    def _scored_rows(self, is_finite: Tensor) -> list[tuple[int, Request]]:
        wanted = [
            (row, request)
            for row, request in enumerate(self._requests)
            if request.scores is not None and request.scores.wants_output
        ]
        if not wanted:
            return []
        finite = is_finite.tolist()
        return [(row, request) for row, request in wanted if finite[row]]


def _num_tokens(batch: ScheduledBatch, rows: RequestRows) -> NDArray[np.int64]:
    """Count the tokens before each one to be sampled, [num_sampled] int64."""
    decodes = rows.decode_starts(batch) + 1
    if not batch.chunks:
        return decodes
    chunks = [
        each.num_computed_tokens + each.num_new_tokens - num_after
        for each in batch.chunks
        for num_after in reversed(range(each.num_sampled_tokens))
    ]
    return np.concatenate([decodes, np.array(chunks, dtype=np.int64)])


def _have_finite_maximum(logits: Tensor) -> Tensor:
    """Return whether each row has a finite maximum, [num_rows] bool; NaN makes it not finite."""
    if logits.device.type == "cpu":  # numpy, because torch's threads would spin afterwards
        return torch.from_numpy(np.isfinite(logits.numpy().max(axis=-1)))
    return torch.isfinite(logits.amax(dim=-1))


@dataclass(frozen=True, slots=True)
class _RowControls:
    """The controls of a step's rows, in the order in which the op `sample` takes them."""

    temperature: Tensor  # [num_rows] float32
    top_k: Tensor  # [num_rows] int64
    top_p: Tensor  # [num_rows] float32
    seeds: Tensor  # [num_rows] int64
    rows: Tensor  # [num_rows] int64: their rows in `RequestRows`

    @property
    def numbers(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The arguments of the op `sample`."""
        return self.temperature, self.top_k, self.top_p, self.seeds


def _scorer(logits: Tensor, scored: Sequence[tuple[int, Request]]) -> Scorer | None:
    """Return a scorer of some of the sampling rows, or None if there are none."""
    if not scored:
        return None
    wanted = [scores for _, each in scored if (scores := each.scores) is not None]
    return Scorer(
        logits[torch.tensor([row for row, _ in scored], device=logits.device)],
        [scores.num_logprobs or 0 for scores in wanted],
        [scores.asked_token_ids for scores in wanted],
        with_entropy=any(scores.wants_entropy for scores in wanted),
    )


def _score_known_tokens(logits: Tensor, batch: ScheduledBatch) -> Tensor:
    """Score known tokens of the requests, and return the rows that sample.

    Returns:
        [num_sampling_rows, vocab_size] float32, a copy.
    """
    known: list[tuple[int, Request, int]] = []
    sampling: list[int] = []
    row = 0
    for item in batch.scheduled:
        known += [(row + i, item.request, position) for i, position in enumerate(item.scored)]
        row += len(item.scored)
        sampling += range(row, row + item.num_sampled_tokens)
        row += item.num_sampled_tokens
    wanted = [
        (scores, position)
        for _, request, position in known
        if (scores := request.scores) is not None
    ]
    scorer = Scorer(
        logits[torch.tensor([each for each, _, _ in known], device=logits.device)],
        [scores.num_top(position) for scores, position in wanted],
        [scores.asked_at(position) for scores, position in wanted],
        with_entropy=any(scores.wants_entropy for scores, _ in wanted),
    )
    token_ids = [
        request.token_ids_slice(position, position + 1)[0] for _, request, position in known
    ]
    for (scores, position), score in zip(wanted, scorer.score(token_ids), strict=True):
        scores.put(position, score)
    return logits[torch.tensor(sampling, dtype=torch.int64, device=logits.device)]
