"""What a plan is: a generator of requests, which gets their outputs and returns a section."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from batchmill.engine.contract.media import Media
from batchmill.engine.engine import Engine
from batchmill.engine.lifecycle.intake import Prompt
from batchmill.engine.lifecycle.pooled_intake import PooledPrompt
from batchmill.engine.request.outputs import (
    FinishReason,
    RequestFailure,
    RequestOutput,
    ResumedTokens,
)
from batchmill.engine.request.pooling import PoolingParams
from batchmill.engine.request.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One request of a plan."""

    prompt: Prompt | PooledPrompt
    #: `PoolingParams` make it a pooled request, which has a vector and no output.
    params: SamplingParams | PoolingParams
    #: Its output is the job's own: it is streamed, saved, and resumed from the saved tokens. At
    #: most one request of a plan.
    is_output: bool = False
    #: Output tokens that are known already, for a request that only scores them. For the job's own
    #: output: tokens that the plan has found, which are reported at its end.
    resumed_token_ids: ResumedTokens = ()
    #: Steps of priority below the job's.
    priority_below: int = 0
    #: Of its chat; see `Engine.add_request`.
    media: Sequence[Media] = ()


@dataclass(frozen=True, slots=True)
class PlanResult:
    """What a plan computed."""

    #: The job's section of the result, of JSON values.
    section: Mapping[str, Any]
    #: Why the job fails all the same; None if it does not.
    failure: RequestFailure | None = None
    #: What the job counts as, if it is not the sum over its requests.
    counts: PlanCounts | None = None


#: Yields requests that can be computed side by side, receives their last outputs in the same order,
#: and returns the result. It raises `RequestError` for arguments that cannot work: before the first
#: requests, so that the job is refused, or later, so that it fails.
Plan: TypeAlias = Generator[Sequence[PlannedRequest], Sequence[RequestOutput], PlanResult]


@dataclass(frozen=True, slots=True)
class PlannedJob:
    """A job as its plan sees it."""

    engine: Engine
    #: The field of the job that asks for the plan.
    section: Mapping[str, Any]
    #: The job's own input and controls, if it generates as well.
    prompt: Prompt | None = None
    params: SamplingParams | None = None
    #: Decoded pictures and sounds, one for each part of type image or audio in the job's chat, or
    #: in the state of its decision.
    media: Sequence[Media] = ()
    #: State that an earlier attempt has saved; empty without one.
    saved_state: bytes = b""
    #: Takes a state from which another attempt can continue; later ones replace it.
    save_state: Callable[[bytes], None] = field(default=lambda state: None, compare=False)


#: Makes the plan of a job.
PlanMaker: TypeAlias = Callable[[PlannedJob], Plan]


@dataclass(slots=True)
class PlanCounts:
    """Sums over all requests of a plan."""

    num_requests: int = 0
    num_prompt_tokens: int = 0
    #: Prompt tokens found in the prefix cache.
    num_cached_tokens: int = 0
    num_output_tokens: int = 0
    num_preemptions: int = 0

    def add(self, output: RequestOutput) -> None:
        """Count one finished request."""
        self.num_requests += 1
        self.num_prompt_tokens += output.num_prompt_tokens
        self.num_cached_tokens += output.num_cached_tokens
        self.num_output_tokens += output.usage.completion_tokens
        self.num_preemptions += output.metrics.num_preemptions


@dataclass(slots=True)
class PlanEnd:
    """The end of a job that had a plan."""

    request_id: str
    finish_reason: FinishReason
    #: The last output of the request whose output is the job's own; None without one.
    output: RequestOutput | None = None
    result: PlanResult | None = None
    #: Why it failed, or was aborted by its deadline.
    error: RequestFailure | None = None
    counts: PlanCounts = field(default_factory=PlanCounts)
