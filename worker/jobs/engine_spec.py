"""From the settings of a worker to the engine that its process builds."""

from __future__ import annotations

from batchmill.worker.engine_host.messages import EngineSpec
from batchmill.worker.settings import WorkerSettings


def engine_spec(settings: WorkerSettings) -> EngineSpec:
    """Return the first message to an engine process."""
    return EngineSpec(
        kind=settings.engine,
        model=settings.model,
        options=settings.engine_options(),
        checkpoint_tokens=settings.checkpoint_tokens,
        log_level=settings.log_level,
        log_format=settings.log_format,
    )
