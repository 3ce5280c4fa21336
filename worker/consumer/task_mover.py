"""Moves plain Celery tasks, which any Celery library can send, from their queues into records."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import structlog
from celery.exceptions import BackendError
from kombu.exceptions import OperationalError
from kombu.transport.redis import PRIORITY_STEPS
from kombu.transport.redis import Channel as KombuChannel
from kombu.utils.json import dumps
from redis.exceptions import RedisError

from batchmill.producer.errors import (
    JobRejected,
    PayloadUnreachable,
    QueueFull,
    StructureCheckUnavailable,
)
from batchmill.producer.protocol.calls import celery_tasks
from batchmill.producer.protocol.calls.celery_tasks import TakenTask
from batchmill.producer.protocol.records import DeadLetterKind
from batchmill.producer.store.job_store import JobStore
from batchmill.producer.store.letter_labels import kept_element, message_labels
from batchmill.producer.store.reply_errors import accepted_id, unusable_record_error
from batchmill.producer.tracing.traceparent import trace_fields
from batchmill.worker.errors import JobFailed, MalformedMessage
from batchmill.worker.jobs.fleet_turns import Turn
from batchmill.worker.jobs.unusable_record import is_unusable_record
from batchmill.worker.settings import WorkerSettings

from .message_body import TOO_LARGE
from .plain_task import read_job
from .queue_message import QueueMessage, read_queue_message
from .refused_task import RefusedTasks, read_sender
from .task_arrivals import TaskArrivals

_log = structlog.stdlib.get_logger("batchmill.task_mover")
#: Pause after a round without a connection, or with a Redis that is away or full.
_LONG_PAUSE_S = 0.2
#: Longest wait for a task. Tasks with a priority of their own, and those of workers that died, are
#: found at the end of it.
TASKS_WAIT_S = 0.5
#: After this, another worker takes up a task of a worker that died.
_LEASE_MS = 10_000
#: After this, a task that cannot be stored, checked or refused now is tried again.
_RETRY_MS = 1_000
#: Workers that may be lost while they have a task before it is refused.
_MAX_LOST_WORKERS = 3
#: Bytes of a message that is too long, in its dead letter; any other message is kept whole.
_KEPT_BYTES = 4096


class TaskMover:
    """Takes plain tasks, stores each as a job and drops it, in this order, so that none is lost.

    A task becomes the job with its id, so one that is taken again after its worker died does not
    become a second job. One that cannot be a job is reported to its sender as FAILURE.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        store: JobStore,
        refused: RefusedTasks,
        *,
        session: str,
        connected_s: Callable[[], float],
        read_queues: Callable[[], Iterable[str]],
        turn: Turn | None = None,
    ) -> None:
        """Bind to the parts around it.

        Args:
            settings: of the worker.
            store: gets the jobs.
            refused: reports to senders.
            session: this run of the worker, which takes the tasks.
            connected_s: Returns how long the session has been connected, in seconds.
            read_queues: the queues that this worker consumes at the moment, in order.
            turn: of looking for tasks without an arrival, with a priority of their own or of
                workers that died; None looks each time.
        """
        self._settings = settings
        self._store = store
        self._refused = refused
        self._session = session
        self._connected_s = connected_s
        self._read_queues = read_queues
        self._turn = turn
        self._arrivals = TaskArrivals(store.client)
        #: Tasks that this worker has taken and not settled, and until when it holds them.
        self._taken: deque[TakenTask] = deque()
        self._held_until = 0.0
        self._closed = False

    def close(self) -> None:
        """Take no more tasks."""
        self._closed = True

    def move_tasks(self) -> None:
        """Wait a short time for tasks, then move all that have arrived.

        Raises:
            redis.exceptions.RedisError: Redis did not reply; call again.
        """
        queues = tuple(self._read_queues())
        if self._closed:
            self._arrivals.close()
            self._give_back()
        elif not queues:
            time.sleep(_LONG_PAUSE_S)
        else:
            self._wait_and_move(queues)

    def _wait_and_move(self, queues: Sequence[str]) -> None:
        lists = _lists(queues)
        try:
            has_arrived = self._arrivals.wait(queues, TASKS_WAIT_S)
        except RedisError:
            # Redis is away or full. A full one refuses only this request, not the next one.
            time.sleep(_LONG_PAUSE_S)
            self._move_arrived(lists)
            raise
        # Now and then even without an arrival: the lease of another worker may have run out.
        if has_arrived or self._taken or self._turn is None or self._turn.is_due():
            self._move_arrived(lists)

    def _move_arrived(self, lists: list[str]) -> None:
        while not self._closed:
            if not self._taken:
                self._held_until = time.monotonic() + _LEASE_MS / 1000
                self._taken.extend(self._take(lists))
            if not self._taken:
                return
            if time.monotonic() > self._held_until:
                self._give_back()
            else:
                self._settle(self._taken[0])
                self._taken.popleft()

    def _take(self, lists: list[str]) -> list[TakenTask]:
        connected_ms = int(self._connected_s() * 1000)
        return self._store.run(
            celery_tasks.take(
                lists, lease_ms=_LEASE_MS, session=self._session, connected_ms=connected_ms
            )
        )

    def _give_back(self) -> None:
        """Have the tasks that were taken handed out again."""
        while self._taken:
            self._store.run(celery_tasks.put_off(self._taken[0], 0))
            self._taken.popleft()

    def _settle(self, task: TakenTask) -> None:
        """Store, forward or refuse a task.

        Raises:
            redis.exceptions.RedisError: Redis did not reply; call again.
        """
        try:
            self._move(task)
        except MalformedMessage as malformed:
            self._refuse(task, malformed.code, str(malformed), keeps_letter=True)
        except (QueueFull, StructureCheckUnavailable, PayloadUnreachable) as temporary:
            _log.warning("task_waits", taken_id=task.taken_id, code=temporary.code)
            self._store.run(celery_tasks.put_off(task, _RETRY_MS))
        except JobRejected as rejection:
            self._refuse(task, rejection.code, str(rejection), keeps_letter=False)
        except RedisError as error:
            if not is_unusable_record(error):
                raise
            unusable = unusable_record_error()
            self._refuse(task, unusable.code, str(unusable), keeps_letter=True)
        except Exception:
            # A bug that one task triggers; the other tasks must not wait for it.
            _log.exception("task_failed", taken_id=task.taken_id)
            message = "the worker failed on this task; see its log"
            self._refuse(task, "internal_error", message, keeps_letter=True)

    def _move(self, task: TakenTask) -> None:
        """Store a task as a job, or let it announce the stored job that it names.

        Raises:
            MalformedMessage: it is not a task of this queue.
            QueueFull, StructureCheckUnavailable, PayloadUnreachable: it can be a job later.
            JobRejected: it can never be a job.
            redis.exceptions.ResponseError: its keys in Redis are in use for something else.
        """
        if task.num_lost >= _MAX_LOST_WORKERS:
            raise MalformedMessage(
                "given_up",
                f"{task.num_lost} workers died, or were cut off, while they had it",
            )
        message = read_queue_message(task.element)
        if message.is_announcement:
            queue = task.source.partition(KombuChannel.sep)[0]
            element = dumps(message.message)
            self._store.run(celery_tasks.announce(task.taken_id, queue, element))
            return
        self._adopt(message)
        self._store.run(celery_tasks.drop(task.taken_id))

    def _adopt(self, message: QueueMessage) -> None:
        new = read_job(message, self._settings)
        job_id = accepted_id(new, self._store.adopt(new))
        if job_id != new.job_id:
            raise JobRejected(
                f"the idempotency key belongs to job {job_id}; read its result instead",
                code="idempotency_conflict",
                param="idempotency_key",
            )
        _log.info("task_adopted", job_id=job_id, **trace_fields(new.traceparent))

    def _refuse(self, task: TakenTask, code: str, reason: str, *, keeps_letter: bool) -> None:
        """Report a task that cannot be a job to its sender, and drop it.

        A sender that reads no result learns the reason from a dead letter.
        """
        _log.error("task_refused", queue=task.source, code=code, num_bytes=len(task.element))
        request = read_sender(task.element)
        try:
            if keeps_letter or request is None or request.get("ignore_result"):
                self._keep_letter(task, code, reason)
            if request is not None:
                self._refused.report(request, JobFailed(code, reason))
        except (RedisError, OperationalError, BackendError) as error:
            _log.warning("refusal_not_stored", code=code, error=type(error).__name__)
            self._store.run(celery_tasks.put_off(task, _RETRY_MS))
            return
        except Exception:
            # The message's own headers can make Celery fail; the refusal is final all the same.
            _log.exception("refusal_not_reported", code=code)
        self._store.run(celery_tasks.drop(task.taken_id))

    def _keep_letter(self, task: TakenTask, code: str, reason: str) -> None:
        payload, reason = kept_element(task.element, f"{code}: {reason}")
        self._store.dead_letter_add(
            kind=DeadLetterKind.MESSAGE,
            reason=reason,
            payload=payload[:_KEPT_BYTES] if code == TOO_LARGE else payload,
            labels=message_labels(task.element),
            source=task.source,
            letter_id=f"dead_{task.taken_id}",  # the same if the task is taken again
        )


def _lists(queues: Iterable[str]) -> list[str]:
    """Return the lists of queues: Celery's senders have one per step of a message's priority."""
    names = list(queues)
    lower = PRIORITY_STEPS[1:]
    return names + [f"{name}{KombuChannel.sep}{step}" for step in lower for name in names]
