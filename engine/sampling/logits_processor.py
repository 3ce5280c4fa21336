"""The step between the model and the sampler: requests' controls applied to rows of logits."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from batchmill.engine.request.request import Request
from batchmill.engine.request.sampling_params import SamplingParams
from batchmill.engine.request.thinking_budget import ThinkingBudget
from batchmill.engine.request.token_controls import RequestControls, TokenCounts
from batchmill.engine.step.upload import Uploader
from batchmill.engine.text.structure_masks import StructureMasks

from .logits_filters import are_empty, keep_masked, keep_min_p, keep_only, keep_typical

_T = TypeVar("_T")


class LogitsProcessor:
    """Applies the controls of a step's rows, each control at once to all rows that use it.

    A row without controls is not touched, and a control that no row uses costs nothing. What
    happens to a row depends on its own request alone.
    """

    def __init__(self, vocab_size: int) -> None:
        self._masks = StructureMasks(vocab_size)
        self._requests: Sequence[Request] = []
        self._skipped: Collection[Request] = ()
        self._drafts: Mapping[int, Sequence[int]] = {}
        self._controlled = _ControlledRows([])
        self._filtered = _FilteredRows([])

    def prepare(
        self,
        requests: Sequence[Request],
        drafts: Mapping[int, Sequence[int]] | None = None,
        skipped: Collection[Request] = (),
    ) -> None:
        """Begin the work that can be done while the model computes this step's logits.

        Args:
            requests: One per row, with all tokens that are known before the step.
            drafts: The draft tokens before each row that comes after any. Their requests have no
                control but a structure that depends on the tokens.
            skipped: Requests that have ended meanwhile: their rows are left as they are.
        """
        self._drafts = drafts or {}
        # The same requests decode together for many steps, so group their rows only once.
        if requests != self._requests or skipped or self._skipped:
            self._requests, self._skipped = requests, frozenset(skipped)
            rows = [pair for pair in enumerate(requests) if pair[1] not in self._skipped]
            self._controlled = _ControlledRows(rows)
            self._filtered = _FilteredRows(rows)
        self._masks.start(
            [
                structure.ahead(self._drafts[row]) if row in self._drafts else structure
                for row, structure in self._controlled.structures
            ]
        )

    @property
    def restrictive_rows(self) -> list[int]:
        """Rows of the prepared step whose controls may forbid every token."""
        return [row for row, _ in self._controlled.restrictive]

    def apply(self, logits: Tensor) -> Tensor | None:
        """Change the logits of the prepared step in place.

        Args:
            logits: [num_rows, vocab_size] float32.

        Returns:
            Which rows have no token left, [num_rows] bool on the logits' device: nothing is read on
            the host here. None if no row's controls may forbid every token.
        """
        rows, filtered = self._controlled, self._filtered
        forced = _ForcedTokens.of(logits, rows.thinking)
        for row, controls in rows.controls:
            controls.catch_up(self._requests[row].output_token_ids)
        if rows.counts:
            _penalise(logits, rows.counts, rows.penalties)
        if rows.biases:
            _add_biases(logits, rows.biases)
        if rows.structures:
            keep_masked(logits, [row for row, _ in rows.structures], self._masks.take())
        if rows.allowed:
            keep_only(logits, [row for row, _ in rows.allowed], [each for _, each in rows.allowed])
        if rows.forbidding:
            _forbid(logits, rows.forbidding)
        if forced is not None:
            forced.apply(logits)
        is_empty = are_empty(logits, self.restrictive_rows) if rows.restrictive else None
        if filtered.min_p:
            indices, min_p, temperatures = (
                list(each) for each in zip(*filtered.min_p, strict=True)
            )
            keep_min_p(logits, indices, min_p, temperatures)
        if filtered.typical_p:
            indices, masses, temperatures = (
                list(each) for each in zip(*filtered.typical_p, strict=True)
            )
            keep_typical(logits, indices, masses, temperatures)
        return is_empty


class _ControlledRows:
    """The rows of a step by the request controls that they use.

    Attributes:
        controls: Rows with any control.
        counts: Rows with penalties.
        penalties: [len(counts), 3] float32: repetition, frequency and presence penalty.
        biases: Rows with logit biases: token ids and values.
        structures: Rows whose output follows a structure.
        allowed: Rows with a list of allowed token ids.
        forbidding: Rows that may forbid single tokens.
        thinking: Rows whose thoughts have a budget.
        restrictive: Rows that may forbid every token.
    """

    def __init__(self, rows: Sequence[tuple[int, Request]]) -> None:
        controls = _present((row, each.controls) for row, each in rows)
        self.controls = controls
        self.counts = _present((row, each.counts) for row, each in controls)
        self.penalties = _penalties(
            [each.params for _, each in controls if each.counts is not None]
        )
        self.biases = _present((row, each.biases) for row, each in controls)
        self.structures = _present((row, each.structure) for row, each in controls)
        self.allowed = _present((row, each.allowed) for row, each in controls)
        self.forbidding = [(row, each) for row, each in controls if each.can_forbid]
        self.thinking = _present((row, each.thinking) for row, each in controls)
        self.restrictive = [(row, each) for row, each in controls if each.is_restrictive]


class _FilteredRows:
    """The rows of a step that filter by probability; greedy rows do not.

    Attributes:
        min_p: Row, `min_p` and temperature of rows with a `typical_p`, which goes after it. The
            sampler applies `min_p` to all others.
        typical_p: Row, `typical_p` and temperature.
    """

    def __init__(self, rows: Sequence[tuple[int, Request]]) -> None:
        sampled = [(row, each.params) for row, each in rows if each.params.temperature > 0]
        self.min_p = [
            (row, each.min_p, each.temperature)
            for row, each in sampled
            if each.min_p > 0 and each.typical_p < 1
        ]
        self.typical_p = [
            (row, each.typical_p, each.temperature) for row, each in sampled if each.typical_p < 1
        ]


def _present(pairs: Iterable[tuple[int, _T | None]]) -> list[tuple[int, _T]]:
    return [(row, value) for row, value in pairs if value is not None]


def _penalties(params: Sequence[SamplingParams]) -> NDArray[np.float32]:
    return np.array(
        [
            (each.repetition_penalty, each.frequency_penalty, each.presence_penalty)
            for each in params
        ],
        dtype=np.float32,
    )


def _penalise(
    logits: Tensor, counts: list[tuple[int, TokenCounts]], penalties: NDArray[np.float32]
) -> None:
    """Apply the repetition, then the frequency and presence penalties to the requests' tokens.

    Source: repetition penalty, Keskar et al. 2019 (CTRL), section 4.1; the other two as OpenAI's
    API defines them.
    """
    lengths = [len(each.token_ids) for _, each in counts]
    if not any(lengths):
        return
    numbers = np.concatenate([each.output_counts for _, each in counts])
    repetition, frequency, presence = np.repeat(penalties, lengths, axis=0).T
    subtracted = frequency * numbers + presence * (numbers > 0)
    index = _index(
        logits,
        np.repeat([row for row, _ in counts], lengths),
        np.concatenate([each.token_ids for _, each in counts]),
    )
    factors = _on_device(repetition, logits)
    values = logits[index]
    values = torch.where(values > 0, values / factors, values * factors)
    logits[index] = values - _on_device(subtracted, logits)


def _add_biases(
    logits: Tensor, biases: list[tuple[int, tuple[NDArray[np.int64], NDArray[np.float32]]]]
) -> None:
    lengths = [len(token_ids) for _, (token_ids, _) in biases]
    index = _index(
        logits,
        np.repeat([row for row, _ in biases], lengths),
        np.concatenate([token_ids for _, (token_ids, _) in biases]),
    )
    logits[index] += _on_device(np.concatenate([values for _, (_, values) in biases]), logits)


@dataclass(frozen=True, slots=True)
class _ForcedTokens:
    """The rows that have to end a thought, with the token and the row's largest logit.

    The token gets that logit, whatever the other controls make of it: a logit that is not finite
    must not be hidden.
    """

    rows: Tensor  # [num_forced] int64
    token_ids: Tensor  # [num_forced] int64
    largest: Tensor  # [num_forced] float32

    @classmethod
    def of(cls, logits: Tensor, thinking: list[tuple[int, ThinkingBudget]]) -> _ForcedTokens | None:
        """Find the rows before any control changes the logits; None if there are none."""
        found = [(row, each.forced_token_id) for row, each in thinking]
        pairs = [(row, token_id) for row, token_id in found if token_id is not None]
        if not pairs:
            return None
        rows, token_ids = np.array(pairs, dtype=np.int64).T
        index, columns = _index(logits, rows, token_ids)
        return cls(index, columns, logits[index].amax(dim=-1))

    def apply(self, logits: Tensor) -> None:
        """Forbid all other tokens of these rows, in place."""
        logits.index_fill_(0, self.rows, -torch.inf)
        logits[self.rows, self.token_ids] = self.largest


def _forbid(logits: Tensor, forbidding: list[tuple[int, RequestControls]]) -> None:
    forbidden = [each.forbidden() for _, each in forbidding]
    lengths = [len(token_ids) for token_ids in forbidden]
    if any(lengths):
        rows = np.repeat([row for row, _ in forbidding], lengths)
        token_ids = np.fromiter(chain.from_iterable(forbidden), np.int64, count=sum(lengths))
        logits[_index(logits, rows, token_ids)] = -torch.inf


def _index(
    logits: Tensor, rows: NDArray[np.int64], token_ids: NDArray[np.int64]
) -> tuple[Tensor, Tensor]:
    return _on_device(rows, logits), _on_device(token_ids, logits)


def _on_device(array: NDArray[np.generic], logits: Tensor) -> Tensor:
    (uploaded,) = Uploader(logits.device).upload(np.ascontiguousarray(array))
    return uploaded
