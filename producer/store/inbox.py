"""The inbox: job documents as plain JSON on a Redis list, from any language. No input or output.

A producer needs neither a script nor Celery: it pushes the document. What is promised is told in
`docs/any-language.md`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

from batchmill.producer.errors import JobRejected
from batchmill.producer.job.document import GenerationJob
from batchmill.producer.job.validation import parse_document, parse_job
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls import Call

from .submission import fingerprint

#: A prompt of the greatest length with every character escaped, and as much again for the rest.
MAX_DOCUMENT_BYTES: Final = 12 << 20
#: Documents taken in one call, and their bytes: Redis serves nobody else meanwhile.
MAX_TAKEN_AT_ONCE: Final = 32
MAX_TAKEN_BYTES: Final = 4 << 20
#: Documents that may be taken and not settled at a time; more wait in the inbox.
MAX_TAKEN: Final = 1000
#: Of those, documents that wait for room in their queue; more go to the end of the line.
MAX_WAITING: Final = 100


@dataclass(frozen=True, slots=True)
class TakenDocument:
    """A document on its way from the inbox into a record."""

    #: What it is kept under, and the job's id unless the document gives one.
    id: str
    content: bytes
    #: End of the lease it was handed out under, milliseconds on Redis' clock.
    held_until_ms: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class InboxJob:
    """What a document asks for."""

    #: The id that its producer wants the job to have; None leaves it to us.
    id: str | None
    job: GenerationJob


def take(lease_ms: int, max_taken: int = MAX_TAKEN) -> Call[list[TakenDocument]]:
    """Take documents under a lease; one that is not settled in time is handed out again.

    The same call again, sent by the connection because the first answer was lost, finds its ids in
    use: it hands out what is under them, and puts nothing else there.
    """

    def read(reply: Sequence[Any]) -> list[TakenDocument]:
        held_until_ms, *taken = reply
        pairs = zip(taken[::2], taken[1::2], strict=True)
        return [TakenDocument(each.decode(), content, held_until_ms) for each, content in pairs]

    fresh = (keys.new_job_id() for _ in range(MAX_TAKEN_AT_ONCE))
    limits = (MAX_TAKEN_AT_ONCE, max_taken, MAX_DOCUMENT_BYTES, MAX_TAKEN_BYTES)
    return Call("inbox_take", (lease_ms, *limits, *fresh), read)


def settle(
    taken_id: str,
    retry_in_ms: int | None = None,
    *,
    max_waiting: int = MAX_WAITING,
    held_until_ms: int | None = None,
) -> Call[str]:
    """Drop a taken document, or hand it out again after a while.

    Where more than `max_waiting` wait for that already, it goes to the end of the inbox, under a
    new id: nothing was stored under this one. Nothing is put off where the lease of
    `held_until_ms` has gone to another, who may be making a job of it.
    """
    wait = "" if retry_in_ms is None else retry_in_ms
    args = (taken_id, wait, max_waiting, "" if held_until_ms is None else held_until_ms)
    return Call("inbox_settle", args, lambda reply: str(reply.decode()))


def read_document(content: bytes) -> InboxJob:
    """Return the job in a document.

    Raises:
        JobRejected: it is no JSON object, a key is given twice, or a field is wrong. The message
            holds nothing of what was in it.
    """
    data = _read_object(content)
    job_id = data.pop("id", None)
    if job_id is not None and not (isinstance(job_id, str) and keys.is_job_id(job_id)):
        raise JobRejected(
            "id: a job id is a text of 1 to 128 letters, digits, _ and -; correct it, or leave it "
            "out",
            param="id",
        )
    return InboxJob(job_id, parse_job(data))


def given_id(content: bytes) -> str | None:
    """Return the id in a document that is refused, where one can be read."""
    try:
        job_id = _read_object(content).get("id")
    except JobRejected:
        return None
    return job_id if isinstance(job_id, str) and keys.is_job_id(job_id) else None


def is_same_job(stored: bytes, document: str, *, has_drawn_seed: bool) -> bool:
    """Whether the document of a record asks for the same as another one.

    Args:
        stored: of the record.
        document: the other one.
        has_drawn_seed: its seed was drawn when it was prepared, so it says nothing.
    """
    try:
        jobs = [parse_document(stored), parse_document(document)]
    except JobRejected:
        return False
    if has_drawn_seed:
        jobs = [job.model_copy(update={"seed": None}) for job in jobs]
    first, second = jobs
    same_key = first.idempotency_key == second.idempotency_key
    return same_key and fingerprint(first) == fingerprint(second)


def _read_object(content: bytes) -> dict[str, Any]:
    try:
        data = json.loads(content, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except JobRejected:
        raise
    except (ValueError, RecursionError):  # also bytes that are no UTF-8, and absurd numbers
        raise JobRejected("the document is not JSON in UTF-8", code="not_json") from None
    if not isinstance(data, dict):
        raise JobRejected(
            "the document is JSON, but not an object with the fields of a job", code="not_an_object"
        )
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse an object that says two things of one key: readers disagree on which counts."""
    data: dict[str, Any] = {}
    for name, value in pairs:
        if name in data:
            shown = name if name in GenerationJob.model_fields else "a key"
            raise JobRejected(f"{shown} is given twice in one object", code="duplicate_key")
        data[name] = value
    return data


def _refuse_constant(name: str) -> NoReturn:
    raise JobRejected(f"the document holds {name}, which is not JSON", code="not_json")
