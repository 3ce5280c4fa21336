"""Moves job documents from the inbox, where any language may push them, into job records."""

from __future__ import annotations

import structlog
from redis.exceptions import ResponseError

from batchmill.producer.errors import JobRejected, QueueFull
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls import NewJob
from batchmill.producer.protocol.records import DeadLetterKind
from batchmill.producer.protocol.replies import SubmitStatus
from batchmill.producer.store import inbox
from batchmill.producer.store.connection import is_servers_fault
from batchmill.producer.store.inbox import InboxJob, TakenDocument
from batchmill.producer.store.job_store import JobStore
from batchmill.producer.store.outcomes import accepted_id
from batchmill.producer.store.submission import prepare
from batchmill.worker.settings import WorkerSettings

_log = structlog.stdlib.get_logger("batchmill.inbox")
#: Pause between two turns, after an error as well.
PAUSE_S = 0.1
#: Redis holds the question for a document so long; a worker that shuts down waits for its answer.
_WAIT_S = 0.5
#: A document of a worker that died is taken up by another one after that.
_LEASE_MS = 10_000
#: A document whose queue is full is tried again after that.
_RETRY_MS = 1_000


class Inbox:
    """Takes documents, submits them as jobs and drops them, in this order: nothing can be lost.

    Every worker takes part, whatever model it serves. A document is kept under an id from the
    moment it is taken, and becomes a job of that id, so that one that is taken up again, after its
    worker died, is no second job. What cannot be a job goes to the dead letters; what cannot be one
    yet, because its queue is full, is tried again.
    """

    def __init__(self, settings: WorkerSettings, store: JobStore) -> None:
        self._settings = settings
        self._store = store
        self._closed = False

    def close(self) -> None:
        """Take nothing more."""
        self._closed = True

    def work(self) -> None:
        """Wait for documents for a while, and move all there are.

        Raises:
            redis.exceptions.RedisError: Redis did not answer; call again.
        """
        if self._closed:
            return
        # Also without news: somebody's lease may have run out.
        self._store.inbox_wait(_WAIT_S)
        while not self._closed:
            documents = self._store.run(inbox.take(_LEASE_MS))
            moved = [self._move(document) for document in documents]
            if not any(moved):
                return  # nothing there, or no room for any of it: after a pause

    def _move(self, taken: TakenDocument) -> bool:
        """Settle a document; False where it has to wait for room in its queue."""
        try:
            self._submit(taken)
        except QueueFull as full:
            _log.info("inbox_waits", document=taken.id, code=full.code)
            held_until_ms = taken.held_until_ms
            self._store.run(
                inbox.settle(taken.id, retry_in_ms=_RETRY_MS, held_until_ms=held_until_ms)
            )
            return False
        except JobRejected as rejection:
            self._bury(taken, f"{rejection.code}: {rejection}")
        except ResponseError as error:
            if is_servers_fault(error):
                raise
            self._bury(taken, "unusable_record: a key of this job holds what no batchmill wrote")
        except Exception:
            # A bug, and one document brings it out: the others must not wait for it.
            _log.exception("inbox_failed", document=taken.id)
            self._bury(taken, "internal_error: the worker failed on this document; see its log")
        self._store.run(inbox.settle(taken.id))
        return True

    def _submit(self, taken: TakenDocument) -> None:
        """Make a document a job.

        Raises:
            QueueFull: not now.
            JobRejected: never.
            redis.exceptions.ResponseError: its keys in Redis are in use for something else.
        """
        order = inbox.read_document(taken.content)
        job = order.job
        if job.model is None:
            job = job.model_copy(update={"model": self._only_model()})
        new = prepare(job, self._settings, job_id=order.id or taken.id)
        answer = self._store.submit(new)
        job_id = accepted_id(new, answer)
        if answer.status is SubmitStatus.EXISTING and job_id == new.job_id:
            self._check_same(order, new)
        _log.info("inbox_submitted", job_id=job_id, is_new=answer.status is SubmitStatus.CREATED)

    def _only_model(self) -> str:
        """Return the model of a document that names none.

        Raises:
            JobRejected: several are served; which worker takes a document is chance.
        """
        served = self._settings.served_name
        others = {worker.model for worker in self._store.list_workers()} - {served}
        if others:
            names = ", ".join(sorted({served, *others}))
            raise JobRejected(f"model: is missing, and workers serve {names}: name one")
        return served

    def _check_same(self, order: InboxJob, new: NewJob) -> None:
        """Tell a document that is repeated from one that takes the id of another job.

        Raises:
            JobRejected: the latter.
        """
        record = self._store.load(new.job_id)
        drawn = order.job.seed is None
        if record is None or inbox.is_same_job(record.document, new.document, has_drawn_seed=drawn):
            return
        raise JobRejected(
            f"id: {new.job_id} is the id of another job; give each job its own",
            code="duplicate_id",
            param="id",
        )

    def _bury(self, taken: TakenDocument, reason: str) -> None:
        """Keep a document that can be no job, under the id that its producer watches if it can."""
        given = inbox.given_id(taken.content)
        is_free = given is not None and not self._store.client.exists(keys.job(given))
        letter_id = self._store.dead_letter_add(
            kind=DeadLetterKind.MESSAGE,
            reason=reason,
            payload=taken.content,
            source=keys.INBOX,
            letter_id=given if is_free else taken.id,
            spare_id=taken.id,  # an older letter of the given id stays
        )
        _log.error("inbox_refused", document=letter_id, reason=reason)
