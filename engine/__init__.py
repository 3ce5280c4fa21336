"""The batchmill engine: continuous batching over a paged KV cache.

Read `engine.py` first, then `scheduling/scheduler.py`. The engine never imports Celery, Redis or
pydantic, and knows nothing about queues or jobs.

`Engine` is imported when it is first used, because it pulls in torch: a process that only builds
`SamplingParams` and reads `RequestOutput`s stays light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batchmill.engine.lifecycle.stats import EngineStats
from batchmill.engine.request.outputs import (
    Completion,
    FinishReason,
    RequestFailure,
    RequestMetrics,
    RequestOutput,
    Usage,
)
from batchmill.engine.request.sampling_params import SamplingParams
from batchmill.engine.text.chat import Chat
from batchmill.engine.text.tool_calls import ToolCall

from .config import EngineConfig
from .errors import (
    ConfigError,
    EngineError,
    ModelLoadError,
    OutOfBlocksError,
    RequestError,
    UnsupportedModelError,
)

if TYPE_CHECKING:
    from .engine import Engine

__all__ = [
    "Chat",
    "Completion",
    "ConfigError",
    "Engine",
    "EngineConfig",
    "EngineError",
    "EngineStats",
    "FinishReason",
    "ModelLoadError",
    "OutOfBlocksError",
    "RequestError",
    "RequestFailure",
    "RequestMetrics",
    "RequestOutput",
    "SamplingParams",
    "ToolCall",
    "UnsupportedModelError",
    "Usage",
]


def __getattr__(name: str) -> Any:
    if name == "Engine":
        from .engine import Engine

        return Engine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
