"""The plan of a beam search: in each step, one request of one token per beam.

Beams share the blocks of their common tokens through the prefix cache: a beam that goes on finds
its own blocks there, and several that go on from one share its.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from batchmill.engine.contract.limits import MAX_LOGPROBS
from batchmill.engine.errors import RequestError
from batchmill.engine.plans.plan import Plan, PlanCounts, PlannedJob, PlannedRequest, PlanResult
from batchmill.engine.request.outputs import RequestOutput, ResumedTokens
from batchmill.engine.request.sampling_params import SamplingParams

from .beams import BeamSearch
from .saved_search import read_search, written_search

#: Steps of a search between two states that are saved: what a killed worker loses at most, and what
#: it took since its last checkpoint.
_STEPS_PER_STATE: Final = 8

#: Controls that a model may recommend, and that change which token is sampled.
_PLAIN: Final[Mapping[str, Any]] = {
    "temperature": 0.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
}


def beam_plan(job: PlannedJob) -> Plan:
    """Return the plan that searches for the likeliest outputs of a job.

    Its own output comes last: the best sequences are given to a request as resumed tokens, so that
    texts, reasons and scores are made as for any other job, and nothing is computed for them. A
    search that was interrupted continues from its saved state.
    """
    assert job.params is not None
    assert job.prompt is not None
    params = replace(job.params, **_PLAIN)
    _check(job, params)
    ends = _ends(job, params)
    width = int(job.section["beam_width"])
    one_token = _one_token(width + len(ends), params, job.engine.config.max_model_len)
    (first,) = yield [PlannedRequest(job.prompt, one_token)]
    prompt = first.prompt_token_ids
    one_token = replace(one_token, truncate_prompt_tokens=None)
    room = job.engine.config.max_model_len - len(prompt)
    search = BeamSearch(
        width,
        ends,
        room if params.max_tokens is None else min(room, params.max_tokens),
        float(job.section.get("length_penalty", 1.0)),
        job.section.get("early_stopping", False),
    )
    counts = PlanCounts(1, first.num_prompt_tokens, first.num_cached_tokens, width)
    if job.saved_state:
        counts.num_output_tokens = read_search(job.saved_state, search)
    else:
        search.advance([_candidates(first)])
    while not search.is_done:
        num_tokens = len(search.running[0].token_ids)
        if num_tokens % _STEPS_PER_STATE == 0:
            job.save_state(written_search(search, counts.num_output_tokens))
        outputs = yield [
            PlannedRequest([*prompt, *beam.token_ids], one_token) for beam in search.running
        ]
        counts.num_output_tokens += len(outputs)
        counts.num_preemptions += sum(each.metrics.num_preemptions for each in outputs)
        search.advance([_candidates(each) for each in outputs])
    best = search.finished[: params.n]
    known = [list(beam.token_ids) for beam in best]
    params = replace(params, n=len(best))
    resumed: ResumedTokens = known[0] if len(known) == 1 else known
    yield [PlannedRequest(job.prompt, params, is_output=True, resumed_token_ids=resumed)]
    scores = [beam.score for beam in best]
    section = {"scores": scores, "num_beam_tokens": counts.num_output_tokens}
    return PlanResult(section, counts=counts)


def _check(job: PlannedJob, params: SamplingParams) -> None:
    width = int(job.section["beam_width"])
    if params.n > width:
        raise RequestError(
            "invalid_request",
            f"n is {params.n}, more than beam_width ({width}): lower it, or raise beam_width",
        )
    if not job.engine.config.enable_prefix_caching:
        raise RequestError(
            "unsupported_parameter",
            "beam_search needs the prefix cache, through which beams share their blocks: set "
            "enable_prefix_caching (BATCHMILL_ENABLE_PREFIX_CACHING)",
        )
    if params.grammar is not None:
        raise RequestError(
            "invalid_request", "beam_search cannot follow a structure: leave one out"
        )
    num_ends = len(_ends(job, params))
    if width + num_ends > MAX_LOGPROBS:
        raise RequestError(
            "unsupported_parameter",
            f"beam_width is {width} and {num_ends} tokens end an output, together more than "
            f"{MAX_LOGPROBS} candidates per beam: lower beam_width",
        )


def _ends(job: PlannedJob, params: SamplingParams) -> frozenset[int]:
    ends = frozenset(params.stop_token_ids or ())
    return ends if params.ignore_eos else ends | frozenset(job.engine.eos_token_ids)


def _one_token(num_candidates: int, params: SamplingParams, max_model_len: int) -> SamplingParams:
    """Return the controls of a beam's request: the likeliest next tokens, with their scores."""
    truncate = params.truncate_prompt_tokens
    if truncate == -1:  # as for the whole output, of which this request is one token
        truncate = max(1, max_model_len - (params.max_tokens or 1))
    return SamplingParams(
        temperature=0,
        max_tokens=1,
        logprobs=num_candidates,
        ignore_eos=True,
        detokenize=False,
        truncate_prompt_tokens=truncate,
    )


def _candidates(output: RequestOutput) -> Mapping[int, float]:
    assert output.logprobs is not None
    candidates: Sequence[Mapping[int, float]] = output.logprobs
    return candidates[0]
