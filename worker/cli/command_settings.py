"""Settings as flags, made only for the command that is asked for."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import BaseModel

#: The demo is a world of its own, with its own broker.
_SET_BY_DEMO = frozenset(
    {
        "broker_url",
        "worker_name",
        "served_model_name",
        "heartbeat_interval_s",
        "webhook_allow_http",
        "webhook_allow_ports",
        "webhook_allow_networks",
    }
)
_OF_AN_ENGINE = frozenset(
    {
        *("model", "dtype", "device", "quantization", "model_impl", "kv_cache_bytes"),
        *("max_model_len", "max_num_seqs", "max_num_batched_tokens", "enable_prefix_caching"),
        *("overlap", "decode_graphs", "kv_cache_dtype", "gpu_memory_utilization"),
        *("num_speculative_tokens", "prompt_lookup_max", "prompt_lookup_min"),
        *("speculative_max_num_seqs", "block_size"),
    }
)


def with_setting_flags(name: str, command: Callable[..., int | None]) -> Callable[..., int | None]:
    """Give a command its settings as flags, where it is the one that is asked for.

    The settings classes take 0.2 s to import, which `batchmill --help` need not wait for.

    Args:
        name: of the command, as it is typed.
        command: the command without these flags.
    """
    is_completion = any(variable.endswith("_COMPLETE") for variable in os.environ)
    if name not in sys.argv and not is_completion:
        return command
    from batchmill.producer.settings import ProducerSettings
    from batchmill.worker.settings import WorkerSettings
    from batchmill.worker.webhooks.settings import WebhookSettings

    from .setting_flags import add_setting_flags

    match name:
        case "submit" | "bulk" | "create":
            return add_setting_flags(command, ProducerSettings)
        case "deliver":
            return add_setting_flags(command, WebhookSettings)
        case "up":
            return add_setting_flags(command, WorkerSettings, WebhookSettings)
        case "engine":
            return add_setting_flags(command, WorkerSettings, hidden=_of_no_engine(WorkerSettings))
        case "demo":
            return add_setting_flags(command, WorkerSettings, hidden=_SET_BY_DEMO)
        case _:
            return add_setting_flags(command, WorkerSettings)


def _of_no_engine(settings: type[BaseModel]) -> frozenset[str]:
    """Settings of a worker that the engine alone has no use for."""
    return frozenset(settings.model_fields) - _OF_AN_ENGINE
