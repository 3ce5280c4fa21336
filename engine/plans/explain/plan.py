"""The plan of an explained job: its own output first, then what explains it."""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from batchmill.engine.errors import RequestError
from batchmill.engine.plans.plan import Plan, PlanCounts, PlannedJob, PlannedRequest, PlanResult
from batchmill.engine.request.outputs import RequestOutput

from .alternatives import alternative, following, fork_request, least_certain
from .attribution import attribution
from .confidence import NUM_TOP, token_facts
from .meaning import check_can_compare, meanings
from .uncertainty import sample_requests, uncertainty

Part = Generator[Sequence[PlannedRequest], Sequence[RequestOutput], Any]


def explain_plan(job: PlannedJob) -> Plan:
    """Return the plan that generates a job's output and explains it by the parts it asks for."""
    assert job.params is not None
    assert job.prompt is not None
    parts = job.section["parts"]
    if "attribution" in parts and job.media:
        raise RequestError(
            "unsupported_parameter",
            "attribution leaves out parts of a text, and the job has pictures or sounds: leave "
            "attribution out",
        )
    if job.section.get("similarity") is not None:
        check_can_compare(job)
    params = replace(job.params, logprobs=max(job.params.logprobs or 0, NUM_TOP), entropy=True)
    (output,) = yield [PlannedRequest(job.prompt, params, is_output=True, media=job.media)]
    counts = PlanCounts()
    section = yield from _counted(_sections(job, output, parts), counts)
    return PlanResult(section | {"usage": _usage(counts)})


def _sections(job: PlannedJob, output: RequestOutput, parts: Collection[str]) -> Part:
    """Yield the requests that explain an output, and return the section by its parts."""
    assert job.params is not None
    facts = token_facts(output)
    section: dict[str, Any] = {}
    if "confidence" in parts:
        section["confidence"] = _confidence(job, facts)
    if "alternatives" in parts:
        section["alternatives"] = yield from _alternatives(job, output, facts)
    if "attribution" in parts:
        section["attribution"] = yield from attribution(job, _answer(output))
    if "uncertainty" in parts:
        outputs = yield sample_requests(job, job.params)
        texts, similarity = [each.text for each in outputs], job.section.get("similarity")
        groups = None
        if similarity is not None:
            groups = yield from meanings([output.text, *texts], similarity)
        section["uncertainty"] = uncertainty(output.text, texts, groups)
    return section


def _counted(part: Part, counts: PlanCounts) -> Part:
    """Yield the requests of a part and return what it returns, counting the outputs."""
    outputs: Sequence[RequestOutput] | None = None
    while True:
        try:
            requests = next(part) if outputs is None else part.send(outputs)
        except StopIteration as end:
            return end.value
        outputs = yield requests
        for each in outputs:
            counts.add(each)


def _usage(counts: PlanCounts) -> dict[str, int]:
    """Return what the explanation took besides the job's own output."""
    return {
        "num_requests": counts.num_requests,
        "prompt_tokens": counts.num_prompt_tokens,
        "cached_tokens": counts.num_cached_tokens,
        "completion_tokens": counts.num_output_tokens,
    }


def _answer(output: RequestOutput) -> list[int]:
    """Return the tokens of the output without the end-of-text token."""
    is_stopped = output.finish_reason == "stop" and output.stop_reason is None
    return output.token_ids[:-1] if is_stopped else output.token_ids


def _confidence(job: PlannedJob, facts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    decode = job.engine.tokenizer.decode
    return [
        {
            "text": decode([each["token_id"]], skip_special_tokens=False),
            **{name: each[name] for name in ("probability", "entropy", "rank", "margin")},
        }
        for each in facts
    ]


def _alternatives(
    job: PlannedJob, output: RequestOutput, facts: Sequence[Mapping[str, Any]]
) -> Part:
    assert job.params is not None
    ends = frozenset[int]() if job.params.ignore_eos else job.engine.eos_token_ids
    followers: dict[int, Sequence[int]] = {}
    requests: dict[int, PlannedRequest] = {}
    for place in least_certain(facts):
        runner_up = facts[place]["runner_up"]
        request = fork_request(job, output, place, runner_up)
        if runner_up in ends:
            followers[place] = ()
        elif request is not None:
            requests[place] = request
    if requests:
        outputs = yield list(requests.values())
        followers |= {
            place: following(request, each)
            for (place, request), each in zip(requests.items(), outputs, strict=True)
        }
    return [
        alternative(job.engine.tokenizer, facts, place, token_ids)
        for place, token_ids in sorted(followers.items())
    ]
