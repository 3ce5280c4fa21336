"""How a worker's part in a job ended, and the Celery task that it is reported to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from batchmill.producer.protocol.replies import JobState


@dataclass(frozen=True, slots=True)
class Outcome:
    """How this worker's part in a job ended.

    Attributes:
        state: the job's terminal state; QUEUED if it was given back; None if this worker does
            not hold it, or no longer, so that there is nothing to report.
        result: JSON of the job result, if there is one.
        error: code and message, if the job failed or was given back.
        num_output_tokens: for the success event, which carries no text.
        is_held: whether this worker had claimed the job.
        facts: what monitors may show of the result; see `task_facts.py`.
    """

    state: JobState | None
    result: str | None = None
    error: tuple[str, str] | None = None
    num_output_tokens: int = 0
    is_held: bool = True
    facts: Mapping[str, object] = field(default_factory=dict)

    def log_fields(self, num_tokens: int) -> dict[str, object]:
        """Return what a line of the log says of the outcome of a job with so many tokens."""
        state = "not ours" if self.state is None else self.state.value
        code = None if self.error is None else self.error[0]
        return {"state": state, "code": code, "num_output_tokens": num_tokens}


NOT_OURS = Outcome(None)


class TaskHandle(Protocol):
    """The Celery task that brought a job. `consumer/celery_task.py` implements it."""

    @property
    def task_id(self) -> str:
        """Celery's id of the task."""

    @property
    def request(self) -> dict[str, Any]:
        """Celery's request headers."""

    @property
    def time_limit_s(self) -> float | None:
        """Seconds that Celery's hard or soft time limit leaves; None without one."""

    def describe(self, facts: Mapping[str, object]) -> None:
        """Note facts that monitors may show, with the next event of the task."""

    def report_progress(self) -> None:
        """Report the facts to monitors now, while the task runs."""

    def accept(self) -> None:
        """Report to Celery that the job has started, so that it acknowledges the message."""

    def finish(self, outcome: Outcome) -> None:
        """Report to Celery how the job ended. May block on Celery's result backend."""

    def drop(self) -> None:
        """Report to Celery that there is nothing to do for this message."""
