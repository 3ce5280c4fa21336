"""The guide of a request with a negative prompt, prepared beside it."""

from __future__ import annotations

from collections.abc import Sequence

from batchmill.engine.errors import RequestError
from batchmill.engine.request.request import Request


def add_guide(
    request: Request, negative_token_ids: Sequence[int], *, max_model_len: int, max_num_seqs: int
) -> None:
    """Make the request that guides another one.

    Args:
        request: The request to guide, with its resumed tokens.
        negative_token_ids: The negative prompt.
        max_model_len: Most tokens of a request.
        max_num_seqs: Most requests of a step.

    Raises:
        RequestError: `context_length_exceeded` if the output does not fit behind the negative
            prompt; `unsupported_parameter` if the engine computes one request at a time.
    """
    num_prompt_tokens = len(request.prompt_token_ids)
    if request.params.max_tokens is None:
        # The output ends where either of the two reaches the model's length.
        num_left = max_model_len - len(negative_token_ids)
        request.max_num_tokens = min(request.max_num_tokens, num_prompt_tokens + num_left)
    num_output = request.max_num_tokens - num_prompt_tokens
    num_tokens = len(negative_token_ids) + num_output
    if num_tokens > max_model_len:
        raise RequestError(
            "context_length_exceeded",
            f"negative_prompt has {len(negative_token_ids)} tokens and the output may have "
            f"{num_output}, together more than max_model_len ({max_model_len}): shorten it, or "
            "lower max_tokens",
        )
    if max_num_seqs < 2:
        raise RequestError(
            "unsupported_parameter",
            "guidance_scale: a guided request takes two places in a step, max_num_seqs is 1: raise "
            "it, or leave guidance_scale out",
        )
    guide = Request(
        f"{request.request_id}\0guide",
        negative_token_ids,
        request.params,
        seed=request.seed,
        max_num_tokens=num_tokens,
        resumed_token_ids=request.output_token_ids,
        cache_salt=request.cache_salt,
        adapter=request.adapter,
        steering=request.steering,
    )
    guide.priority = request.priority
    guide.metrics.arrived_at_s = request.metrics.arrived_at_s
    request.guide_by(guide, request.params.guidance_scale)
