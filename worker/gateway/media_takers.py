"""Which kinds of media a model's live workers take, and the error for the others."""

from __future__ import annotations

from collections.abc import Collection

from batchmill.producer.protocol.media import MEDIA_EXTRA
from batchmill.producer.protocol.records import WorkerInfo

from .api_errors import ApiError

_NAMES = {"image": "pictures", "audio": "sounds"}


class MediaTakers:
    """What the heartbeats of one model's workers say about pictures and sounds.

    Attributes:
        kinds: That at least one of them takes.
        is_certain: Whether each has said what it takes; one that starts, or is of an older version,
            has not.
        lacks_extra: Whether one would take more with the extra `media`.
    """

    def __init__(self) -> None:
        """Know of no worker."""
        self.kinds: set[str] = set()
        self.is_certain = True
        self.lacks_extra = False

    def add(self, worker: WorkerInfo) -> None:
        """Add a worker."""
        self.kinds.update(worker.media or ())
        self.is_certain &= worker.media is not None and worker.state != "starting"
        self.lacks_extra |= MEDIA_EXTRA in worker.lacks


def check_media_taken(takers: MediaTakers | None, model: str, kinds: Collection[str]) -> None:
    """Refuse a job whose pictures or sounds no worker takes.

    Args:
        takers: of the model; None if nothing is known about them.
        model: that the job names.
        kinds: of its media.

    Raises:
        ApiError: its model takes none (400), or each worker lacks packages (503).
    """
    if takers is None or not takers.is_certain:
        return
    missing = sorted(set(kinds) - takers.kinds)
    if not missing:
        return
    what = " and ".join(_NAMES[kind] for kind in missing)
    if takers.lacks_extra:
        raise ApiError(
            503,
            f"no worker that serves {model[:200]!r} can decode {what}: install the extra "
            f"{MEDIA_EXTRA} where it runs",
            code="media_unavailable",
            param="messages",
        )
    raise ApiError(
        400,
        f"the model {model[:200]!r} takes no {what}: leave them out, or name a model that does; "
        "/v1/models lists the media of each",
        code="unsupported_parameter",
        param="messages",
    )
