"""The media of a job at submit, and media that are stored by themselves: checks, and no I/O."""

from __future__ import annotations

from pathlib import Path

from batchmill.producer.errors import JobRejected, QueueFull
from batchmill.producer.job.document import GenerationJob
from batchmill.producer.job.media_format import FORMATS, kind_of
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.media import MediaFile, NewMedia, media_id
from batchmill.producer.protocol.replies import MediaStatus
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.webhook.target import ForbiddenTarget, read_target


def check_media(job: GenerationJob, settings: ProducerSettings) -> None:
    """Reject a job with more media, or larger ones, than the operator allows.

    A URL is checked as a webhook is: its host name is not resolved before a worker fetches it.

    Raises:
        JobRejected: the message names the value, the limit and its setting.
    """
    media = job.media
    where = "messages" if job.decision is None else "decision.state"
    limit = settings.max_media_per_job
    if len(media) > limit:
        raise _rejected(
            where,
            f"{len(media)} pictures and sounds, the operator's limit is {limit}; send several "
            "jobs, or raise BATCHMILL_MAX_MEDIA_PER_JOB",
        )
    for part in media:
        if part.content is not None:
            _check_size(part.content, settings, where)
        if part.url is not None:
            try:
                read_target(part.url, settings.media_policy)
            except ForbiddenTarget as error:
                raise _rejected(where, f"the URL of a part of type {part.type}: {error}") from None


def new_media(job: GenerationJob, settings: ProducerSettings) -> tuple[NewMedia, ...]:
    """Return the media that came inside a job, each once."""
    tenant = job.tenant or keys.DEFAULT_TENANT
    found = {
        part.media: NewMedia(
            *(part.content, part.media, part.type, tenant, settings.media_ttl_s * 1000),
            is_of_job=True,
        )
        for part in job.media
        if part.content is not None and part.media is not None
    }
    return tuple(found.values())


def media_of(
    content: bytes | bytearray | memoryview | str | Path,
    tenant: str | None,
    settings: ProducerSettings,
) -> NewMedia:
    """Return what is stored of content, or of the file at a path.

    Raises:
        JobRejected: it is too large, or neither a picture nor a sound; or the tenant is invalid.
        OSError: the file cannot be read.
    """
    if isinstance(content, str | Path):
        content = _read_file(Path(content), settings)
    content = bytes(content)
    _check_size(content, settings)
    kind = kind_of(content)
    if kind is None:
        what = "is empty" if not content else "is in no format that is read"
        raise JobRejected(
            f"the medium {what}: send {FORMATS['image']}, or {FORMATS['audio']}",
            code="media_invalid",
        )
    tenant = tenant or keys.DEFAULT_TENANT
    if not keys.is_tenant_name(tenant):
        raise JobRejected(
            f"tenant is {tenant[:80]!r}; it must be 1 to 64 letters, digits, _ . and -",
            param="tenant",
        )
    return NewMedia(content, media_id(content), kind, tenant, settings.media_ttl_s * 1000)


def check_stored(status: MediaStatus) -> None:
    """Check that a medium was stored.

    Raises:
        QueueFull: it would take more of Redis' memory than the limit.
    """
    if status is not MediaStatus.STORED:
        raise QueueFull(
            "the medium does not fit into BATCHMILL_MAX_MEMORY_PERCENT of Redis' memory; try "
            "later, or set BATCHMILL_PAYLOAD_URL, so that large ones go to an object store"
        )


def _read_file(path: Path, settings: ProducerSettings) -> bytes:
    """Read a file up to one byte beyond the limit, which is enough to refuse it."""
    with path.open("rb") as handle:
        return handle.read(settings.max_media_bytes + 1)


def _check_size(
    content: bytes | MediaFile, settings: ProducerSettings, where: str | None = None
) -> None:
    limit = settings.max_media_bytes
    if len(content) > limit:
        raise JobRejected(
            f"a picture or a sound has {len(content)} bytes or more, the operator's limit is "
            f"{limit}; send a smaller one, or raise BATCHMILL_MAX_MEDIA_BYTES",
            code="media_too_large",
            param=where,
        )


def _rejected(where: str, message: str) -> JobRejected:
    return JobRejected(f"{where}: {message}", param=where)
