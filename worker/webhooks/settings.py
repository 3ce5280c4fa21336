"""Settings of webhook delivery, from BATCHMILL_WEBHOOK_* variables."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from batchmill.producer.protocol import keys
from batchmill.producer.tracing.settings import TraceSettings
from batchmill.producer.webhook.secret_list import read_secrets, valid_secrets
from batchmill.producer.webhook.signature import sign
from batchmill.worker.log_settings import LogSettings
from batchmill.worker.metrics.settings import QueueMetricsSettings

from .schedule import BUSY_WAIT_S

#: Seconds between two signs of life of a deliverer.
NOTE_INTERVAL_S = 1.0
#: Seconds to wait before each attempt: at once, 5 s, 5 min, 30 min, 2 h, 5 h, 10 h, 14 h, 20 h,
#: 24 h; about three days in all. Source: Standard Webhooks 1.0.0, "Deliverability and
#: reliability".
DEFAULT_SCHEDULE_S = (0.0, 5.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0, 50400.0, 72000.0, 86400.0)


class WebhookSettings(QueueMetricsSettings, LogSettings, TraceSettings):
    """How webhooks are signed, sent and retried. Each field is BATCHMILL_<NAME> in upper case."""

    model_config = SettingsConfigDict(
        env_prefix="BATCHMILL_", extra="forbid", frozen=True, hide_input_in_errors=True
    )

    #: Signing secret, `whsec_` and base64 of 24 to 64 bytes. Several, separated by commas, sign
    #: each delivery once each, newest first; one with `@` and a time (`…@2026-01-31T12:00:00Z`)
    #: ends then. `batchmill webhooks secret rotate` writes such a value.
    webhook_secret: SecretStr | None = None
    #: More secrets, under names that jobs may ask for (`webhook_secret`): JSON such as
    #: `{"billing": "whsec_…"}`, each one or several as above.
    webhook_secrets: Annotated[dict[str, SecretStr], NoDecode] = Field(default_factory=dict)
    #: Seconds to wait before each attempt, the first included; as many attempts as entries.
    webhook_schedule_s: Annotated[tuple[float, ...], NoDecode] = DEFAULT_SCHEDULE_S
    #: Every wait is varied by up to this share, so that a receiver that comes back is not met by
    #: all deliveries at once.
    webhook_jitter: float = Field(default=0.2, ge=0.0, lt=1.0)
    #: Minimum seconds before the next attempt after a 429, 502 or 504 response or a timeout.
    webhook_busy_wait_s: float = Field(default=BUSY_WAIT_S, ge=0.0, le=86_400.0)
    #: Seconds for the TCP and TLS handshake.
    webhook_connect_timeout_s: float = Field(default=3.0, gt=0.0)
    #: Seconds for one whole attempt, from name look-up to the last byte read.
    webhook_total_timeout_s: float = Field(default=15.0, gt=0.0)
    #: Deliveries in flight at once in one deliverer.
    webhook_concurrency: int = Field(default=256, ge=1, le=1000)
    #: Deliveries in flight at once to one host, of all deliverers together, so that a slow receiver
    #: holds up only itself.
    webhook_concurrency_per_host: int = Field(default=16, ge=1, le=1000)
    #: Deliveries in flight at once to one endpoint (a tenant's URL), of all deliverers together.
    webhook_concurrency_per_endpoint: int = Field(default=8, ge=1, le=1000)
    #: Failures in a row after which an endpoint gets nothing for a while; its events wait. 0 means
    #: never.
    webhook_breaker_failures: int = Field(default=5, ge=0, le=1_000_000)
    #: Seconds for which it then gets nothing. After them one event is sent at a time; each further
    #: failure doubles the wait, and a success ends it.
    webhook_breaker_wait_s: float = Field(default=30.0, gt=0.0, le=86_400.0)
    #: The longest such wait.
    webhook_breaker_max_wait_s: float = Field(default=900.0, gt=0.0, le=86_400.0)
    #: Seconds between checks of the outbox while nothing is due.
    webhook_poll_interval_s: float = Field(default=0.5, gt=0.0)
    #: Seconds without a sign of life after which a deliverer counts as lost if Redis has no
    #: connection of it either; its events then go to others before their leases end. Raising it
    #: spares a deliverer whose network is cut for longer.
    webhook_session_timeout_s: float = Field(default=3.0, ge=2 * NOTE_INTERVAL_S)
    #: Whether the deliverer's metrics include those of queues, workers and webhooks of the whole
    #: broker; for one deliverer, instead of `batchmill metrics`.
    metrics_queues: bool = False

    @field_validator("webhook_secrets", mode="before")
    @classmethod
    def _read_secrets(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except ValueError:
            raise ValueError('BATCHMILL_WEBHOOK_SECRETS must be JSON such as {"a": "…"}') from None

    @field_validator("webhook_schedule_s", mode="before")
    @classmethod
    def _split_schedule(cls, value: Any) -> Any:
        return value.split(",") if isinstance(value, str) else value

    @field_validator("webhook_schedule_s")
    @classmethod
    def _check_schedule(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or any(not 0 <= seconds <= 30 * 86400 for seconds in value):
            raise ValueError("give at least one wait, each between 0 and 2592000 s (30 days)")
        return value

    @model_validator(mode="after")
    def _check_all_secrets(self) -> WebhookSettings:
        if self.webhook_secret is not None:
            _check_secrets("BATCHMILL_WEBHOOK_SECRET", self.webhook_secret)
        for name, secret in self.webhook_secrets.items():
            where = f"{name!r} in BATCHMILL_WEBHOOK_SECRETS"
            if not keys.is_secret_name(name):
                raise ValueError(f"{where}: a name must have 1 to 64 letters, digits, _ and -")
            if not _check_secrets(where, secret):
                raise ValueError(f"{where} is empty; batchmill webhook-secret makes a secret")
        return self

    @property
    def secrets(self) -> tuple[str, ...]:
        """The valid secrets of jobs that name none, newest first; empty if none is set."""
        return () if self.webhook_secret is None else _valid(self.webhook_secret)

    def secrets_named(self, name: str) -> tuple[str, ...]:
        """Return the valid secrets of a name, newest first; the empty name means the default."""
        if not name:
            return self.secrets
        secret = self.webhook_secrets.get(name)
        return () if secret is None else _valid(secret)


def _valid(secret: SecretStr) -> tuple[str, ...]:
    return tuple(valid_secrets(secret.get_secret_value()))


def _check_secrets(where: str, value: SecretStr) -> int:
    """Check all secrets of a value, also those that have ended; return how many there are."""
    try:
        secrets = read_secrets(value.get_secret_value())
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    for number, each in enumerate(secrets, start=1):
        try:
            sign(each.secret, "evt", 0, b"")
        except ValueError as error:
            raise ValueError(
                f"secret {number} of {where}: {error}; batchmill webhook-secret makes one"
            ) from None
    return len(secrets)
