"""The one setting of traces; everything else is a standard variable of OpenTelemetry."""

from __future__ import annotations

from pydantic_settings import BaseSettings, SettingsConfigDict


class TraceSettings(BaseSettings):
    """Whether spans are made."""

    # As in `TargetSettings`: of several bases with a setting each, the last one counts.
    model_config = SettingsConfigDict(env_ignore_empty=True)

    #: Make OpenTelemetry spans of jobs and export them, as the standard `OTEL_*` variables say. It
    #: needs the extra `traces`.
    traces: bool = False
