"""Between the model and the draw: each row's logits as its request's controls change them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from batchmill.engine.request.request import Request
from batchmill.engine.request.sampling_params import SamplingParams
from batchmill.engine.request.token_controls import RequestControls, TokenCounts
from batchmill.engine.step.upload import Uploader
from batchmill.engine.text.structure import Structure, StructureMasks

from .logits_filters import is_empty, keep_masked, keep_min_p, keep_only, keep_typical


class LogitsProcessor:
    """Applies the controls of a step's rows, each control at once for all rows that use it.

    A row that uses none is not touched, and a control that no row uses costs nothing. What a row
    gets depends on its own request alone.
    """

    def __init__(self, vocab_size: int) -> None:
        self._masks = StructureMasks(vocab_size)
        self._requests: Sequence[Request] = []
        self._plan = _Plan.of([])

    def start(self, requests: Sequence[Request]) -> None:
        """Begin with what can be worked out while the model computes this step's logits.

        Args:
            requests: One a row, with all tokens that are known before the step.
        """
        # The same requests decode together for many steps: who uses what is found out once.
        if requests != self._requests:
            self._requests = requests
            self._plan = _Plan.of(requests)
        self._masks.start([structure for _, structure in self._plan.structures])

    def apply(self, logits: Tensor) -> None:
        """Change the logits of the started step in place; mark the requests left without a token.

        Args:
            logits: [num_rows, vocab_size] float32.
        """
        plan = self._plan
        for row, controls in plan.controls:
            controls.catch_up(self._requests[row].output_token_ids)
        if plan.counts:
            _penalise(logits, plan.counts)
        if plan.biases:
            _add_biases(logits, plan.biases)
        if plan.structures:
            keep_masked(logits, [row for row, _ in plan.structures], self._masks.take())
        for row, allowed in plan.allowed:
            keep_only(logits[row], allowed)
        if plan.forbidding:
            _forbid(logits, plan.forbidding)
        for row, controls in plan.restricted:
            controls.is_exhausted = is_empty(logits[row])
        if plan.min_p:
            rows, params = zip(*plan.min_p, strict=True)
            heat = [each.temperature for each in params]
            keep_min_p(logits, list(rows), [each.min_p for each in params], heat)
        for row, each in plan.typical_p:
            keep_typical(logits[row], each.typical_p, each.temperature)


@dataclass(frozen=True, slots=True)
class _Plan:
    """Which rows of a step use which control."""

    controls: list[tuple[int, RequestControls]]
    counts: list[tuple[int, TokenCounts, SamplingParams]]
    biases: list[tuple[int, NDArray[np.int64], NDArray[np.float32]]]
    structures: list[tuple[int, Structure]]
    allowed: list[tuple[int, NDArray[np.int64]]]
    forbidding: list[tuple[int, RequestControls]]
    #: Rows that can be left without any token.
    restricted: list[tuple[int, RequestControls]]
    min_p: list[tuple[int, SamplingParams]]
    typical_p: list[tuple[int, SamplingParams]]

    @classmethod
    def of(cls, requests: Sequence[Request]) -> _Plan:
        rows = list(enumerate(requests))
        used = [(row, each.controls) for row, each in rows if each.controls is not None]
        drawn = [(row, each.params) for row, each in rows if each.params.temperature > 0]
        return cls(
            controls=used,
            counts=[(row, each.counts, each.params) for row, each in used if each.counts],
            biases=[(row, *each.biases) for row, each in used if each.biases is not None],
            structures=[(row, each.structure) for row, each in used if each.structure is not None],
            allowed=[(row, each.allowed) for row, each in used if each.allowed is not None],
            forbidding=[(row, each) for row, each in used if each.can_forbid],
            restricted=[(row, each) for row, each in used if each.is_restrictive],
            min_p=[(row, params) for row, params in drawn if params.min_p > 0],
            typical_p=[(row, params) for row, params in drawn if params.typical_p < 1],
        )


def _penalise(logits: Tensor, counts: list[tuple[int, TokenCounts, SamplingParams]]) -> None:
    """Repetition, then frequency and presence penalties, on the tokens that the requests have.

    Source: repetition penalty, Keskar et al. 2019 (CTRL), section 4.1; the other two as OpenAI's
    API defines them.
    """
    lengths = [len(each.token_ids) for _, each, _ in counts]
    if not any(lengths):
        return
    params = np.array(
        [
            (each.repetition_penalty, each.frequency_penalty, each.presence_penalty)
            for _, _, each in counts
        ],
        dtype=np.float32,
    )
    numbers = np.concatenate([each.output_counts for _, each, _ in counts])
    repetition, frequency, presence = np.repeat(params, lengths, axis=0).T
    taken_off = frequency * numbers + presence * (numbers > 0)
    index = _index(
        logits,
        np.repeat([row for row, _, _ in counts], lengths),
        np.concatenate([each.token_ids for _, each, _ in counts]),
    )
    factors = _on_device(repetition, logits)
    values = logits[index]
    values = torch.where(values > 0, values / factors, values * factors)
    logits[index] = values - _on_device(taken_off, logits)


def _add_biases(
    logits: Tensor, biases: list[tuple[int, NDArray[np.int64], NDArray[np.float32]]]
) -> None:
    lengths = [len(token_ids) for _, token_ids, _ in biases]
    index = _index(
        logits,
        np.repeat([row for row, _, _ in biases], lengths),
        np.concatenate([token_ids for _, token_ids, _ in biases]),
    )
    logits[index] += _on_device(np.concatenate([values for _, _, values in biases]), logits)


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
    (there,) = Uploader(logits.device).upload(np.ascontiguousarray(array))
    return there
