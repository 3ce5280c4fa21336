"""What the verbs on vectors return: the sections of several jobs, joined."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from batchmill.producer.errors import JobRejected
from batchmill.producer.result_parts import PromptTokensDetails, Usage
from batchmill.producer.results import JobResult

#: Inputs of one job, so that several workers share a long list.
GROUP_INPUTS = 64
#: Characters of one job's inputs, so that its document stays far below its limit.
GROUP_CHARS = 128 << 10

Input = TypeVar("Input")


@dataclass(frozen=True, slots=True)
class Embeddings(Sequence[list[float]]):
    """Vectors in the order of the texts; a sequence of lists of numbers."""

    vectors: list[list[float]]
    #: Tokens of all texts.
    usage: Usage
    #: Ids of the jobs that made them.
    job_ids: tuple[str, ...]

    @classmethod
    def of(cls, results: Sequence[JobResult]) -> Self:
        """Join the vectors of completed jobs."""
        vectors = [
            vector for each in results if each.embedding for vector in each.embedding.vectors
        ]
        return cls(vectors, joined_usage(results), tuple(each.id for each in results))

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, index: Any) -> Any:
        return self.vectors[index]

    def __iter__(self) -> Iterator[list[float]]:
        return iter(self.vectors)

    def array(self) -> Any:
        """Return a numpy array, [len(self), dimensions] float32; numpy is needed."""
        import numpy as np

        return np.array(self.vectors, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores in the order of the texts."""

    #: What the scores of a text are: the labels of the model's head, or `cosine`.
    labels: list[str]
    #: For each text one score per label.
    scores: list[list[float]]
    #: Tokens of all texts.
    usage: Usage
    #: Ids of the jobs that made them.
    job_ids: tuple[str, ...]

    @classmethod
    def of(cls, results: Sequence[JobResult]) -> Self:
        """Join the scores of completed jobs."""
        sections = [each.scoring for each in results if each.scoring is not None]
        return cls(
            list(sections[0].labels) if sections else [],
            [scores for each in sections for scores in each.scores],
            joined_usage(results),
            tuple(each.id for each in results),
        )


@dataclass(frozen=True, slots=True)
class RankedDocument:
    """A document and its relevance to a query."""

    #: Its place among the documents that were given, from 0.
    index: int
    relevance_score: float
    document: str


def ranked(scores: Scores, documents: Sequence[str], top_n: int | None) -> list[RankedDocument]:
    """Return documents by relevance, the best first: of several labels, the last counts.

    Raises:
        JobRejected: `top_n` is not a positive number.
    """
    if top_n is not None and (isinstance(top_n, bool) or not isinstance(top_n, int) or top_n < 1):
        raise JobRejected(f"top_n is {top_n!r}; give an integer of at least 1", param="top_n")
    relevance = [each[-1] for each in scores.scores]
    order = sorted(range(len(relevance)), key=lambda index: -relevance[index])[:top_n]
    return [RankedDocument(index, relevance[index], documents[index]) for index in order]


def groups_of(inputs: Sequence[Input]) -> Iterator[list[Input]]:
    """Yield inputs in groups for one job each; a single large one is a group of its own.

    Raises:
        JobRejected: there are none.
    """
    if not inputs:
        raise JobRejected("there are no inputs; give at least one", param="input")
    group: list[Input] = []
    num_chars = 0
    for each in inputs:
        size = len(each) if isinstance(each, str | list) else 1
        if group and (len(group) == GROUP_INPUTS or num_chars + size > GROUP_CHARS):
            yield group
            group, num_chars = [], 0
        group.append(each)
        num_chars += size
    yield group


def key_of_group(fields: Mapping[str, Any], number: int) -> dict[str, str]:
    """Return the idempotency key of one group's job, if the call has one.

    The first job has the key of the call, and the others the key with their number.
    """
    key = fields.get("idempotency_key")
    if key is None or number == 0:
        return {}
    return {"idempotency_key": f"{key}.{number}"}


def joined_usage(results: Sequence[JobResult]) -> Usage:
    """Return the sum of the tokens of several jobs."""
    cached = sum(each.usage.prompt_tokens_details.cached_tokens for each in results)
    return Usage(
        prompt_tokens=sum(each.usage.prompt_tokens for each in results),
        completion_tokens=sum(each.usage.completion_tokens for each in results),
        total_tokens=sum(each.usage.total_tokens for each in results),
        prompt_tokens_details=PromptTokensDetails(cached_tokens=cached),
    )
