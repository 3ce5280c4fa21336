"""The client's verbs on vectors: embedding, scoring and ranking texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, Unpack

from batchmill.producer.job.job_fields import JobFields
from batchmill.producer.results import JobResult

from .vector_results import Embeddings, RankedDocument, Scores, groups_of, key_of_group, ranked


class AsyncSubmitter(Protocol):
    """What the verbs need of `AsyncClient`."""

    async def submit_many(self, jobs: Iterable[Any]) -> list[Any]:
        """As `AsyncClient.submit_many`."""

    async def result(self, job_id: str, timeout_s: float | None = None) -> JobResult:
        """As `AsyncClient.result`."""


class AsyncVectorVerbs:
    """Verbs of `AsyncClient` that submit embedding and scoring jobs, and wait for them."""

    async def embed(
        self: AsyncSubmitter,
        inputs: str | Sequence[str | list[int]],
        *,
        pooling: str | None = None,
        dimensions: int | None = None,
        normalize: bool | None = None,
        truncate: str | None = None,
        timeout_s: float | None = None,
        **fields: Unpack[JobFields],
    ) -> Embeddings:
        """Embed texts: submit them in jobs of up to 64, and wait for all vectors.

        The jobs are durable. If this call is cut off, they end all the same; the same call with the
        same `idempotency_key` finds them again.

        Args:
            inputs: A text, or texts or lists of token ids.
            pooling: "last", "mean" or "cls"; None is what the model's files say.
            dimensions: Keep only the first so many numbers of each vector.
            normalize: Whether to scale each vector to length 1; None does.
            truncate: Which side of an input above the model's length is cut, "start" or "end"; None
                refuses it.
            timeout_s: How long to wait for each job; None waits as long as it takes.
            **fields: Further fields of the jobs, such as `model`, `tenant` or `priority`.

        Returns:
            One vector per input, in their order.

        Raises:
            JobRejected: An option or an input is invalid.
            JobFailed: A worker refused the job: an input is too long, or the model does not embed.
            ResultTimeout: The jobs have not ended; they continue.
            BrokerUnavailable: The broker does not respond.
        """
        options: dict[str, Any] = {
            "pooling": pooling,
            "dimensions": dimensions,
            "normalize": normalize,
            "truncate": truncate,
        }
        texts = [inputs] if isinstance(inputs, str) else list(inputs)
        results = await _results(self, "embedding", texts, options, timeout_s, fields)
        return Embeddings.of(results)

    async def score(
        self: AsyncSubmitter,
        inputs: str | Sequence[str],
        *,
        query: str | None = None,
        activation: str | None = None,
        truncate: str | None = None,
        timeout_s: float | None = None,
        **fields: Unpack[JobFields],
    ) -> Scores:
        """Score texts by the model's classification head, or against a query.

        Args:
            inputs: A text, or several.
            query: What they are scored against. A model without a classification head gives the
                cosine of the two embeddings.
            activation: "sigmoid", "softmax" or "none" (for rewards); None is the model's own.
            truncate: As of `embed`, like all that follow.
            timeout_s: How long to wait for each job.
            **fields: Further fields of the jobs.

        Returns:
            For each input one score per label, in their order.

        Raises:
            JobRejected, JobFailed, ResultTimeout, BrokerUnavailable: as of `embed`.
        """
        options = {"query": query, "activation": activation, "truncate": truncate}
        texts = [inputs] if isinstance(inputs, str) else list(inputs)
        results = await _results(self, "scoring", texts, options, timeout_s, fields)
        return Scores.of(results)

    async def rerank(
        self: AsyncSubmitter,
        query: str,
        documents: Sequence[str],
        /,
        *,
        top_n: int | None = None,
        truncate: str | None = None,
        timeout_s: float | None = None,
        **fields: Unpack[JobFields],
    ) -> list[RankedDocument]:
        """Rank documents by their relevance to a query.

        Args:
            query: The query.
            documents: The documents.
            top_n: Return only the best so many; None returns all.
            truncate: As of `embed`, like all that follow.
            timeout_s: How long to wait for each job.
            **fields: Further fields of the jobs.

        Returns:
            The documents, the most relevant first.

        Raises:
            JobRejected, JobFailed, ResultTimeout, BrokerUnavailable: as of `embed`.
        """
        options = {"query": query, "truncate": truncate}
        results = await _results(self, "scoring", list(documents), options, timeout_s, fields)
        return ranked(Scores.of(results), documents, top_n)


async def _results(
    client: AsyncSubmitter,
    section: str,
    inputs: Sequence[Any],
    options: Mapping[str, Any],
    timeout_s: float | None,
    fields: Mapping[str, Any],
) -> list[JobResult]:
    """Submit a job for each group of inputs, and wait for all of them, in order."""
    jobs = [
        {**fields, **key_of_group(fields, number), section: {"input": each, **options}}
        for number, each in enumerate(groups_of(inputs))
    ]
    handles = await client.submit_many(jobs)
    return [await client.result(each.id, timeout_s) for each in handles]
