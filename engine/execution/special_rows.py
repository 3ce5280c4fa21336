"""Special rows: recorded work on the few rows of a decode step that need more than numbers.

A request with penalties, biases, allowed tokens, `min_tokens`, `typical_p` or log probabilities
works on whole rows of logits. While the same requests decode, nothing of that changes but the
tokens that penalties count, and the device has those: so this work is recorded in graphs of its
own, which are replayed between and after the two graphs of a decode step.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import cycle

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from batchmill.engine.contract.limits import MAX_LOGPROBS
from batchmill.engine.errors import EngineError
from batchmill.engine.request.request import Request
from batchmill.engine.sampling.logits_filters import drop_untypical, uses_numpy
from batchmill.engine.sampling.sampled_tokens import SampledScores
from batchmill.engine.sampling.scorer import PackedScores, entropies_of
from batchmill.engine.scheduling.scheduled_batch import ScheduledBatch
from batchmill.engine.step.request_rows import RequestRows
from batchmill.engine.step.upload import Uploader
from batchmill.kernels.ops.sample import min_p_gap

from .control_tables import MOST_ROWS, ControlTables, has_table
from .graph_recorder import Recorder

#: Special rows of a step with a graph; others are padded to the next.
SIZES = (1, 2, 4, MOST_ROWS)
#: Keeps every token, as the mass that typical sampling has to reach.
_WHOLE_MASS = 2.0
#: Of scores, used in turn: two steps are in flight at most.
_NUM_HOST_BUFFERS = 4
#: Rows of logits that tables and the largest graph's intermediate results take.
_ROWS_OF_LOGITS = 16 * MOST_ROWS

_log = logging.getLogger(__name__)

_Replays = dict[int, Callable[[], None]]


@dataclass(frozen=True, slots=True)
class SpecialStep:
    """What a step with special rows replays besides its two graphs.

    Attributes:
        before: Between the logits and the sampling.
        after: After the sampling.
        restrictive: Rows whose controls may leave no token.
        scored: Rows whose tokens are scored; they are the first special rows.
        num_steps: Steps for which this holds, if the same requests go on; None for all.
        num_top: Of each scored row: how many likeliest tokens to report.
    """

    before: tuple[Callable[[], None], ...]
    after: tuple[Callable[[], None], ...]
    restrictive: list[tuple[int, Request]]
    scored: list[tuple[int, Request]]
    num_steps: int | None
    num_top: list[int]


def special_rows_bytes(vocab_size: int) -> int:
    """Return the bytes of all tables and intermediate results."""
    return 4 * _ROWS_OF_LOGITS * vocab_size


class SpecialRows:
    """Owns the tables of special rows, and the graphs that work on them.

    Invariant: `_rows_planned` are the rows of the last step replayed, if `_step` is its plan.
    """

    def __init__(
        self, rows: RequestRows, logits: Tensor, token_ids: Tensor, is_finite: Tensor
    ) -> None:
        """Allocate the tables; call `record_all` next.

        Args:
            rows: Has the last token of each request.
            logits: [most + 1, vocab_size] float32: where a step's logits are. The last row is
                padding, like that of the other two.
            token_ids: [most + 1] int64: where its tokens are.
            is_finite: [most + 1] bool: whether each row's largest logit is a number.
        """
        device, vocab_size = logits.device, logits.shape[1]
        self._rows, self._logits = rows, logits
        self._token_ids, self._is_finite = token_ids, is_finite
        self._uploader = Uploader(device)
        self._tables = ControlTables(vocab_size, device)
        self._row_ids = torch.full((MOST_ROWS,), len(logits) - 1, device=device)
        self._request_rows = torch.full((MOST_ROWS,), rows.num_rows, device=device)
        self._filters = torch.zeros(3, MOST_ROWS, 1, device=device)
        self._was_finite = torch.zeros(MOST_ROWS, dtype=torch.bool, device=device)
        self._is_empty = torch.zeros(len(logits), dtype=torch.bool, device=device)
        self._most_top = min(MAX_LOGPROBS, vocab_size)
        self._log_probs = torch.zeros(MOST_ROWS, vocab_size, device=device)
        self._scores = torch.zeros(MOST_ROWS, 2 + 2 * self._most_top, device=device)
        buffers = [
            torch.empty(self._scores.shape, pin_memory=device.type == "cuda")
            for _ in range(_NUM_HOST_BUFFERS)
        ]
        self._host_buffers = cycle([(each, each.numpy()) for each in buffers])
        self._control: _Replays = {}
        self._filter: _Replays = {}
        self._score: _Replays = {}
        self._finish_control: _Replays = {}
        self._finish_score: _Replays = {}
        self.forget()

    def record_all(self, recorder: Recorder) -> None:
        """Record the graphs of each size, the largest first.

        If one of them cannot be recorded, the controls of all steps are launched one by one.
        """
        try:
            self._record_all(recorder)
        except EngineError as error:
            _log.warning(
                "controls of requests are not recorded, and cost each step time: %s", error
            )
            self._control.clear()
        self.forget()

    def _record_all(self, recorder: Recorder) -> None:
        for size in reversed(SIZES):
            for replays, work in (
                (self._control, self._apply_controls),
                (self._filter, self._apply_filters),
                (self._score, self._begin_scores),
                (self._finish_control, self._restore_checks),
                (self._finish_score, self._end_scores),
            ):
                replays[size] = recorder.record(partial(work, size))

    @property
    def is_empty(self) -> Tensor:
        """Whether the controls left no token, [most + 1] bool."""
        return self._is_empty

    def forget(self) -> None:
        """Forget the requests, because a step failed, or nothing is loaded yet."""
        self._tables.forget()
        self._rows_refused: NDArray[np.int64] | None = None
        self.pause()

    def pause(self) -> None:
        """Have the next step planned again, because the last one was computed in another way.

        Rows that were refused stay so: what they need depends on their requests alone.
        """
        self._step: SpecialStep | None = None
        self._rows_planned: NDArray[np.int64] | None = None
        self._num_steps_left = 0

    def plan(
        self,
        batch: ScheduledBatch,
        rows: NDArray[np.int64],
        starts: NDArray[np.int64],
        *,
        is_next: bool,
    ) -> SpecialStep | None:
        """Return what a batch of decodes replays, and load the tables for it.

        Args:
            batch: Its requests are the same as before if `rows` is the same array.
            rows: [num_rows] int64: its rows in `RequestRows`.
            starts: [num_rows] int64: the position that each of its requests computes.
            is_next: Whether it goes on where the last replayed step ended.

        Returns:
            None if there are more special rows than a graph holds, or one of them needs something
            that is not recorded.
        """
        if rows is self._rows_refused or not self._control:
            return None
        if not (is_next and rows is self._rows_planned) or self._num_steps_left == 0:
            self.pause()
            step = self._plan(batch, rows, starts)
            if step is None:
                self._rows_refused = rows
                return None
            self._step, self._rows_planned = step, rows
            self._num_steps_left = -1 if step.num_steps is None else step.num_steps
        self._num_steps_left -= 1
        self._tables.advance()
        return self._step

    def _plan(
        self, batch: ScheduledBatch, rows: NDArray[np.int64], starts: NDArray[np.int64]
    ) -> SpecialStep | None:
        special = np.flatnonzero(~self._rows.is_plain[rows]).tolist()
        found = [(row, batch.decodes[row]) for row in special]
        if len(found) > MOST_ROWS or not all(self._is_recorded(each) for _, each in found):
            return None
        # Those that are scored first, so that a step copies the first scores only.
        found.sort(key=lambda pair: not _is_scored(pair[1]))
        size = next(each for each in SIZES if each >= len(found))
        num_tokens = starts + 1 - self._rows.num_prompt_tokens[rows]
        restrictive = [
            (row, each)
            for row, each in found
            if each.controls is not None and each.controls.is_restrictive
        ]
        scored = [(row, each) for row, each in found if _is_scored(each)]
        controlled = any(each.controls is not None for _, each in found)
        filtered = any(_is_filtered(each) for _, each in found)
        num_steps = self._load(found, rows, num_tokens)
        return SpecialStep(
            before=(
                *([self._score[size]] if scored else []),
                *([self._control[size]] if controlled else []),
                *([self._filter[size]] if filtered else []),
            ),
            after=(
                *([self._finish_control[size]] if controlled else []),
                *([self._finish_score[size]] if scored else []),
            ),
            restrictive=restrictive,
            scored=scored,
            num_steps=num_steps,
            num_top=[each.scores.num_logprobs or 0 for _, each in scored if each.scores],
        )

    def _load(
        self,
        found: list[tuple[int, Request]],
        rows: NDArray[np.int64],
        num_tokens: NDArray[np.int64],
    ) -> int | None:
        """Put the special rows of a step into the tables; return for how many steps they hold."""
        num_steps = self._tables.load([(each, int(num_tokens[row])) for row, each in found])
        padding = MOST_ROWS - len(found)
        row_ids = np.array([row for row, _ in found] + [len(self._logits) - 1] * padding)
        request_rows = np.array([rows[row] for row, _ in found] + [self._rows.num_rows] * padding)
        filters = np.zeros((3, MOST_ROWS, 1), dtype=np.float32)
        filters[:, :, 0] = [[_WHOLE_MASS], [1.0], [-np.inf]]
        for index, (_, each) in enumerate(found):
            if _is_filtered(each):
                params = each.params
                gap = min_p_gap(params.min_p, params.temperature)
                filters[:, index, 0] = params.typical_p, params.temperature, gap
        uploaded = self._uploader.upload(row_ids, request_rows, filters)
        targets = (self._row_ids, self._request_rows, self._filters)
        for target, values in zip(targets, uploaded, strict=True):
            target.copy_(values)
        self._is_empty.zero_()
        return num_steps

    def _is_recorded(self, request: Request) -> bool:
        """Return whether a graph does all that a request needs."""
        if request.guidance is not None or request.watermark is not None:
            return False
        if request.scores is not None and request.scores.asked_token_ids:
            return False
        # On a CPU, numpy filters: torch would not compute the same bits.
        if _is_filtered(request) and uses_numpy(self._logits):
            return False
        return request.controls is None or has_table(request.controls)

    def begin_copy(self, step: SpecialStep) -> SampledScores | None:
        """Queue the copy of a step's scores to the host; None if it has none."""
        if not step.scored:
            return None
        buffer, values = next(self._host_buffers)
        buffer.copy_(self._scores, non_blocking=True)
        return SampledScores(step.scored, PackedScores(values, step.num_top))

    @torch.inference_mode()
    def _apply_controls(self, size: int) -> None:
        """Check the rows, and apply the controls of their requests."""
        index = self._row_ids[:size]
        chosen = self._logits.index_select(0, index)
        self._was_finite[:size].copy_(torch.isfinite(chosen.amax(dim=-1)))
        last_tokens = self._rows.last_tokens.index_select(0, self._request_rows[:size])
        controlled = self._tables.apply(chosen, last_tokens)
        self._is_empty.index_copy_(0, index, controlled.amax(dim=-1) == -torch.inf)
        self._logits.index_copy_(0, index, controlled)

    @torch.inference_mode()
    def _apply_filters(self, size: int) -> None:
        """Filter the rows by probability."""
        index = self._row_ids[:size]
        chosen = self._logits.index_select(0, index)
        mass, heat, gap = self._filters[:, :size]
        least = chosen.amax(dim=-1, keepdim=True) + gap
        kept = chosen.masked_fill_(chosen < least, -torch.inf)
        self._logits.index_copy_(0, index, drop_untypical(kept, mass, heat))

    @torch.inference_mode()
    def _begin_scores(self, size: int) -> None:
        """Compute the rows' distributions, before any control."""
        chosen = self._logits.index_select(0, self._row_ids[:size])
        log_probs = torch.log_softmax(chosen, dim=-1)
        self._log_probs[:size].copy_(log_probs)
        top = torch.topk(log_probs, self._most_top, dim=-1)
        pairs = torch.stack((top.values, top.indices.float()), dim=-1)
        self._scores[:size, 2:].copy_(pairs.flatten(1))
        self._scores[:size, 0].copy_(entropies_of(log_probs))

    @torch.inference_mode()
    def _end_scores(self, size: int) -> None:
        """Score the tokens."""
        token_ids = self._token_ids.index_select(0, self._row_ids[:size])
        own = self._log_probs[:size].gather(1, token_ids[:, None])
        self._scores[:size, 1].copy_(own[:, 0])

    @torch.inference_mode()
    def _restore_checks(self, size: int) -> None:
        """Report what the logits were before the controls."""
        self._is_finite.index_copy_(0, self._row_ids[:size], self._was_finite[:size])


def _is_scored(request: Request) -> bool:
    return request.scores is not None and request.scores.wants_output


def _is_filtered(request: Request) -> bool:
    return request.params.temperature > 0 and request.params.typical_p < 1
