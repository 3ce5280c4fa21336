"""The sampler: tokens from logits, each row with its own request's controls."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from batchmill.engine.request.request import Request
from batchmill.engine.scheduling.scheduled_batch import ScheduledBatch
from batchmill.engine.step.request_rows import RequestRows
from batchmill.engine.step.upload import Uploader
from batchmill.kernels.ops.sample import have_finite_maximum, sample, sample_and_check

from .guided_rows import GuidedRows
from .logits_processor import LogitsProcessor
from .sampled_tokens import KnownScores, SampledScores, SampledTokens
from .scorer import Scorer
from .watermark_rows import marked_rows, with_marks


class RecordedSampling(Protocol):
    """Samples the rows of a step by a recorded graph; see `DecodeGraphs`."""

    @property
    def is_finite(self) -> Tensor:
        """Whether each row's largest logit is a number, before any control; [num_rows] bool."""

    def sample(self) -> Tensor:
        """Sample a token per row, [num_rows] int64, and put it where the next step reads it."""


class Sampler:
    """Gathers the controls of a step's rows, samples their tokens and scores them.

    A token depends on its row's logits, its request's controls and seed, and its index in the
    output; not on the batch. So a resumed or preempted request samples the same tokens again.
    Nothing is read on the host before the tokens are collected.
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
        # The same requests decode together for many steps: find these rows only once.
        self._special = _SpecialRows.of([])
        # The same requests decode together for many steps: upload their controls only once.
        self._sampling_rows: NDArray[np.int64] | None = None
        self._controls: _RowControls | None = None
        self._uploader = Uploader(rows.last_tokens.device)

    def prepare(self, batch: ScheduledBatch) -> None:
        """Begin the work that can be done while the model computes the batch's logits.

        If any row follows its tokens (`RequestRows.follows_tokens`), the tokens of all steps before
        must be known.
        """
        self._prepared = batch
        is_plain = bool(self._rows.is_plain[self._rows.sampling_rows_of(batch)].all())
        requests = [] if is_plain else batch.request_of_each_row
        if requests != self._requests:
            self._special = _SpecialRows.of(requests)
        self._requests = requests
        self._logits_processor.prepare(requests, batch.drafts_of_rows, batch.discarded)

    def sample(
        self, logits: Tensor, batch: ScheduledBatch, recorded: RecordedSampling | None = None
    ) -> SampledTokens:
        """Sample a token for each row that needs one, and score the tokens that need scores.

        Args:
            logits: [num_rows, vocab_size] float32, for each request of the batch the rows that
                score its known tokens and then the rows that sample; changed in place.
            batch: The step that they come from.
            recorded: Samples these rows faster, if they need no more than the numbers of
                `RequestRows` once their logits are processed.

        Returns:
            One token for each of `batch.request_of_each_row`, possibly still being computed.
        """
        if self._prepared is not batch:
            self.prepare(batch)
        self._prepared = None
        known_scores = None
        if any(item.scored for item in batch.chunks):
            logits, known_scores = _score_known_tokens(logits, batch, self._uploader)
        rows = self._rows.sampling_rows_of(batch)
        if not len(rows):
            # On the device, so that collecting the step waits for it. Otherwise the host would run
            # ahead of a long prompt's chunks without bound.
            no_ids = torch.empty(0, dtype=torch.int64, device=logits.device)
            return SampledTokens(no_ids, no_ids.bool(), known_scores=known_scores)
        if not self._requests and recorded is None:  # no control changes or reads the logits
            return self._sample_plain(logits, batch, rows, known_scores)
        is_finite = have_finite_maximum(logits) if recorded is None else recorded.is_finite
        scored = _ScoredRows.of(logits, self._special.scored, self._uploader)
        guided = self._special.guided_on(self._uploader)
        if guided is not None:
            guided.guide(logits, is_finite)
        is_empty = self._logits_processor.apply(logits) if self._requests else None
        # A recorded step puts its tokens where the next one reads them before all is done here.
        with nullcontext() if recorded is None else self._rows.restored_on_failure():
            token_ids, update = self._sample(logits, batch, rows, recorded)
            if guided is not None:
                guided.share_tokens(token_ids)
            sampled = SampledTokens(
                token_ids,
                is_finite,
                is_empty=is_empty,
                restrictive=self._special.restrictive if is_empty is not None else (),
                drafted_rows=batch.drafts_of_rows,
                scores=None if scored is None else scored.begin_copy(token_ids),
                known_scores=known_scores,
            )
        # Last, so that if anything failed before, the retried step finds the tokens that it began
        # with. A request with draft tokens may get the token of any of its rows here; the host
        # corrects that once it knows which drafts are accepted.
        if update is not None:
            self._rows.last_tokens.index_copy_(0, update, token_ids)
        return sampled

    def _sample_plain(
        self,
        logits: Tensor,
        batch: ScheduledBatch,
        rows: NDArray[np.int64],
        known_scores: KnownScores | None,
    ) -> SampledTokens:
        """Sample rows without controls but numbers; they are read once for tokens and check."""
        controls, positions = self._upload_controls(rows, batch)
        token_ids, is_finite = sample_and_check(logits, *controls.numbers, positions)
        sampled = SampledTokens(
            token_ids, is_finite, drafted_rows=batch.drafts_of_rows, known_scores=known_scores
        )
        self._rows.last_tokens.index_copy_(0, controls.rows, token_ids)  # last; see `sample`
        return sampled

    def _sample(
        self,
        logits: Tensor,
        batch: ScheduledBatch,
        rows: NDArray[np.int64],
        recorded: RecordedSampling | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Sample from the processed logits.

        Returns:
            A token per row, and the rows of `last_tokens` to put them into; None if that is done.
        """
        if recorded is not None and not (self._special.has_guides or self._special.has_marks):
            return recorded.sample(), None
        controls, positions = self._upload_controls(rows, batch)
        token_ids: Tensor = sample(logits, *controls.numbers, positions)
        return token_ids, controls.rows

    def _upload_controls(
        self, rows: NDArray[np.int64], batch: ScheduledBatch
    ) -> tuple[_RowControls, Tensor]:
        """Return the rows' controls, and the output index of each new token, [num_rows] int64."""
        table = self._rows
        positions = _num_tokens(batch, table) - table.num_prompt_tokens[rows]
        seeds = table.seeds[rows]
        marks = marked_rows(batch) if self._special.has_marks else []
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
            table.min_p_gaps[rows],
            seeds,
            rows,
        )
        # Marked places have other seeds in each step.
        self._sampling_rows = None if marks else rows
        self._controls = _RowControls(*controls)
        return self._controls, uploaded_positions


