"""The batchmill engine: continuous batching over a paged KV cache.

Read `engine.py` first, then `scheduling/scheduler.py`. The engine never imports Celery, Redis or
pydantic, and knows nothing about queues or jobs.

Each public name is imported when it is first used. So a producer, which imports only
`batchmill.engine.contract`, loads nothing else of the engine, and torch is loaded with `Engine`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from batchmill.engine.lifecycle.pooled_intake import TextPair
    from batchmill.engine.lifecycle.stats import EngineStats
    from batchmill.engine.request.outputs import (
        Completion,
        FinishReason,
        RequestFailure,
        RequestMetrics,
        RequestOutput,
        Usage,
    )
    from batchmill.engine.request.pooling import PoolingParams
    from batchmill.engine.request.sampling_params import SamplingParams
    from batchmill.engine.text.chat import Chat
    from batchmill.engine.text.tool_calls import ToolCall
    from batchmill.engine.watermark.detection import WatermarkDetection

    from .config import EngineConfig
    from .engine import Engine
    from .errors import (
        ConfigError,
        EngineError,
        ModelLoadError,
        OutOfBlocksError,
        RequestError,
        UnsupportedModelError,
    )
    from .watermark_detector import WatermarkDetector

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
    "PoolingParams",
    "RequestError",
    "RequestFailure",
    "RequestMetrics",
    "RequestOutput",
    "SamplingParams",
    "TextPair",
    "ToolCall",
    "UnsupportedModelError",
    "Usage",
    "WatermarkDetection",
    "WatermarkDetector",
]

#: Public name -> the module that defines it.
_MODULES: Final = {
    "Chat": "text.chat",
    "Completion": "request.outputs",
    "ConfigError": "errors",
    "Engine": "engine",
    "EngineConfig": "config",
    "EngineError": "errors",
    "EngineStats": "lifecycle.stats",
    "FinishReason": "request.outputs",
    "ModelLoadError": "errors",
    "OutOfBlocksError": "errors",
    "PoolingParams": "request.pooling",
    "RequestError": "errors",
    "RequestFailure": "request.outputs",
    "RequestMetrics": "request.outputs",
    "RequestOutput": "request.outputs",
    "SamplingParams": "request.sampling_params",
    "TextPair": "lifecycle.pooled_intake",
    "ToolCall": "text.tool_calls",
    "UnsupportedModelError": "errors",
    "Usage": "request.outputs",
    "WatermarkDetection": "watermark.detection",
    "WatermarkDetector": "watermark_detector",
}

# Hidden from type checkers: they would take every name for one that exists.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
