"""The real engine, with a model. Only this file of the worker imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import structlog

from batchmill.engine import (
    Chat,
    Completion,
    Engine,
    EngineConfig,
    RequestOutput,
    SamplingParams,
    ToolCall,
)
from batchmill.engine.contract.beam_search import BEAM_SEARCH
from batchmill.engine.contract.media import MEDIA_SECTIONS
from batchmill.engine.errors import EngineError, RankError, RequestError, is_out_of_memory
from batchmill.engine.lifecycle.intake import Prompt
from batchmill.engine.lifecycle.parallel_sampling import resumed_samples
from batchmill.engine.plans.plan import PlanEnd, PlannedJob
from batchmill.engine.plans.runner import JobOptions, PlanRunner
from batchmill.engine.plans.table import plan_maker, served_kinds
from batchmill.worker.errors import EngineStartError

from .hosted_engine import RequestRefused, StepOutput
from .messages import (
    AddRequest,
    DraftCounts,
    EngineLoad,
    EngineSpec,
    EngineWork,
    Finished,
    FinishedCall,
    FinishedSample,
    LogprobDetails,
    MediaCounts,
    NewOutput,
    OffloadCounts,
    Ready,
)

#: Longest part of a library's error that a message has.
_MAX_ERROR_CHARS = 400
_log = structlog.stdlib.get_logger("batchmill.engine_process")


def build_real_engine(spec: EngineSpec) -> RealEngine:
    """Load the model that a spec describes.

    Raises:
        EngineStartError: the configuration, the model, a library or the device cannot work.
    """
    try:
        return RealEngine(Engine(EngineConfig(model=spec.model, **spec.options)))
    except RankError as error:
        raise EngineStartError(str(error), may_retry=error.may_retry) from error
    except EngineError as error:
        raise EngineStartError(str(error)) from error
    except Exception as error:
        # Libraries tell in plain exceptions what this machine lacks: a compiler, a driver, memory.
        _log.exception("engine_cannot_be_built")
        may_retry = is_out_of_memory(error)
        raise EngineStartError(_start_failure(error), may_retry=may_retry) from error


def _start_failure(error: Exception) -> str:
    """Return one line that names what failed, and the remedy if it is known."""
    text = " ".join(str(error).split())[:_MAX_ERROR_CHARS]
    remedy = "the engine's log has the whole error; `batchmill doctor` checks this machine"
    if is_out_of_memory(error):
        remedy = (
            "lower BATCHMILL_KV_CACHE_BYTES, BATCHMILL_GPU_MEMORY_UTILIZATION or "
            "BATCHMILL_MAX_NUM_BATCHED_TOKENS, or stop other programs that use this memory"
        )
    return f"the engine cannot be built: {type(error).__name__}: {text}; {remedy}"


class RealEngine:
    """Adapts `batchmill.engine.Engine` to the messages of the engine process."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._plans = PlanRunner(engine)
        #: Params of unfinished requests that report log probabilities.
        self._scored: dict[str, SamplingParams] = {}
        #: The field of each job with a plan that asks for it, and the params of its own output.
        self._planned: dict[str, tuple[str, SamplingParams | None]] = {}
        #: Tokens of each job with a plan that earlier attempts have saved.
        self._num_saved: dict[str, int] = {}
        #: State that plans have given to be saved, since the last report.
        self._plan_states: dict[str, bytes] = {}
        #: Resumed requests without any output yet.
        self._resumed: set[str] = set()
        # What `take_work` has returned.
        self._num_steps = 0
        self._num_preemptions = 0

    def describe(self) -> Ready:
        """Return the engine's identity and limits."""
        config = self._engine.config
        return Ready(
            identity=self._engine.identity,
            num_blocks=self._engine.stats().num_blocks,
            block_size=config.block_size,
            max_model_len=self._engine.max_model_len,
            num_steps_ahead=int(self._engine.overlaps),
            dtype=self._engine.dtype,
            num_ranks=config.tensor_parallel_size,
            drafts=self.drafts(),
            kinds=served_kinds(self._engine.pooling),
            media=self._engine.media_kinds,
            sample_rate_hz=self._engine.sample_rate_hz,
        )

    def add(self, request: AddRequest) -> None:
        """Queue a request.

        Raises:
            RequestRefused: the request cannot be run.
        """
        try:
            if request.section is not None:
                self._add_plan(request, request.section)
                return
            prompt = _prompt(request)
            params = SamplingParams.from_dict(self._with_defaults(request.params))
            self._engine.add_request(
                request.request_id,
                prompt,
                params,
                resumed_samples(request.resumed_token_ids, params.n),
                priority=request.priority,
                deadline_s=request.deadline_s,
                cache_salt=request.cache_salt,
                lora=request.lora,
                steering=request.steering,
                media=request.media,
                draft_corpus=request.draft_corpus,
            )
            if params.num_logprobs is not None or params.num_prompt_logprobs is not None:
                self._scored[request.request_id] = params
            if request.resumed_token_ids:
                self._resumed.add(request.request_id)
        except RequestError as error:
            raise RequestRefused(error.code, error.message) from error

    def _add_plan(self, request: AddRequest, section: str) -> None:
        prompt, params = None, None
        if request.media and section not in MEDIA_SECTIONS:
            raise RequestError(
                "unsupported_parameter",
                f"{section} is not computed over media: leave out the images and audio, or leave "
                f"{section} out",
            )
        if request.prompt is not None or request.chat is not None:
            prompt = _prompt(request)
            params = SamplingParams.from_dict(self._with_defaults(request.params))
        job = PlannedJob(
            self._engine,
            request.section_fields,
            prompt,
            params,
            request.media,
            request.plan_state,
            partial(self._plan_states.__setitem__, request.request_id),
        )
        options = JobOptions(
            request.resumed_token_ids,
            priority=request.priority,
            deadline_s=request.deadline_s,
            cache_salt=request.cache_salt,
            lora=request.lora,
            steering=request.steering,
        )
        self._plans.add(request.request_id, plan_maker(section, self._engine.pooling)(job), options)
        self._planned[request.request_id] = (section, params)
        self._num_saved[request.request_id] = len(request.resumed_token_ids)
        if request.resumed_token_ids:
            self._resumed.add(request.request_id)

    def _with_defaults(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return parameters with the model's defaults for those that a job leaves out."""
        missing = {
            name: value
            for name, value in self._engine.sampling_defaults.items()
            if given.get(name) is None
        }
        return {**given, **missing}

    def set_draft_corpus(self, name: str, outputs: Sequence[Sequence[int]]) -> None:
        """Replace the outputs that requests of a corpus take draft tokens from."""
        self._engine.set_draft_corpus(name, outputs)

    def abort(self, request_id: str) -> None:
        """End a request early; the next step reports its end. Ignore an unknown request."""
        if not self._plans.abort(request_id):
            self._engine.abort(request_id)

    def has_unfinished(self) -> bool:
        """Return whether there is any request to compute or report."""
        return self._engine.has_unfinished() or self._plans.has_ends

    def step(self) -> StepOutput:
        """Compute one batch."""
        result = StepOutput()
        for output in self._engine.step():
            if output.new_token_ids and not self._plans.hides(output):
                result.new_outputs.append(self._new_output(output))
            if output.finished and not self._plans.take(output):
                self._resumed.discard(output.request_id)
                params = self._scored.pop(output.request_id, None)
                details = None if params is None else self._logprob_details(output, params)
                result.finished.append(_finished(output, details))
        result.plan_states.update(self._plan_states)
        self._plan_states.clear()
        for end in self._plans.take_ends():
            result.new_outputs += self._found_output(end)
            result.finished.append(self._plan_finished(end))
        return result

    def load(self) -> EngineLoad:
        """Return how full the engine is."""
        load = self._engine.load()
        adapters = self._engine.resident_adapters
        return EngineLoad(load.num_running, load.num_waiting, load.num_free_blocks, adapters)

    def drafts(self) -> DraftCounts | None:
        """Return the counts of draft tokens; None if prompt lookup is off and there were none."""
        counts = self._engine.draft_counts()
        if counts is None:
            return None
        by_source = {source.value: found for source, found in counts.by_source.items()}
        return DraftCounts(counts.num_draft_tokens, counts.num_accepted_tokens, by_source)

    def media_counts(self) -> MediaCounts | None:
        """Return the counts of pictures and sounds, or None if the model takes none."""
        counts = self._engine.feature_counts()
        if counts is None:
            return None
        return MediaCounts(
            counts.num_encoded,
            counts.num_found,
            counts.num_runs,
            counts.run_time_s,
            counts.num_bytes,
        )

    def offload_counts(self) -> OffloadCounts | None:
        """Return the counts of KV in host memory, or None if none is kept there."""
        counts = self._engine.offload_counts()
        if counts is None:
            return None
        return OffloadCounts(
            counts.num_stored,
            counts.num_restored,
            counts.num_evicted,
            counts.num_not_stored,
            counts.num_held,
            counts.num_host_blocks,
            counts.block_bytes,
        )

    def take_work(self) -> EngineWork:
        """Return what was computed since the last call."""
        steps = self._engine.steps_after(self._num_steps)
        num_preemptions = self._engine.num_preemptions - self._num_preemptions
        self._num_steps = self._engine.num_steps
        self._num_preemptions += num_preemptions
        return EngineWork(
            [(step.num_seqs, step.num_tokens, step.time_s) for step in steps], num_preemptions
        )

    def prepare(self, timeout_s: float) -> bool:
        """Pre-fault memory of the KV cache; return whether all of it is there."""
        return self._engine.provide_memory(timeout_s)

    def _logprob_details(self, output: RequestOutput, params: SamplingParams) -> LogprobDetails:
        echoed = output.prompt_token_ids if params.echo else None
        scored = [output.prompt_logprobs, *(each.logprobs for each in output.completions)]
        token_ids = {
            token_id for logprobs in scored for each in logprobs or () for token_id in each or ()
        }
        token_bytes = self._engine.token_bytes(token_ids.union(echoed or ()))
        return LogprobDetails(
            params.num_logprobs, token_bytes, echoed, params.logprob_token_ids or ()
        )

    def _found_output(self, end: PlanEnd) -> list[NewOutput]:
        """Return the output of a search as new: its tokens are known only at the end."""
        section, _ = self._planned[end.request_id]
        num_saved = self._num_saved.pop(end.request_id, 0)
        if section != BEAM_SEARCH or end.output is None:
            return []
        token_ids = end.output.token_ids[num_saved:]
        if not token_ids:
            return []
        return [(end.request_id, token_ids, end.output.text, end.output.reasoning)]

    def _plan_finished(self, end: PlanEnd) -> Finished:
        section, params = self._planned.pop(end.request_id)
        self._resumed.discard(end.request_id)
        num_own_tokens = 0 if end.output is None else end.output.usage.completion_tokens
        return replace(
            self._own_output(end, params),
            finish_reason=str(end.finish_reason),
            num_prompt_tokens=end.counts.num_prompt_tokens,
            num_cached_tokens=end.counts.num_cached_tokens,
            num_preemptions=end.counts.num_preemptions,
            error=None if end.error is None else end.error.message,
            error_code=None if end.error is None else end.error.code,
            sections={} if end.result is None else {section: end.result.section},
            num_section_tokens=end.counts.num_output_tokens - num_own_tokens,
        )

    def _own_output(self, end: PlanEnd, params: SamplingParams | None) -> Finished:
        """Return the output of a job with a plan, without scores that only the plan asked for."""
        if end.output is None or params is None:
            return Finished(end.request_id, "", (), str(end.finish_reason), 0)
        details = None
        if params.num_logprobs is not None or params.num_prompt_logprobs is not None:
            details = self._logprob_details(end.output, params)
        finished = _finished(end.output, details)
        return replace(
            finished,
            logprobs=_fewer(finished.logprobs, params),
            entropies=finished.entropies if params.entropy else None,
        )

    def _new_output(self, output: RequestOutput) -> NewOutput:
        text, thoughts = output.new_text, output.new_reasoning
        if output.request_id in self._resumed:
            self._resumed.remove(output.request_id)
            text, thoughts = output.text, output.reasoning
        return output.request_id, output.new_token_ids, text, thoughts


def _fewer(
    logprobs: Sequence[Mapping[int, float] | None] | None, params: SamplingParams
) -> list[Mapping[int, float] | None] | None:
    """Return the log probabilities that a job asked for, of those that its plan got."""
    num_top = params.num_logprobs
    if num_top is None or logprobs is None:
        return None
    asked = set(params.logprob_token_ids or ())
    return [
        None
        if row is None
        else {
            token_id: value
            for place, (token_id, value) in enumerate(row.items())
            if place <= num_top or token_id in asked
        }
        for row in logprobs
    ]


def _prompt(request: AddRequest) -> Prompt:
    if request.chat is not None:
        return Chat(**request.chat)
    return request.prompt if request.prompt is not None else ""


def _finished(output: RequestOutput, details: LogprobDetails | None) -> Finished:
    completions = output.completions
    return Finished(
        request_id=output.request_id,
        text=output.text,
        token_ids=output.token_ids,
        finish_reason=str(output.finish_reason),
        num_prompt_tokens=output.num_prompt_tokens,
        num_cached_tokens=output.num_cached_tokens,
        num_preemptions=output.metrics.num_preemptions,
        queued_s=output.metrics.queued_s,
        first_token_s=output.metrics.first_token_s,
        finished_s=output.metrics.finished_s,
        inter_token_s=output.metrics.inter_token_s,
        stop_reason=output.stop_reason,
        logprobs=output.logprobs,
        entropies=output.entropies,
        prompt_logprobs=output.prompt_logprobs,
        logprob_details=details,
        tool_calls=_calls(output.tool_calls),
        is_watermarked=output.watermark is not None,
        reasoning=output.reasoning,
        num_reasoning_tokens=output.num_reasoning_tokens,
        samples=[_sample(each) for each in completions] if len(completions) > 1 else (),
        error=None if output.error is None else output.error.message,
        error_code=None if output.error is None else output.error.code,
    )


def _sample(completion: Completion) -> FinishedSample:
    return FinishedSample(
        text=completion.text,
        token_ids=completion.token_ids,
        finish_reason=str(completion.finish_reason),
        stop_reason=completion.stop_reason,
        logprobs=completion.logprobs,
        entropies=completion.entropies,
        tool_calls=_calls(completion.tool_calls),
        reasoning=completion.reasoning,
        num_reasoning_tokens=completion.num_reasoning_tokens,
        error=None if completion.error is None else completion.error.message,
    )


def _calls(calls: Sequence[ToolCall]) -> list[FinishedCall]:
    return [FinishedCall(call.id, call.name, call.arguments) for call in calls]
