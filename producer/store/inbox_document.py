"""Documents of the inbox: job documents in plain JSON, from any language, parsed and compared.

A producer needs neither a script nor Celery: it pushes the document to a Redis list.
`docs/any-language.md` is the contract. No input or output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from batchmill.producer.errors import JobRejected
from batchmill.producer.job.document import GenerationJob
from batchmill.producer.job.strict_json import read_strict_json
from batchmill.producer.job.validation import parse_document, parse_job
from batchmill.producer.protocol import keys

from .submission import fingerprint


@dataclass(frozen=True, slots=True)
class InboxJob:
    """The job in a document."""

    #: The id that its producer gives the job; None leaves it to us.
    id: str | None
    job: GenerationJob


def read_document(content: bytes) -> InboxJob:
    """Return the job in a document.

    Raises:
        JobRejected: it is not a JSON object, a key is given twice, or a field is invalid. The
            message quotes nothing of its content.
    """
    data = _read_object(content)
    job_id = data.pop("id", None)
    if job_id is not None and not (isinstance(job_id, str) and keys.is_job_id(job_id)):
        raise JobRejected(
            "id: a job id is a string of 1 to 128 letters, digits, _ and -; correct it or leave "
            "it out",
            param="id",
        )
    return InboxJob(job_id, parse_job(data))


def given_id(content: bytes) -> str | None:
    """Return the id in a rejected document, or None if none can be read."""
    try:
        job_id = _read_object(content).get("id")
    except JobRejected:
        return None
    return job_id if isinstance(job_id, str) and keys.is_job_id(job_id) else None


def is_same_job(stored: bytes, document: str, *, ignore_seed: bool) -> bool:
    """Return whether the document of a record asks for the same job as another one.

    Args:
        stored: of the record.
        document: the other one.
        ignore_seed: leave out the seeds, because that of the other one was chosen by us.
    """
    try:
        jobs = [parse_document(stored), parse_document(document)]
    except JobRejected:
        return False
    if ignore_seed:
        jobs = [job.model_copy(update={"seed": None}) for job in jobs]
    first, second = jobs
    same_key = first.idempotency_key == second.idempotency_key
    return same_key and fingerprint(first) == fingerprint(second)


def _read_object(content: bytes) -> dict[str, Any]:
    try:
        data = read_strict_json(content)
    except JobRejected:
        raise
    except (ValueError, RecursionError):  # also bytes that are not UTF-8, and absurd numbers
        raise JobRejected("the document is not JSON in UTF-8", code="not_json") from None
    if not isinstance(data, dict):
        raise JobRejected(
            "the document is JSON, but not an object with the fields of a job", code="not_an_object"
        )
    return data
