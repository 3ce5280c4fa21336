"""Tables of the controls of a few requests, kept on the device while these decode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from batchmill.engine.request.request import Request
from batchmill.engine.request.token_controls import RequestControls
from batchmill.engine.step.upload import Uploader

#: Most requests with a table at a time.
MOST_ROWS = 8


def has_table(controls: RequestControls) -> bool:
    """Return whether controls change with no tokens but those that penalties count."""
    return (
        controls.structure is None and controls.thinking is None and not controls.forbids_by_history
    )


@dataclass(slots=True)
class _Slot:
    """One request's row of the tables."""

    index: int
    #: Of the request: after a release, it may compute other tokens than those counted here.
    num_releases: int
    #: Output tokens that the row counts; -1 if it is not loaded.
    num_counted: int = -1
    #: Whether it forbids the tokens that end the request.
    forbids_end: bool = False


class ControlTables:
    """Owns one row of numbers per request: factors and subtrahends, biases and forbidden tokens.

    The graph that applies them counts the last token of each request first, so the host uploads a
    row when its request begins to decode here, and again when `min_tokens` is reached. A row
    `MOST_ROWS` is padding.

    The order is that of `LogitsProcessor`: penalties, biases, forbidden tokens.
    """

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        """Allocate the tables."""
        self._vocab_size = vocab_size
        self._uploader = Uploader(device)
        shape = (MOST_ROWS + 1, vocab_size)
        self._factors = torch.ones(shape, device=device)
        self._counts = torch.zeros(shape, device=device)
        self._subtracted = torch.zeros(shape, device=device)
        self._addends = torch.zeros(shape, device=device)
        # Of each row: repetition, frequency and presence penalty, and whether tokens are counted.
        self._penalties = torch.zeros(MOST_ROWS + 1, 4, device=device)
        self._slots = torch.full((MOST_ROWS,), MOST_ROWS, dtype=torch.int64, device=device)
        self._slot_of: dict[Request, _Slot] = {}
        self._active: list[_Slot] = []

    def forget(self) -> None:
        """Forget all requests."""
        self._slot_of, self._active = {}, []

    def load(self, requests: Sequence[tuple[Request, int]]) -> int | None:
        """Use the tables for some requests, each with the number of its output tokens.

        The last of these tokens need not be known on the host.

        Returns:
            For how many steps the tables hold; None for all.
        """
        controlled = {each for each, _ in requests if each.controls is not None}
        self._slot_of = {
            each: slot
            for each, slot in self._slot_of.items()
            if each in controlled and slot.num_releases == each.num_releases
        }
        taken = {slot.index for slot in self._slot_of.values()}
        free = [index for index in range(MOST_ROWS) if index not in taken]
        self._active, indices, limits = [], [], []
        for request, num_tokens in requests:
            if request.controls is None:
                indices.append(MOST_ROWS)
                continue
            slot = self._slot_of.get(request)
            if slot is None:
                slot = self._slot_of[request] = _Slot(free.pop(), request.num_releases)
            num_left = request.params.min_tokens - num_tokens
            self._fill(slot, request, request.controls, num_tokens - 1, forbids_end=num_left > 0)
            if num_left > 0:
                limits.append(num_left)
            self._active.append(slot)
            indices.append(slot.index)
        indices += [MOST_ROWS] * (MOST_ROWS - len(indices))
        (uploaded,) = self._uploader.upload(np.array(indices, dtype=np.int64))
        self._slots.copy_(uploaded)
        return min(limits, default=None)

    def advance(self) -> None:
        """Note that a step counts another token of each request in use."""
        for slot in self._active:
            slot.num_counted += 1

    def apply(self, logits: Tensor, last_tokens: Tensor) -> Tensor:
        """Count the last tokens, and apply the tables.

        Args:
            logits: [n, vocab_size] float32: of the first `n` requests of `load`, or padding.
            last_tokens: [n] int64.
        """
        slots = self._slots[: len(logits)]
        self._count(slots, last_tokens)
        factors = self._factors.index_select(0, slots)
        values = torch.where(logits > 0, logits / factors, logits * factors)
        values = values - self._subtracted.index_select(0, slots)
        return values + self._addends.index_select(0, slots)

    def _count(self, slots: Tensor, token_ids: Tensor) -> None:
        repetition, frequency, presence, is_counted = self._penalties.index_select(0, slots).T
        places = slots * self._vocab_size + token_ids
        counts, factors = self._counts.view(-1), self._factors.view(-1)
        counts.index_add_(0, places, is_counted)
        now = counts.index_select(0, places)
        before = factors.index_select(0, places)
        factors.index_copy_(0, places, torch.where(is_counted > 0, repetition, before))
        subtracted = frequency * now + presence * (now > 0)
        self._subtracted.view(-1).index_copy_(0, places, subtracted)

    def _fill(
        self,
        slot: _Slot,
        request: Request,
        controls: RequestControls,
        num_counted: int,
        *,
        forbids_end: bool,
    ) -> None:
        """Upload what changed of a request's row."""
        if slot.num_counted != num_counted:
            self._fill_penalties(slot, request, controls, num_counted)
        elif slot.forbids_end == forbids_end:
            return
        addends = np.zeros(self._vocab_size, dtype=np.float32)
        if controls.biases is not None:
            token_ids, values = controls.biases
            addends[token_ids] = values
        if controls.allowed is not None:
            kept = addends[controls.allowed]
            addends.fill(-np.inf)
            addends[controls.allowed] = kept
        if forbids_end:
            addends[controls.ending_token_ids] = -np.inf
        (uploaded,) = self._uploader.upload(addends)
        self._addends[slot.index].copy_(uploaded)
        slot.num_counted, slot.forbids_end = num_counted, forbids_end

    def _fill_penalties(
        self, slot: _Slot, request: Request, controls: RequestControls, num_counted: int
    ) -> None:
        rows = np.zeros((3, self._vocab_size), dtype=np.float32)
        factors, counts, subtracted = rows
        factors.fill(1.0)
        penalties = np.zeros(4, dtype=np.float32)
        if controls.counts is not None:
            params = request.params
            penalties[:] = (
                params.repetition_penalty, params.frequency_penalty, params.presence_penalty, 1.0,
            )  # fmt: skip
            repetition, frequency, presence, _ = penalties
            known = request.output_token_ids[:num_counted]
            assert len(known) == num_counted, "only the last token may be on its way to the host"
            np.add.at(counts, np.array(known, dtype=np.int64), 1.0)
            factors[known] = repetition
            if repetition != 1:
                factors[np.array(request.prompt_token_ids, dtype=np.int64)] = repetition
            subtracted[:] = frequency * counts + presence * (counts > 0)
        uploaded, numbers = self._uploader.upload(rows, penalties)
        for table, row in zip(
            (self._factors, self._counts, self._subtracted), uploaded, strict=True
        ):
            table[slot.index].copy_(row)
        self._penalties[slot.index].copy_(numbers)
