"""Attention within whole texts of one flattened batch, several texts of similar lengths at once.

One call for each text would start the threads of a CPU, and the kernels of a GPU, as often as there
are texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

#: Places of a group per token; the rest is padding.
_MAX_PADDED: Final = 1.25


@dataclass(frozen=True, slots=True)
class TextGroup:
    """Texts that are attended to together, each padded to the longest."""

    #: [num_texts, longest], rows of the batch; padding is the first row of its text.
    rows: Tensor
    #: [num_texts, 1, 1, longest], True for tokens; None without padding.
    is_token: Tensor | None
    #: [num_tokens], places of the tokens in the flattened `rows`; None without padding.
    places: Tensor | None

    @classmethod
    def of(cls, texts: Sequence[tuple[int, int]], device: torch.device) -> TextGroup:
        """Return the group of texts, given by their first row and the row after their last."""
        longest = max(stop - start for start, stop in texts)
        padded = [
            [*range(start, stop), *[start] * (longest - stop + start)] for start, stop in texts
        ]
        rows = torch.tensor(padded, device=device)
        lengths = torch.tensor([stop - start for start, stop in texts])
        if int(lengths.min()) == longest:
            return cls(rows, None, None)
        is_token = torch.arange(longest) < lengths[:, None]
        places = is_token.flatten().nonzero().flatten().to(device)
        return cls(rows, is_token[:, None, None].to(device), places)

    def attend(self, parts: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """Write what the tokens of the group attend to.

        Args:
            parts: [num_rows, 3, num_heads, head_dim]: queries, keys and values.
            bias: [num_heads, longest, longest] or larger, added to the scores; None if nothing is.
            out: [num_rows, num_heads, head_dim].
        """
        query, key, value = parts[self.rows].permute(2, 0, 3, 1, 4).unbind(0)
        mask = self.is_token
        if bias is not None:
            longest = self.rows.shape[1]
            mask = bias[:, :longest, :longest]
            if self.is_token is not None:
                mask = mask.masked_fill(~self.is_token, -torch.inf)
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        flat, rows = found.transpose(1, 2).flatten(0, 1), self.rows.flatten()
        if self.places is not None:
            flat, rows = flat[self.places], rows[self.places]
        out[rows] = flat


def text_groups(bounds: Sequence[int], device: torch.device) -> list[TextGroup]:
    """Return the groups of a batch's texts, of which at most a fifth is padding.

    Args:
        bounds: Rows at which texts begin, and the number of rows.
        device: Device of the batch.
    """
    by_length = sorted(pairwise(bounds), key=lambda text: text[1] - text[0])
    return [TextGroup.of(texts, device) for texts in _similar(by_length)]


def _similar(texts: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Yield runs of texts, the shortest first, that need little padding together."""
    group: list[tuple[int, int]] = []
    num_tokens = 0
    for start, stop in texts:
        length = stop - start
        if group and length * (len(group) + 1) > _MAX_PADDED * (num_tokens + length):
            yield group
            group, num_tokens = [], 0
        group.append((start, stop))
        num_tokens += length
    if group:
        yield group
