"""The Celery task `batchmill.generate`, as other services name it and Flower shows it."""

from __future__ import annotations

import json
from typing import Any

from celery import Task
from celery.worker.request import Request
from redis.exceptions import RedisError

from batchmill.producer.protocol.keys import TASK_NAME
from batchmill.producer.protocol.replies import JobState
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.errors import JobFailed, SettingsError
from batchmill.worker.jobs.outcome import Outcome
from batchmill.worker.jobs.task_facts import Facts

from .celery_task import OUTCOME_KEY, VIEW_KEY, WORKFLOW_KEY
from .revocation import stamps_revoked_at_ms
from .workflow import read_workflow

#: Type of the event about a running job. Celery's state takes the upper case of an unknown type as
#: the state, so this one keeps STARTED. In a state of its own, such as PROGRESS, Flower has no
#: button to end the task, and Celery's order of states would ignore a later REVOKED.
_PROGRESS_EVENT = "task-STARTED"


class JobRequest(Request):
    """Celery's request, without the job's content in anything that Celery shows.

    A plain `send_task` puts the repr of its arguments into the message. From there it would get
    into events, Flower and `inspect`, prompt included. Facts about the job take its place: its
    model, class, tenant and limits, then its tokens. A dict is what Flower's search reads
    (`kwargs:tenant=acme`).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._facts: dict[str, object] = {}
        #: Why the job ended without a result, once it has been cancelled or has expired.
        self.revoked_because = ""
        self._argsrepr, self._kwargsrepr = "()", "{...}"
        self._request_dict.update(argsrepr="()", kwargsrepr="{...}")
        embed = self._payload[2]
        self._request_dict[WORKFLOW_KEY] = read_workflow(self._request_dict, embed)
        self._request_dict[VIEW_KEY] = self

    @property
    def ignore_result(self) -> bool:
        """Whether nobody reads the result. Only the job's record knows, so a claim may change it.

        Celery's own property keeps what the announcement says: that nobody does.
        """
        return bool(self._request_dict.get("ignore_result"))

    @property
    def store_errors(self) -> bool:
        """Whether FAILURE and REVOKED are stored."""
        return not self.ignore_result

    def revoked(self) -> bool:
        """Return whether the task must not start; if so, report that.

        A worker remembers revoked stamps until it ends. They do not concern a job that an operator
        has retried since.
        """
        stamped = self._request_dict.get("stamped_headers")
        if not stamped or not self._was_retried_since(stamps_revoked_at_ms(self.stamps)):
            return bool(super().revoked())
        self._request_dict["stamped_headers"] = None
        try:
            return bool(super().revoked())
        finally:
            self._request_dict["stamped_headers"] = stamped

    def _was_retried_since(self, moment_ms: int | None) -> bool:
        store: JobStore | None = self.task.store
        if moment_ms is None or store is None:
            return False
        try:
            record = store.load(self.id)
        except RedisError:
            return False
        return record is not None and record.run > 1 and (record.enqueued_at_ms or 0) >= moment_ms

    def _announce_revoked(self, reason: str, *args: Any) -> None:
        super()._announce_revoked(self.revoked_because or reason, *args)

    def describe(self, facts: Facts) -> None:
        """Show facts in place of the arguments, from the next event on."""
        if facts:
            # The newest first: Flower's list of tasks cuts the line.
            self._facts = {**facts, **{k: v for k, v in self._facts.items() if k not in facts}}
            self._kwargsrepr = repr(self._facts)

    def report_progress(self) -> None:
        """Send the facts to monitors while the task runs."""
        self.send_event(_PROGRESS_EVENT)

    def send_event(self, type: str, **fields: Any) -> None:
        """Send an event of the task, with the facts that are known by now."""
        if self._facts:
            fields["kwargs"] = self._kwargsrepr
        super().send_event(type, **fields)

    def info(self, safe: bool = False) -> dict[str, Any]:
        """Return what `inspect active` shows; always without the arguments."""
        info: dict[str, Any] = super().info(safe=True)
        return info


class GenerateTask(Task):
    """One generation job: `job` is the id of a stored job, or a whole job document.

    The body runs after the engine, in the pool's second phase, and only returns the outcome.
    """

    name = TASK_NAME
    Request = JobRequest
    acks_late = False
    #: A failed job is not a bug in the worker, so it gets one line in the log, not a traceback.
    throws = (JobFailed,)
    #: Holds the jobs; the worker's pool sets it.
    store: JobStore | None = None

    def run(self, *_: Any, **__: Any) -> Any:
        """Return the job result, or raise the job's error. `JobClaimer` checked the arguments.

        Raises:
            JobFailed: the job failed.
            SettingsError: the worker does not run the engine pool.
        """
        outcome: Outcome | None = getattr(self.request, OUTCOME_KEY, None)
        if outcome is None:
            raise SettingsError(
                f"{TASK_NAME} runs only in the engine pool: start the worker with "
                "`celery -A batchmill.worker.app worker`, without --pool"
            )
        if outcome.state is not JobState.COMPLETED or outcome.result is None:
            code, message = outcome.error or ("internal_error", "the job ended without a reason")
            raise JobFailed(code, message)
        request = self.request
        if request.ignore_result and not (request.callbacks or request.chain or request.chord):
            return None  # as our own announcements ask for: the record has the result
        return json.loads(outcome.result)
