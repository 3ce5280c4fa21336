"""The settings that each command takes as flags; made only for the command that runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

#: The demo runs its own broker and receiver, and sets these itself.
_SET_BY_DEMO = frozenset(
    {
        "broker_url",
        "worker_name",
        "served_model_name",
        "heartbeat_interval_s",
        "session_timeout_s",
        "webhook_allow_http",
        "webhook_allow_ports",
        "webhook_allow_networks",
    }
)
#: Of webhook targets, which `batchmill metrics` does not read.
_TARGETS = frozenset({"webhook_allow_http", "webhook_allow_ports", "webhook_allow_networks"})


def with_setting_flags(name: str, command: Callable[..., int | None]) -> Callable[..., int | None]:
    """Give a command its settings as flags, if it is the command that runs.

    The settings classes take 0.2 s to import, which `batchmill --help` must not wait for.

    Args:
        name: the command's name on the command line.
        command: the command without these flags.
    """
    is_completion = any(variable.endswith("_COMPLETE") for variable in os.environ)
    if name not in sys.argv and not is_completion:
        return command
    from batchmill.producer.bulk.settings import PriceSettings
    from batchmill.producer.settings import ProducerSettings
    from batchmill.worker.settings import ENGINE_SETTINGS, WorkerSettings
    from batchmill.worker.webhooks.settings import WebhookSettings

    from .setting_flags import add_setting_flags

    match name:
        case "bulk":
            return add_setting_flags(command, ProducerSettings, PriceSettings)
        case "submit" | "create":
            return add_setting_flags(command, ProducerSettings)
        case "deliver":
            return add_setting_flags(command, WebhookSettings)
        case "gateway":
            from batchmill.worker.gateway.settings import GatewaySettings

            return add_setting_flags(command, GatewaySettings)
        case "metrics":
            from batchmill.worker.metrics.settings import ExporterSettings

            return add_setting_flags(command, ExporterSettings, hidden=_TARGETS)
        case "up":
            return add_setting_flags(command, WorkerSettings, WebhookSettings)
        case "engine":
            # Benchmark requests are no chats, and have no marks.
            others = {"tool_call_parser", "reasoning_parser", "watermark"}
            shown = {"model", *ENGINE_SETTINGS} - others
            hidden = frozenset(WorkerSettings.model_fields) - shown
            return add_setting_flags(command, WorkerSettings, hidden=hidden)
        case "demo":
            return add_setting_flags(command, WorkerSettings, hidden=_SET_BY_DEMO)
        case _:
            return add_setting_flags(command, WorkerSettings)
