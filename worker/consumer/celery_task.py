"""One Celery task as the pool gets it, and how its start and its outcome are reported to Celery."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import structlog
from billiard.einfo import ExceptionInfo
from celery.exceptions import Ignore, Retry, Terminated
from redis.exceptions import RedisError

from batchmill.producer.protocol.replies import EndTaken, JobState
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.errors import JobReleased
from batchmill.worker.jobs.outcome import Outcome
from batchmill.worker.jobs.task_facts import Facts, result_line

from .workflow import Workflow

_log = structlog.stdlib.get_logger("batchmill.celery_task")
#: Key of the outcome in the request that Celery's tracer passes to the task.
OUTCOME_KEY = "batchmill_outcome"
#: Key of the task's place in a workflow, in the same request.
WORKFLOW_KEY = "batchmill_workflow"
#: Key of the `JobRequest`, which shows facts about the job to monitors.
VIEW_KEY = "batchmill_view"
#: Key that marks a request whose outcome is being reported: its own revoke must not cancel the job.
SETTLED_KEY = "batchmill_settled"
#: After this, another worker reports an end whose reporter is stuck. It does so at once if the
#: session of the reporter is lost.
END_LEASE_MS = 30_000


@dataclass(slots=True, eq=False)
class CeleryTask:
    """One task as Celery's pool interface delivers it.

    Celery's own tracer reports SUCCESS and FAILURE (result, callbacks, chains, signals, events).
    Other outcomes go through the request's error callback, which handles revoked, retried
    and ignored tasks.
    """

    task_id: str
    target: Callable[..., Any]
    #: (task name, id, request, body, content type, content encoding)
    args: tuple[Any, ...]
    on_done: Callable[[Any], None]
    on_accepted: Callable[[int, float], None]
    on_error: Callable[[ExceptionInfo], None]
    #: Seconds that Celery's hard or soft time limit leaves; None without one.
    time_limit_s: float | None = None
    #: Holds the ends that were not reported to Celery.
    store: JobStore | None = None
    #: This run of the worker; another one reports the ends that it has taken if it is lost.
    session: str = ""
    _accepted_at: float = field(default_factory=time.monotonic)

    @property
    def request(self) -> dict[str, Any]:
        """Celery's request headers."""
        request: dict[str, Any] = self.args[2]
        return request

    @property
    def workflow(self) -> Workflow | None:
        """The task's place in a Celery workflow; None if it stands alone."""
        return self.request.get(WORKFLOW_KEY)

    def describe(self, facts: Facts) -> None:
        """Note facts that monitors may show, with the next event of the task."""
        if (view := self.request.get(VIEW_KEY)) is not None:
            view.describe(facts)

    def report_progress(self) -> None:
        """Report the facts to monitors now, while the task runs."""
        if (view := self.request.get(VIEW_KEY)) is not None:
            view.report_progress()

    def accept(self) -> None:
        """Report to Celery that the job has started, so that it acknowledges the message."""
        self._accepted_at = time.monotonic()
        self.on_accepted(os.getpid(), self._accepted_at)

    def finish(self, outcome: Outcome) -> None:
        """Report the outcome to Celery. Blocks on the result backend if a result is stored.

        An end in a workflow is taken first: a sweeping worker may have reported it already, and
        the tasks that follow must be sent only once.
        """
        self.request[SETTLED_KEY] = True
        self.describe(outcome.facts)
        view = self.request.pop(VIEW_KEY, None)  # refers to Celery's request, which refers to this
        if view is not None and outcome.error is not None:
            view.revoked_because = ": ".join(outcome.error)
        if self.workflow is None or outcome.state is None or not outcome.state.is_terminal:
            self._report(outcome)
            return
        if not outcome.is_held or self.workflow.is_sealed:
            self.drop()  # only the record knows what follows, and who reads it: a sweep reports it
            return
        assert self.store is not None
        try:
            taken = self.store.take_celery_end(
                self.task_id, lease_ms=END_LEASE_MS, session=self.session
            )
        except RedisError:
            taken = EndTaken.HELD  # by the next sweep
        if taken is EndTaken.HELD:
            self.drop()
        elif self._report(outcome) and taken is EndTaken.TAKEN:
            self.store.drop_celery_end(self.task_id)

    def drop(self) -> None:
        """Report that there is nothing to do: the message is acknowledged, no job has run."""
        self.request.pop(VIEW_KEY, None)
        self.on_error(_exception_info(Ignore()))

    def _report(self, outcome: Outcome) -> bool:
        """Report an outcome; return False if it has to be reported again."""
        if outcome.state in (JobState.COMPLETED, JobState.FAILED):
            return self._trace(outcome)
        self.on_error(_exception_info(_as_exception(outcome)))
        return True

    def _trace(self, outcome: Outcome) -> bool:
        self.request[OUTCOME_KEY] = outcome
        try:
            failed, value, _ = self.target(*self.args)
        except Exception:
            if outcome.state is JobState.COMPLETED:
                # Redis took neither the result nor the error (it is full): a sweep reports it.
                _log.exception("celery_report_refused", job_id=self.task_id)
                self.drop()
            else:
                self.on_error(ExceptionInfo())
            return False
        finally:
            self.request.pop(OUTCOME_KEY, None)
        if not failed:
            # Instead of the result's repr, which would put output text into events and Flower.
            value = result_line(outcome.facts, outcome.num_output_tokens)
        # The tracer ran only now, but users want to see how long the job took.
        self.on_done((failed, value, time.monotonic() - self._accepted_at))
        return True


def _as_exception(outcome: Outcome) -> Any:
    code, message = outcome.error or ("", "")
    if outcome.state is JobState.CANCELLED or outcome.state is JobState.EXPIRED:
        return Terminated(outcome.state.value)
    if outcome.state is JobState.QUEUED:
        return Retry(message, exc=JobReleased(code, message))
    return Ignore()


def _exception_info(exception: Any) -> ExceptionInfo:
    try:
        raise exception
    except BaseException:
        return ExceptionInfo()
