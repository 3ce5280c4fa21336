"""The batchmill engine: continuous batching over a paged KV cache. Knows no queue.

`Engine` is imported when it is first used, because it pulls in torch: a process that only builds
`SamplingParams` and reads `RequestOutput`s stays light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .chat import Chat
from .config import EngineConfig
from .errors import (
    ConfigError,
    EngineError,
    ModelLoadError,
    OutOfBlocksError,
    RequestError,
    UnsupportedModelError,
)
from .outputs import (
    Completion,
    FinishReason,
    RequestFailure,
    RequestMetrics,
    RequestOutput,
    Usage,
)
from .sampling_params import SamplingParams
from .stats import EngineStats
from .tool_calls import ToolCall

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
