"""Why requests end with an error once they are computed."""

from __future__ import annotations

from typing import Final

from batchmill.engine.request.outputs import RequestFailure
from batchmill.engine.request.request import Request
from batchmill.engine.scheduling.scheduled_batch import ScheduledBatch

#: The logits of a request were not finite, and neither its controls nor its media are to blame.
NOT_FINITE: Final = RequestFailure(
    "numerical_error",
    "the model computed logits that are not finite numbers: try another dtype (float32), and check "
    "the model's weights",
)
_NOT_FINITE_STEERED: Final = RequestFailure(
    "numerical_error",
    "the model computed logits that are not finite numbers, with a steering vector: lower its "
    "strength, or leave steering out",
)


def failure_without_token(request: Request) -> RequestFailure:
    """Return why a request got no token: because of its controls, its media or its logits."""
    if request.controls is not None and request.controls.is_exhausted:
        return request.controls.failure
    if request.media is not None and request.media.problem is not None:
        return RequestFailure("media_failed", request.media.problem)
    return NOT_FINITE if request.steering is None else _NOT_FINITE_STEERED


def out_of_memory_alone(batch: ScheduledBatch) -> RequestFailure:
    """Return why a request ends that ran out of memory alone in a step, too often."""
    return RequestFailure(
        "out_of_memory",
        f"memory ran out for this request alone, at {batch.num_tokens} tokens in one step and "
        "fewer: lower max_num_batched_tokens or kv_cache_bytes",
    )