@dataclass(frozen=True, slots=True)
class _SpecialRows:
    """The rows of a step that need more than their logits, by what they need.

    Attributes:
        scored: Rows whose tokens are scored.
        restrictive: Rows whose controls may leave no token.
        has_guides: Whether any row is guided by another one.
        has_marks: Whether any row is watermarked.
        requests: One per row.
    """

    scored: list[tuple[int, Request]]
    restrictive: list[tuple[int, Request]]
    has_guides: bool
    has_marks: bool
    requests: list[Request]

    @classmethod
    def of(cls, requests: list[Request]) -> _SpecialRows:
        """Find the rows among a step's requests, one per row."""
        rows = list(enumerate(requests))
        return cls(
            scored=[
                (row, each)
                for row, each in rows
                if each.scores is not None and each.scores.wants_output
            ],
            restrictive=[
                (row, each)
                for row, each in rows
                if each.controls is not None and each.controls.is_restrictive
            ],
            has_guides=any(each.guidance is not None for each in requests),
            has_marks=any(each.watermark is not None for each in requests),
            requests=requests,
        )

    def guided_on(self, uploader: Uploader) -> GuidedRows | None:
        """Return the pairs of guided rows and their guides; None if there are none."""
        return GuidedRows.of(self.requests, uploader) if self.has_guides else None


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


@dataclass(frozen=True, slots=True)
class _RowControls:
    """The controls of a step's rows, in the order in which the op `sample` takes them."""

    temperature: Tensor  # [num_rows] float32
    top_k: Tensor  # [num_rows] int64
    top_p: Tensor  # [num_rows] float32
    min_p_gaps: Tensor  # [num_rows] float32
    seeds: Tensor  # [num_rows] int64
    rows: Tensor  # [num_rows] int64: their rows in `RequestRows`

    @property
    def numbers(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The arguments of the op `sample`."""
        return self.temperature, self.top_k, self.top_p, self.min_p_gaps, self.seeds


@dataclass(frozen=True, slots=True)
class _ScoredRows:
    """The sampling rows whose tokens are scored, with their distributions."""

    rows: Sequence[tuple[int, Request]]
    index: Tensor  # [num_scored] int64: the numbers of the rows, on the logits' device
    scorer: Scorer

    @classmethod
    def of(
        cls, logits: Tensor, rows: Sequence[tuple[int, Request]], uploader: Uploader
    ) -> _ScoredRows | None:
        """Compute the distributions of some rows; None if there are no rows."""
        if not rows:
            return None
        wanted = [scores for _, each in rows if (scores := each.scores) is not None]
        (index,) = uploader.upload(np.array([row for row, _ in rows], dtype=np.int64))
        scorer = Scorer(
            logits[index],
            [scores.num_logprobs or 0 for scores in wanted],
            [scores.asked_token_ids for scores in wanted],
            with_entropy=any(scores.wants_entropy for scores in wanted),
        )
        return cls(rows, index, scorer)

    def begin_copy(self, token_ids: Tensor) -> SampledScores:
        """Score these rows of a step's tokens, [num_rows] int64; begin the copy to the host."""
        return SampledScores(self.rows, self.scorer.begin_copy(token_ids[self.index]))


def _score_known_tokens(
    logits: Tensor, batch: ScheduledBatch, uploader: Uploader
) -> tuple[Tensor, KnownScores]:
    """Score known tokens of the requests.

    Returns:
        The rows that sample, [num_sampling_rows, vocab_size] float32, a copy; and the scores.
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
    tokens = [
        (request, position, request.token_ids_slice(position, position + 1)[0])
        for _, request, position in known
    ]
    known_rows, sampling_rows, token_ids = uploader.upload(
        np.array([each for each, _, _ in known], dtype=np.int64),
        np.array(sampling, dtype=np.int64),
        np.array([token_id for *_, token_id in tokens], dtype=np.int64),
    )
    scorer = Scorer(
        logits[known_rows],
        [scores.num_top(position) for scores, position in wanted],
        [scores.asked_at(position) for scores, position in wanted],
        with_entropy=any(scores.wants_entropy for scores, _ in wanted),
    )
    return logits[sampling_rows], KnownScores(tokens, scorer.begin_copy(token_ids))
