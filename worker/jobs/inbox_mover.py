"""Moves job documents from the inbox, where any language can push them, into records."""

from __future__ import annotations

from collections.abc import Callable

import structlog
from redis.exceptions import RedisError

from batchmill.producer.errors import (
    JobRejected,
    PayloadUnreachable,
    QueueFull,
    StructureCheckUnavailable,
)
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls import inbox as inbox_calls
from batchmill.producer.protocol.calls.inbox import TakenDocument
from batchmill.producer.protocol.calls.new_job import NewJob
from batchmill.producer.protocol.records import DeadLetterKind
from batchmill.producer.protocol.replies import SubmitStatus
from batchmill.producer.store import inbox_document
from batchmill.producer.store.inbox_document import InboxJob
from batchmill.producer.store.job_store import JobStore
from batchmill.producer.store.letter_labels import document_labels
from batchmill.producer.store.plain_letters import seal_plain_letters
from batchmill.producer.store.reply_errors import accepted_id, unusable_record_error
from batchmill.producer.store.submission import prepare
from batchmill.producer.tracing.traceparent import trace_fields
from batchmill.worker.settings import WorkerSettings

from .fleet_turns import Turn
from .unusable_record import is_unusable_record

_log = structlog.stdlib.get_logger("batchmill.inbox_mover")
#: Pause between two rounds, also after an error.
PAUSE_S = 0.1
#: How long Redis holds a request for a document. A worker that shuts down waits for the reply.
WAIT_S = 0.5
#: After this, another worker takes up a document of a worker that died.
_LEASE_MS = 10_000
#: After this, a document whose queue is full is tried again.
_RETRY_MS = 1_000


class InboxMover:
    """Takes documents, submits them as jobs and drops them, in this order, so that none is lost.

    Every worker takes part, whatever model it serves. A document gets an id when it is taken, and
    becomes the job with that id, so a document that is taken again after its worker died does not
    become a second job. A document that cannot be a job becomes a dead letter, and so does one that
    three workers have not survived; one whose queue is full is tried again later.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        store: JobStore,
        session: str,
        connected_s: Callable[[], float],
        turn: Turn | None = None,
    ) -> None:
        """Bind to what it uses.

        Args:
            settings: of the worker.
            store: holds the inbox and the jobs.
            session: this run of the worker, which takes the documents.
            connected_s: Returns how long the session has been connected, in seconds.
            turn: of looking for documents without an arrival, whose taker may be gone; None looks
                each time.
        """
        self._settings = settings
        self._store = store
        self._session = session
        self._connected_s = connected_s
        self._turn = turn
        self._closed = False

    def close(self) -> None:
        """Take no more documents."""
        self._closed = True

    def move_documents(self) -> None:
        """Wait a short time for documents, then move all that have arrived.

        Raises:
            redis.exceptions.RedisError: Redis did not reply; call again.
        """
        if self._closed:
            return
        # Look now and then even if no document has come: another worker's lease may have run out.
        has_arrived = self._store.inbox_wait(WAIT_S)
        if not has_arrived and self._turn is not None and not self._turn.is_due():
            return
        while not self._closed:
            connected_ms = int(self._connected_s() * 1000)
            documents = self._store.run(
                inbox_calls.take(_LEASE_MS, session=self._session, connected_ms=connected_ms)
            )
            # Those that are too long, or that workers did not survive, are dead letters by now.
            seal_plain_letters(self._store)
            moved = [self._move(document) for document in documents]
            if not any(moved):
                return  # the inbox is empty, or no queue has room: pause first

    def _move(self, taken: TakenDocument) -> bool:
        """Settle a document; return False if it has to wait, mostly for room in its queue."""
        try:
            self._submit(taken)
        except (QueueFull, StructureCheckUnavailable, PayloadUnreachable) as temporary:
            _log.warning("inbox_waits", document=taken.id, code=temporary.code)
            held_until_ms = taken.held_until_ms
            self._store.run(
                inbox_calls.settle(taken.id, retry_in_ms=_RETRY_MS, held_until_ms=held_until_ms)
            )
            return False
        except JobRejected as rejection:
            self._add_dead_letter(taken, f"{rejection.code}: {rejection}")
        except RedisError as error:
            if not is_unusable_record(error):
                raise
            unusable = unusable_record_error()
            self._add_dead_letter(taken, f"{unusable.code}: {unusable}")
        except Exception:
            # A bug that one document triggers; the other documents must not wait for it.
            _log.exception("inbox_failed", document=taken.id)
            self._add_dead_letter(
                taken, "internal_error: the worker failed on this document; see its log"
            )
        self._store.run(inbox_calls.settle(taken.id))
        return True

    def _submit(self, taken: TakenDocument) -> None:
        """Submit a document as a job.

        Raises:
            QueueFull, StructureCheckUnavailable, PayloadUnreachable: it can be a job later.
            JobRejected: it can never be a job.
            redis.exceptions.ResponseError: its keys in Redis are in use for something else.
        """
        document = inbox_document.read_document(taken.content)
        job = document.job
        if job.model is None:
            job = job.model_copy(update={"model": self._only_model()})
        new = prepare(job, self._settings, job_id=document.id or taken.id)
        reply = self._store.submit(new)
        job_id = accepted_id(new, reply)
        if reply.status is SubmitStatus.EXISTING and job_id == new.job_id:
            self._check_same_job(document, new)
        _log.info(
            "inbox_submitted",
            job_id=job_id,
            is_new=reply.status is SubmitStatus.CREATED,
            **trace_fields(new.traceparent),
        )

    def _only_model(self) -> str:
        """Return the model for a document that names none.

        Raises:
            JobRejected: workers serve several models, and any worker may take the document.
        """
        served = self._settings.served_name
        others = {worker.model for worker in self._store.list_workers()} - {served}
        if others:
            names = ", ".join(sorted({served, *others}))
            raise JobRejected(f"model: is missing, and workers serve {names}: name one")
        return served

    def _check_same_job(self, document: InboxJob, new: NewJob) -> None:
        """Check that a document with a known id repeats that job.

        Raises:
            JobRejected: the id belongs to another job.
            PayloadUnreachable: the known job's document cannot be read now.
        """
        record = self._store.load(new.job_id)
        if record is not None and isinstance(record.unreadable, PayloadUnreachable):
            raise record.unreadable
        if record is not None and record.unreadable is not None:
            raise JobRejected(
                f"id: {new.job_id} is the id of a job that cannot be compared: {record.unreadable}",
                code="duplicate_id",
                param="id",
            )
        is_seed_ours = document.job.seed is None
        if record is None or inbox_document.is_same_job(
            record.document, new.document, ignore_seed=is_seed_ours
        ):
            return
        raise JobRejected(
            f"id: {new.job_id} is the id of another job; give each job its own",
            code="duplicate_id",
            param="id",
        )

    def _add_dead_letter(self, taken: TakenDocument, reason: str) -> None:
        """Keep a document that cannot be a job, under the id that its producer reads if free."""
        given = inbox_document.given_id(taken.content)
        is_free = given is not None and not self._store.client.exists(keys.job(given))
        letter_id = self._store.dead_letter_add(
            kind=DeadLetterKind.MESSAGE,
            reason=reason,
            payload=taken.content,
            source=keys.INBOX,
            letter_id=given if is_free else taken.id,
            spare_id=taken.id,  # an older letter with the given id stays
            labels=document_labels(taken.content),
        )
        _log.error("inbox_refused", document=letter_id, reason=reason)
