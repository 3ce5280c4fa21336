"""The plan of a scoring job: by the model's classification head, or by comparing embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchmill.engine.errors import RequestError
from batchmill.engine.lifecycle.pooled_intake import TextPair
from batchmill.engine.request.outputs import RequestOutput
from batchmill.engine.request.pooling import PoolingParams

from .embedding import encoded, options, stacked
from .plan import Plan, PlannedJob, PlannedRequest, PlanResult

#: Name of the only score of a model that compares embeddings.
_COSINE = "cosine"


def scoring_plan(job: PlannedJob) -> Plan:
    """Score each input of a job, alone or against its query.

    A model with a classification head reads query and input together (a cross-encoder). Any other
    embeds both, and the score is the cosine of the two vectors (a bi-encoder).

    Raises:
        RequestError: the model has no head and there is no query, or an option is wrong.
    """
    support = job.engine.pooling
    if "score" in support.tasks:
        return _by_head(job, support.labels)
    return _by_cosine(job)


def _by_head(job: PlannedJob, labels: Sequence[str]) -> Plan:
    fields = job.section
    params = PoolingParams(task="score", **options(fields, ("activation", "truncate")))
    query, inputs = fields.get("query"), fields["input"]
    prompts = inputs if query is None else [_pair(query, each) for each in inputs]
    outputs = yield [PlannedRequest(each, params) for each in prompts]
    return _result(labels, stacked(outputs), outputs)


def _by_cosine(job: PlannedJob) -> Plan:
    fields = job.section
    if fields.get("query") is None:
        raise RequestError(
            "unsupported_parameter",
            "this model has no classification head, so it scores texts only against a query: give "
            "query, or use a …ForSequenceClassification model",
        )
    if fields.get("activation") not in (None, "none"):
        raise RequestError(
            "unsupported_parameter",
            f"activation is {fields['activation']!r}, and this model has no classification head: "
            "its score is a cosine, so leave activation out",
        )
    params = PoolingParams(**options(fields, ("truncate",)))
    prompts: list[Any] = [fields["query"], *fields["input"]]
    outputs = yield [PlannedRequest(each, params) for each in prompts]
    vectors = stacked(outputs)
    return _result((_COSINE,), (vectors[1:] @ vectors[0])[:, None], outputs)


def _pair(query: Any, text: Any) -> TextPair:
    if not isinstance(query, str) or not isinstance(text, str):
        raise RequestError(
            "invalid_request", "query and input must be texts if they are scored together"
        )
    return TextPair(query, text)


def _result(
    labels: Sequence[str], scores: NDArray[np.float32], outputs: Sequence[RequestOutput]
) -> PlanResult:
    section = {
        "labels": list(labels),
        "count": len(scores),
        "data": encoded(scores),
        "prompt_tokens": [each.num_prompt_tokens for each in outputs[-len(scores) :]],
    }
    return PlanResult(section)
