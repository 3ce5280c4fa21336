"""Whether jobs, batches and uploads exist in a broker. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls.call import Read

#: Returns keys of which one exists if what has an id does.
KeysOf = Callable[[str], Sequence[str]]


def exist(ids: Sequence[str], keys_of: KeysOf) -> Read[list[bool]]:
    """Read for each id whether what has it exists."""

    def queue(pipeline: Any) -> None:
        for some_id in ids:
            pipeline.exists(*keys_of(some_id))

    return Read(queue, lambda replies: [number > 0 for number in replies])


def job_keys(job_id: str) -> Sequence[str]:
    """Return the keys of a job; one that was forgotten lately counts too."""
    return keys.job(job_id), keys.forgotten(job_id)


def batch_keys(batch_id: str) -> Sequence[str]:
    """Return the key of a batch."""
    return (keys.batch(batch_id),)


def file_keys(file_id: str) -> Sequence[str]:
    """Return the key of an upload."""
    return (keys.file(file_id),)
