"""From logits to tokens: each row with its own request's controls."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from batchmill.kernels.sample import sample

from .request import Request
from .schedule import ScheduledBatch


class Sampler:
    """Gathers the controls of a step's rows and draws their tokens.

    A token depends on its row's logits, its request's controls and seed, and its index in the
    output; not on the batch. So a resumed or preempted request draws the same tokens again.
    """

    def __init__(self, eos_token_ids: frozenset[int]) -> None:
        self._eos_token_ids = eos_token_ids
        # The same requests decode together for many steps: their controls become tensors once.
        self._requests: list[Request] = []
        self._controls: _RowControls | None = None

    def sample(self, logits: Tensor, batch: ScheduledBatch) -> list[int | None]:
        """Draw a token for each row.

        Args:
            logits: [num_samples, vocab_size] float32, a row for each of `batch.sampling_requests`;
                changed in place.
            batch: The step that they come from.

        Returns:
            One token id a row; None where a row has no finite largest logit (NaN, or infinities),
            which the model computes where its weights or its cache are broken.
        """
        requests = batch.sampling_requests
        if not requests:
            return []
        if self._controls is None or requests != self._requests:
            self._requests = requests
            self._controls = _RowControls.gather(requests, logits.device)
        self._forbid_early_ends(logits, requests)
        finite = _have_finite_maximum(logits)
        positions = [len(request.output_token_ids) for request in requests]
        controls = self._controls
        token_ids = sample(
            logits,
            controls.temperature,
            controls.top_k,
            controls.top_p,
            controls.seeds,
            torch.tensor(positions, dtype=torch.int64).to(logits.device),
        ).tolist()
        return [
            token_id if is_finite else None
            for token_id, is_finite in zip(token_ids, finite, strict=True)
        ]

    def _forbid_early_ends(self, logits: Tensor, requests: list[Request]) -> None:
        """Give a request that is under its `min_tokens` no token that would end it."""
        for row, request in enumerate(requests):
            params = request.params
            if len(request.output_token_ids) < params.min_tokens:
                forbidden = set(params.stop_token_ids or ())
                if not params.ignore_eos:
                    forbidden |= self._eos_token_ids
                if forbidden:
                    logits[row, list(forbidden)] = -torch.inf


def _have_finite_maximum(logits: Tensor) -> list[bool]:
    """Per row: a maximum passes NaN on, and a row where all is forbidden is as little use."""
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
