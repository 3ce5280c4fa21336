"""Settings of logs, which every service reads."""

from __future__ import annotations

from typing import Literal

from pydantic_settings import SettingsConfigDict

from batchmill.producer.webhook.target_settings import TargetSettings


class LogSettings(TargetSettings):
    """What a service logs, and how."""

    model_config = SettingsConfigDict(
        env_prefix="BATCHMILL_", extra="forbid", frozen=True, hide_input_in_errors=True
    )

    #: Lowest level of log lines that are written.
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    #: Format of log lines; "auto" is text on a terminal and JSON elsewhere.
    log_format: Literal["auto", "json", "text"] = "auto"
