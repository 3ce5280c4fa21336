"""How a worker's part in a job ended, and the Celery task that it is reported to."""

from __future__ import annotations

from dataclasses import dataclass
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
    """

    state: JobState | None
    result: str | None = None
    error: tuple[str, str] | None = None
    num_output_tokens: int = 0


NOT_OURS = Outcome(None)


@dataclass(frozen=True, slots=True)
class Workflow:
    """A plain Celery task's place in a workflow, and the tasks that follow, as in its record.

    Attributes:
        headers: JSON of the message headers that say where the task belongs.
        embed: JSON of its callbacks, errbacks, chain and chord.
    """

    headers: str
    embed: str


class TaskHandle(Protocol):
    """The Celery task that brought a job. `consumer/celery_task.py` implements it."""

    @property
    def task_id(self) -> str:
        """Celery's id of the task."""

    @property
    def request(self) -> dict[str, Any]:
        """Celery's request headers."""

    @property
    def workflow(self) -> Workflow | None:
        """The task's place in a Celery workflow; None if it stands alone."""

    @property
    def not_before_ms(self) -> int | None:
        """End of the delay that the sender asked for, milliseconds of unix time."""

    @property
    def expires_ms(self) -> int | None:
        """When a delayed task expires, milliseconds of unix time."""

    @property
    def time_limit_s(self) -> float | None:
        """Seconds that Celery's hard or soft time limit leaves; None without one."""

    def accept(self) -> None:
        """Report to Celery that the job has started, so that it acknowledges the message."""

    def finish(self, outcome: Outcome) -> None:
        """Report to Celery how the job ended. May block on Celery's result backend."""

    def drop(self) -> None:
        """Report to Celery that there is nothing to do for this message."""
