"""Runs plans beside the engine's other requests."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypedDict, cast

from batchmill.engine.contract.steering import SteeringSpec
from batchmill.engine.engine import Engine
from batchmill.engine.errors import RequestError
from batchmill.engine.lifecycle.intake import Prompt
from batchmill.engine.lifecycle.parallel_sampling import resumed_samples
from batchmill.engine.request.outputs import (
    FinishReason,
    RequestFailure,
    RequestOutput,
    ResumedTokens,
)
from batchmill.engine.request.pooling import PoolingParams

from .plan import Plan, PlanCounts, PlanEnd, PlannedRequest, PlanResult

_log = logging.getLogger(__name__)


class _Common(TypedDict):
    """Arguments that all kinds of requests take."""

    priority: int
    deadline_s: float | None
    cache_salt: str | None
    lora: str | None
    steering: SteeringSpec | None


_STOPPED = (FinishReason.ABORT, FinishReason.ERROR)


@dataclass(frozen=True, slots=True)
class JobOptions:
    """What all requests of a job have in common; see `Engine.add_request`."""

    resumed_token_ids: Sequence[int] = ()
    priority: int = 0
    deadline_s: float | None = None
    cache_salt: str | None = None
    lora: str | None = None
    steering: SteeringSpec | None = None


@dataclass(slots=True, eq=False)
class _RunningPlan:
    request_id: str
    plan: Plan
    options: JobOptions
    added_at: float = field(default_factory=time.monotonic)
    counts: PlanCounts = field(default_factory=PlanCounts)
    #: The requests that are being computed, by the engine's id: their places in `outputs`.
    places: dict[str, int] = field(default_factory=dict)
    outputs: list[RequestOutput | None] = field(default_factory=list)
    num_added: int = 0
    own_output: RequestOutput | None = None
    is_aborted: bool = False

    def time_left_s(self) -> float | None:
        """Return the seconds until the job's deadline, more than 0; None without one."""
        if self.options.deadline_s is None:
            return None
        left_s = self.added_at + self.options.deadline_s - time.monotonic()
        return max(left_s, 1e-6)


class PlanRunner:
    """Adds the requests of plans to an engine, and takes their outputs out of its steps.

    A plan is a function of its job and of the outputs of its requests, so that a job which starts
    again computes the same. Only the request whose output is the job's own is resumed from saved
    tokens. Call it from the engine's thread.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._plans: dict[str, _RunningPlan] = {}
        # The plan of each unfinished request; None if its output is of no use any more.
        self._owners: dict[str, _RunningPlan | None] = {}
        self._ends: list[PlanEnd] = []

    @property
    def has_ends(self) -> bool:
        """Whether `take_ends` has something to return."""
        return bool(self._ends)

    def add(self, request_id: str, plan: Plan, options: JobOptions) -> None:
        """Start a plan.

        Raises:
            RequestError: the plan or the engine refuses the job; nothing stays of it.
        """
        running = self._plans[request_id] = _RunningPlan(request_id, plan, options)
        try:
            self._advance(running, None)
        except BaseException:  # also a panic of a Rust library, in the intake of a request
            del self._plans[request_id]
            raise

    def abort(self, request_id: str) -> bool:
        """End a job early; return False if no plan runs under this id."""
        running = self._plans.get(request_id)
        if running is None:
            return False
        running.is_aborted = True
        for each in tuple(running.places):
            self._engine.abort(each)
        return True

    def hides(self, output: RequestOutput) -> bool:
        """Whether an output is no job's own: its tokens are not reported."""
        return output.request_id in self._owners and output.request_id not in self._plans

    def take(self, output: RequestOutput) -> bool:
        """Take the last output of a request; return False if it belongs to no plan."""
        if output.request_id not in self._owners:
            return False
        running = self._owners.pop(output.request_id)
        if running is None:
            return True
        running.counts.add(output)
        place = running.places.pop(output.request_id)
        running.outputs[place] = output
        if output.request_id == running.request_id:
            running.own_output = output
        if running.is_aborted or output.finish_reason in _STOPPED:
            self._stop(running, output)
        elif not running.places:
            self._continue(running)
        return True

    def take_ends(self) -> list[PlanEnd]:
        """Return the jobs that have ended, once."""
        ends, self._ends = self._ends, []
        return ends

    def _continue(self, running: _RunningPlan) -> None:
        outputs = [output for output in running.outputs if output is not None]
        try:
            self._advance(running, outputs)
        except RequestError as error:
            self._end(running, FinishReason.ERROR, RequestFailure(error.code, error.message))
        except Exception:
            # This is inside a step: raised further, it would end the requests of all other jobs.
            _log.exception("the plan of the job %s failed", running.request_id)
            text = (
                "the engine failed while it prepared the job's next requests; see the worker's log"
            )
            self._end(running, FinishReason.ERROR, RequestFailure("internal_error", text))

    def _advance(self, running: _RunningPlan, outputs: Sequence[RequestOutput] | None) -> None:
        """Give a plan its outputs, and add the requests that it asks for next."""
        requests: Sequence[PlannedRequest] = ()
        try:
            while not requests:
                requests = next(running.plan) if outputs is None else running.plan.send(outputs)
                outputs = ()
        except StopIteration as end:
            self._finish(running, end.value)
            return
        running.outputs = [None] * len(requests)
        try:
            for place, request in enumerate(requests):
                self._add_request(running, place, request)
        except BaseException:
            self._drop_requests(running)
            running.plan.close()
            raise

    def _add_request(self, running: _RunningPlan, place: int, request: PlannedRequest) -> None:
        options = running.options
        running.num_added += 1
        own = running.request_id
        engine_id = own if request.is_output else f"{own}\0plan\0{running.num_added}"
        common: _Common = {
            "priority": options.priority + request.priority_below,
            "deadline_s": running.time_left_s(),
            "cache_salt": options.cache_salt,
            "lora": options.lora,
            "steering": options.steering,
        }
        if isinstance(request.params, PoolingParams):
            self._engine.add_pooled_request(engine_id, request.prompt, request.params, **common)
        else:
            resumed: ResumedTokens = request.resumed_token_ids
            if request.is_output and not resumed:
                resumed = resumed_samples(options.resumed_token_ids, request.params.n)
            prompt = cast("Prompt", request.prompt)
            self._engine.add_request(
                engine_id, prompt, request.params, resumed, media=request.media, **common
            )
        running.places[engine_id] = place
        self._owners[engine_id] = running

    def _finish(self, running: _RunningPlan, result: PlanResult) -> None:
        reason = FinishReason.STOP
        if running.own_output is not None and running.own_output.finish_reason is not None:
            reason = running.own_output.finish_reason
        if result.failure is not None:
            reason = FinishReason.ERROR
        running.counts = result.counts or running.counts
        self._end(running, reason, result.failure, result)

    def _stop(self, running: _RunningPlan, output: RequestOutput) -> None:
        """End a job that was aborted, or of which a request failed."""
        reason = FinishReason.ABORT if running.is_aborted else output.finish_reason
        self._drop_requests(running)
        running.plan.close()
        self._end(running, reason or FinishReason.ABORT, output.error)

    def _drop_requests(self, running: _RunningPlan) -> None:
        for each in running.places:
            self._owners[each] = None
            self._engine.abort(each)
        running.places.clear()

    def _end(
        self,
        running: _RunningPlan,
        reason: FinishReason,
        error: RequestFailure | None,
        result: PlanResult | None = None,
    ) -> None:
        self._plans.pop(running.request_id, None)
        self._ends.append(
            PlanEnd(running.request_id, reason, running.own_output, result, error, running.counts)
        )
