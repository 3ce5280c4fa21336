"""The Celery task `batchmill.generate`, as other services name it and Flower shows it."""

from __future__ import annotations

import json
from typing import Any

from celery import Task
from celery.worker.request import Request

from batchmill.producer.protocol.keys import TASK_NAME
from batchmill.producer.protocol.replies import JobState
from batchmill.worker.errors import JobFailed, SettingsError
from batchmill.worker.jobs.outcome import Outcome

from .celery_task import OUTCOME_KEY, WORKFLOW_KEY
from .workflow import read_workflow


class JobRequest(Request):
    """Celery's request, without the job's content in anything that Celery shows.

    A plain `send_task` puts the repr of its arguments into the message. From there it would get
    into events, Flower and `inspect`, prompt included.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._argsrepr, self._kwargsrepr = "()", "{...}"
        self._request_dict.update(argsrepr="()", kwargsrepr="{...}")
        embed = self._payload[2]
        self._request_dict[WORKFLOW_KEY] = read_workflow(self._request_dict, embed)

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
