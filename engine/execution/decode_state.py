"""The state of a decoding batch on the device, which recorded steps read and advance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class DecodeState:
    """A decoding batch on the device, at fixed addresses, with one row per request.

    Rows after the batch's are padding: they attend to one slot of block 0, write to no slot, and
    put their token into the padding row of `RequestRows`.
    """

    row_ids: Tensor  # [most] int64: its row in `RequestRows`
    positions: Tensor  # [most] int64
    position_offsets: Tensor  # [most] int64: `PromptMedia.position_offset`
    num_prompt_tokens: Tensor  # [most] int64
    is_live: Tensor  # [most] int64: 1, or 0 for padding
    top_k: Tensor  # [most] int64
    seeds: Tensor  # [most] int64
    temperature: Tensor  # [most] float32
    top_p: Tensor  # [most] float32
    min_p_gaps: Tensor  # [most] float32
    block_tables: Tensor  # [most, max_num_blocks] int32

    @classmethod
    def allocate(
        cls, most: int, max_num_blocks: int, padding_row: int, device: torch.device
    ) -> DecodeState:
        """Allocate a state whose rows are all padding."""

        def zeros() -> Tensor:
            return torch.zeros(most, dtype=torch.int64, device=device)

        return cls(
            row_ids=torch.full((most,), padding_row, dtype=torch.int64, device=device),
            positions=zeros(),
            position_offsets=zeros(),
            num_prompt_tokens=zeros(),
            is_live=zeros(),
            top_k=zeros(),
            seeds=zeros(),
            temperature=torch.zeros(most, dtype=torch.float32, device=device),
            top_p=torch.ones(most, dtype=torch.float32, device=device),
            min_p_gaps=torch.full((most,), -torch.inf, dtype=torch.float32, device=device),
            block_tables=torch.zeros(most, max_num_blocks, dtype=torch.int32, device=device),
        )
