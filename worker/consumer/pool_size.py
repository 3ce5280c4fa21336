"""Celery's `pool_grow` and `pool_shrink`, which a worker refuses with the reason."""

from __future__ import annotations

from typing import Any

from celery.worker.control import Panel


def refuse_pool_size() -> None:
    """Make this worker answer `pool_grow` and `pool_shrink` with what decides its size."""

    def refuse(_: Any, **__: Any) -> dict[str, str]:
        return {
            "error": "all jobs of this worker share an engine, whose size is fixed at its start: "
            "set BATCHMILL_MAX_NUM_SEQS and start the worker again, or start another worker"
        }

    Panel.data["pool_grow"] = Panel.data["pool_shrink"] = refuse
