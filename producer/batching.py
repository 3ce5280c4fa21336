"""Cutting a stream of jobs into batches of bounded size. No input or output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from . import calls
from .answers import Submitted
from .calls import Call, NewJob
from .errors import JobRejected
from .models import GenerationJob
from .outcomes import accepted_id
from .settings import ProducerSettings
from .submission import prepare
from .validation import parse_job

#: A job as callers give it.
JobLike: TypeAlias = GenerationJob | Mapping[str, Any]
#: Told of a job that was refused: its index in the input, and why.
OnRejected: TypeAlias = Callable[[int, JobRejected], None]

MAX_BATCH_JOBS = 500
#: Prompts may be a megabyte each: a batch must not be five hundred of those.
MAX_BATCH_CHARS = 4 << 20


def as_job(job: JobLike | None, fields: Mapping[str, Any]) -> GenerationJob:
    """Return the job that ``submit`` was given, as one value or as fields.

    Raises:
        TypeError: both were given.
        JobRejected: a field is wrong.
    """
    if job is None:
        return parse_job(fields)
    if fields:
        raise TypeError(f"give a job or its fields, not both; fields are {', '.join(fields)}")
    return job if isinstance(job, GenerationJob) else parse_job(job)


class Batch:
    """Jobs that go to the broker in one round trip, with their places in the input.

    Owns the first refusal where there is no ``on_rejected``: it is raised by ``check``, once the
    jobs before it have been sent and their handles handed out.
    """

    def __init__(self, settings: ProducerSettings, on_rejected: OnRejected | None) -> None:
        self._settings = settings
        self._on_rejected = on_rejected
        self._jobs: list[tuple[int, NewJob]] = []
        self._num_chars = 0
        self._refusal: JobRejected | None = None

    def add(self, index: int, job: JobLike) -> None:
        """Check a job and keep it, or note its refusal."""
        try:
            prepared = prepare(as_job(job, {}), self._settings)
        except JobRejected as error:
            self._reject(index, error)
            return
        self._jobs.append((index, prepared))
        self._num_chars += len(prepared.document)

    @property
    def must_be_sent(self) -> bool:
        """Whether it is full, or ends here because of a refusal."""
        return (
            len(self._jobs) >= MAX_BATCH_JOBS
            or self._num_chars >= MAX_BATCH_CHARS
            or self._refusal is not None
        )

    def calls(self) -> list[Call[Submitted]]:
        """Return the script calls that submit the batch."""
        return [calls.submit(job) for _, job in self._jobs]

    def take_ids(self, answers: Sequence[Submitted]) -> Iterator[str]:
        """Empty the batch and yield the ids of the jobs that were accepted."""
        sent = list(zip(self._jobs, answers, strict=True))
        self._jobs.clear()
        self._num_chars = 0
        for (index, job), answer in sent:
            try:
                job_id = accepted_id(job, answer)
            except JobRejected as error:
                self._reject(index, error)
            else:
                yield job_id

    def check(self) -> None:
        """Raise the refusal, if there was one and nobody else is told of it.

        Raises:
            JobRejected: of the first job that was refused.
        """
        if self._refusal is not None:
            raise self._refusal

    def _reject(self, index: int, error: JobRejected) -> None:
        if self._on_rejected is not None:
            self._on_rejected(index, error)
        elif self._refusal is None:
            error.add_note(f"job {index} of the input, counted from 0")
            self._refusal = error
