"""Models of which no live worker can decode the pictures and sounds that they take."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchmill.producer.protocol.records import WorkerInfo


def models_without_decoders(workers: Iterable[WorkerInfo]) -> list[str]:
    """Return the models whose workers all lack the extra that decodes media.

    A worker that starts, or of an older version, has not said whether it lacks it: its model is
    left out.
    """
    from batchmill.producer.protocol.media import MEDIA_EXTRA

    lack: dict[str, bool] = {}
    for worker in workers:
        is_certain = worker.media is not None and worker.state != "starting"
        lacks = is_certain and MEDIA_EXTRA in worker.lacks
        lack[worker.model] = lack.get(worker.model, True) and lacks
    return sorted(model for model, lacks in lack.items() if lacks)


def describe_shortage(model: str) -> str:
    """Say that no worker of a model decodes media, and how to change it."""
    from batchmill.producer.install_hint import install_command
    from batchmill.producer.protocol.media import MEDIA_EXTRA

    return (
        f"no live worker of {model} can decode pictures or sounds: install the extra "
        f"{MEDIA_EXTRA} where one runs ({install_command(MEDIA_EXTRA)}), and start it again"
    )
