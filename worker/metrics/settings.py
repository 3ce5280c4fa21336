"""Settings of metrics, which every service reads."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from batchmill.producer.protocol import keys
from batchmill.producer.webhook.target_settings import TargetSettings
from batchmill.worker.log_settings import LogSettings


class MetricsSettings(TargetSettings):
    """Where a service shows its metrics and health."""

    model_config = SettingsConfigDict(
        env_prefix="BATCHMILL_", extra="forbid", frozen=True, hide_input_in_errors=True
    )

    #: Port for `/metrics`, `/healthz` and `/readyz`; None opens none.
    metrics_port: int | None = Field(default=None, ge=0, le=65535)
    #: Address for it. Whoever reaches it can read the metrics.
    metrics_host: str = "127.0.0.1"


class QueueMetricsSettings(MetricsSettings):
    """What the exporter of queue figures shows."""

    #: Seconds in which the workers are to work off what waits; sets how many workers are wanted.
    backlog_target_s: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    #: Tenants whose waiting jobs have series of their own, with commas between them. No other
    #: series names a tenant, because each name is a series that Prometheus keeps.
    metrics_tenants: Annotated[tuple[str, ...], NoDecode] = ()

    @field_validator("metrics_tenants", mode="before")
    @classmethod
    def _split_tenants(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return tuple(name.strip() for name in value.split(",") if name.strip())

    @field_validator("metrics_tenants")
    @classmethod
    def _check_tenants(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not keys.is_tenant_name(name):
                raise ValueError(
                    f"{name[:80]!r} is not a tenant name: it must be 1 to 64 letters, digits, _ . "
                    "and -"
                )
        return value


class ExporterSettings(QueueMetricsSettings, LogSettings):
    """Settings of `batchmill metrics`."""
