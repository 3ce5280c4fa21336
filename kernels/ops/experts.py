"""The routing of a mixture of experts: who computes a token, and the sum of what they compute.

    shares = softmax(router's logits), its `num_chosen` largest, divided by their sum if normalised
    out[token] = sum over its experts of share * computed[the expert's row of this token]

Rows are ordered by expert, and by token for the same expert, so that a grouped matrix product takes
them. Nothing is read on the host.

Source: Mixtral of Experts, Jiang et al. 2024, section 2.1; routing and permutation fused as in
vLLM's `moe_align_block_size`.
"""

from __future__ import annotations

from torch import Tensor

from batchmill.kernels.reference.experts import (
    Routing,
    combine_experts_reference,
    route_experts_reference,
)

from .dispatch import Backend, lazy_triton, select_backend


def route_experts(
    logits: Tensor, num_chosen: int, *, normalise: bool, backend: Backend = "auto"
) -> Routing:
    """Choose each token's experts, and order them.

    A token's experts are listed by falling share; of equal ones some backend may choose another
    than the reference.

    Args:
        logits: [num_tokens, num_experts] float: the router's output.
        num_chosen: Experts of a token, at most `num_experts`.
        normalise: Divide the shares by their sum.
        backend: The implementation to use; `auto` takes the fastest.

    Raises:
        ValueError: `logits` has another shape, or fewer experts than are chosen.
    """
    if logits.dim() != 2 or not 0 < num_chosen <= logits.shape[1]:
        raise ValueError(
            f"logits must be [num_tokens, num_experts] with at least {num_chosen} experts, got "
            f"{list(logits.shape)}"
        )
    compute = select_backend("route_experts", _ROUTE_BACKENDS, backend, logits.device)
    return compute(logits, num_chosen, normalise)


def combine_experts(computed: Tensor, routing: Routing, *, backend: Backend = "auto") -> Tensor:
    """Add what a token's experts computed, in float32 and in the order of `Routing.shares`.

    Args:
        computed: [num_tokens * num_chosen, hidden], contiguous: the rows of `Routing.rows`.
        routing: Of the same tokens.
        backend: The implementation to use; `auto` takes the fastest.

    Returns:
        [num_tokens, hidden], same dtype.

    Raises:
        ValueError: `computed` has another number of rows.
    """
    if computed.dim() != 2 or len(computed) != len(routing.rows):
        raise ValueError(
            f"computed must have {len(routing.rows)} rows, one per token and expert, got "
            f"{list(computed.shape)}"
        )
    compute = select_backend("combine_experts", _COMBINE_BACKENDS, backend, computed.device)
    return compute(computed, routing.places, routing.shares)


_ROUTE_BACKENDS = {
    "reference": route_experts_reference,
    "triton": lazy_triton(
        "batchmill.kernels.gpu.experts", "route_experts_triton", like=route_experts_reference
    ),
}
_COMBINE_BACKENDS = {
    "reference": combine_experts_reference,
    "triton": lazy_triton(
        "batchmill.kernels.gpu.experts", "combine_experts_triton", like=combine_experts_reference
    ),
}
