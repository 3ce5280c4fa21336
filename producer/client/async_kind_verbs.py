"""The client's verbs for jobs of other kinds than text: they submit one job and wait for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from batchmill.producer.job.decision import decision_and_job_fields
from batchmill.producer.job.document import GenerationJob
from batchmill.producer.job.validation import parse_job
from batchmill.producer.result_sections import DecisionResult
from batchmill.producer.results import JobResult
from batchmill.producer.watch.wait_limits import OnWait


class AsyncJobSubmitter(Protocol):
    """What the verbs need of `AsyncClient`."""

    async def submit(self, job: GenerationJob, /) -> Any:
        """As `AsyncClient.submit`."""


class AsyncKindVerbs:
    """Verbs of `AsyncClient` for other kinds of job. The client submits them."""

    async def decide(
        self: AsyncJobSubmitter,
        state: str | Mapping[str, Any] | Sequence[Any],
        questions: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        timeout_s: float | None = None,
        on_wait: OnWait | None = None,
        **fields: Any,
    ) -> DecisionResult:
        """Ask questions about a state, and wait for the answers.

        To submit without waiting, give `decision` to `submit`, `submit_many` or a batch.

        Args:
            state: what the questions are about: text, messages, or other JSON.
            questions: the questions by their ids, each with `type` (`choice`, `score`, `yes_no`),
                `instructions` and `criteria`. The spellings of transformers, vLLM and SGLang are
                read as well.
            timeout_s: seconds to wait; None waits for ever.
            on_wait: as in `result`.
            **fields: the other fields of a decision (`rotations`, `prior_correction`,
                `min_confidence`, …), and fields of a job (`model`, `priority`, `tags`, …).

        Raises:
            JobRejected: a field is wrong; nothing was stored.
            JobUnfinished: the job failed, was cancelled or expired.
            ResultTimeout: it has not ended in time; it continues.
            BrokerUnavailable: the broker does not respond.
        """
        decision, others = decision_and_job_fields(fields)
        given = others | {"decision": {"state": state, "questions": questions, **decision}}
        job = await self.submit(parse_job(given))
        result: JobResult = await job.result(timeout_s, on_wait=on_wait)
        assert result.decision is not None
        return result.decision
