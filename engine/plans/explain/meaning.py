"""Which texts mean the same: those whose embeddings by the model itself are near.

Sources: the prompt whose last state stands for a text, Jiang et al. 2023, "Scaling Sentence
Embeddings with Large Language Models" (PromptEOL); groups made one by one against the first of each
group, Kuhn et al. 2023, "Semantic Uncertainty".
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

from batchmill.engine.errors import RequestError
from batchmill.engine.plans.embedding import stacked
from batchmill.engine.plans.plan import PlannedJob, PlannedRequest
from batchmill.engine.request.outputs import RequestOutput
from batchmill.engine.request.pooling import PoolingParams

from .uncertainty import normal

Meanings = Generator[Sequence[PlannedRequest], Sequence[RequestOutput], dict[str, str]]
#: A long text loses its beginning.
_POOLING = PoolingParams(pooling="last", normalize=True, truncate="start")


def check_can_compare(job: PlannedJob) -> None:
    """Check that the model embeds.

    Raises:
        RequestError: it does not.
    """
    if "embed" not in job.engine.pooling.tasks:
        raise RequestError(
            "unsupported_parameter",
            "explain_similarity needs embeddings, and this model's last states cannot be seen: "
            "leave it out",
        )


def meanings(texts: Sequence[str], similarity: float) -> Meanings:
    """Yield requests that embed texts, and return for each normal form that of its group."""
    first_by_key = dict(zip(map(normal, reversed(texts)), reversed(texts), strict=True))
    keys = list(dict.fromkeys(map(normal, texts)))
    outputs = yield [
        PlannedRequest(_frame(first_by_key[key]), _POOLING, priority_below=1) for key in keys
    ]
    vectors = stacked(outputs)
    groups: dict[str, str] = {}
    leaders: list[int] = []
    for place, key in enumerate(keys):
        near = [each for each in leaders if float(vectors[each] @ vectors[place]) >= similarity]
        if not near:
            leaders.append(place)
        groups[key] = keys[near[0]] if near else key
    return groups


def _frame(text: str) -> str:
    return f'This sentence: "{text.strip()}" means in one word: "'
