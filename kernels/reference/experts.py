"""References of `route_experts` and `combine_experts`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Routing(NamedTuple):
    """The experts of a step's tokens."""

    shares: Tensor  # [num_tokens, num_chosen] float32
    rows: Tensor  # [num_tokens * num_chosen] int64: the token of each row, expert by expert
    places: Tensor  # [num_tokens, num_chosen] int64: the row of each token's expert
    ends: Tensor  # [num_experts] int32: the end of each expert's rows


def choose_experts(logits: Tensor, num_chosen: int, normalise: bool) -> tuple[Tensor, Tensor]:
    """Return the shares and numbers of each token's experts, [num_tokens, num_chosen]."""
    shares, chosen = torch.topk(torch.softmax(logits.float(), dim=-1), num_chosen)
    if normalise:
        shares = shares / shares.sum(dim=-1, keepdim=True)
    return shares, chosen


def route_experts_reference(logits: Tensor, num_chosen: int, normalise: bool) -> Routing:
    """Compute `route_experts` in plain torch."""
    return order_rows(*choose_experts(logits, num_chosen, normalise), logits.shape[1])


def order_rows(shares: Tensor, chosen: Tensor, num_experts: int) -> Routing:
    """Order the rows of chosen experts, expert by expert; nothing is read on the host."""
    order = chosen.flatten().argsort(stable=True)  # expert by expert, tokens in order
    experts = torch.arange(num_experts, device=chosen.device)
    # `bincount` would wait for the size of its result.
    ends = torch.searchsorted(chosen.flatten()[order], experts, right=True).to(torch.int32)
    return Routing(shares, order // chosen.shape[1], order.argsort().view(chosen.shape), ends)


def combine_experts_reference(computed: Tensor, places: Tensor, shares: Tensor) -> Tensor:
    """Compute `combine_experts` in plain torch."""
    by_token = computed.index_select(0, places.flatten()).view(*places.shape, -1)
    return (by_token * shares[..., None]).sum(dim=1).to(computed.dtype)
