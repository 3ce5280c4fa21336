"""Settings of webhook delivery, from BATCHMILL_WEBHOOK_* variables."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from batchmill.producer.webhook import sign

#: Seconds to wait before each attempt: at once, 5 s, 5 min, 30 min, 2 h, 5 h, 10 h, 14 h, 20 h,
#: 24 h; about three days in all. Source: Standard Webhooks 1.0.0, "Deliverability and
#: reliability".
DEFAULT_SCHEDULE_S = (0.0, 5.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0, 50400.0, 72000.0, 86400.0)


class WebhookSettings(BaseSettings):
    """How webhooks are signed, sent and retried. Each field is BATCHMILL_<NAME> in upper case."""

    model_config = SettingsConfigDict(
        env_prefix="BATCHMILL_", extra="forbid", frozen=True, hide_input_in_errors=True
    )

    #: Signing secret, `whsec_` and base64 of 24 to 64 bytes. Several, separated by commas, sign
    #: each delivery once each: put the new secret first, and drop the old one when every
    #: receiver knows the new.
    webhook_secret: SecretStr | None = None
    #: Send to http:// URLs too. For receivers on the same machine or network only: the body can
    #: be read on the way.
    webhook_allow_http: bool = False
    #: Seconds to wait before each attempt, the first included; as many attempts as entries.
    webhook_schedule_s: Annotated[tuple[float, ...], NoDecode] = DEFAULT_SCHEDULE_S
    #: Every wait is varied by up to this share, so that a receiver that comes back is not met by
    #: all deliveries at once.
    webhook_jitter: float = Field(default=0.2, ge=0.0, lt=1.0)
    #: Seconds for the TCP and TLS handshake.
    webhook_connect_timeout_s: float = Field(default=3.0, gt=0.0)
    #: Seconds for one whole attempt, from name look-up to the last byte read.
    webhook_total_timeout_s: float = Field(default=15.0, gt=0.0)
    #: Deliveries in flight at once in one deliverer.
    webhook_concurrency: int = Field(default=256, ge=1, le=1000)
    #: Deliveries in flight at once to one host, so that a slow receiver holds up only itself.
    webhook_concurrency_per_host: int = Field(default=8, ge=1)
    #: Seconds between looks into the outbox when nothing was due.
    webhook_poll_interval_s: float = Field(default=0.5, gt=0.0)

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
    def _check_secrets(self) -> WebhookSettings:
        for number, secret in enumerate(self.secrets, start=1):
            try:
                sign(secret, "evt", 0, b"")
            except ValueError as error:
                raise ValueError(
                    f"secret {number} of BATCHMILL_WEBHOOK_SECRET: {error}; "
                    "batchmill webhook-secret makes one"
                ) from None
        return self

    @property
    def secrets(self) -> tuple[str, ...]:
        """The signing secrets, newest first; empty where none is set."""
        if self.webhook_secret is None:
            return ()
        return tuple(
            part.strip()
            for part in self.webhook_secret.get_secret_value().split(",")
            if part.strip()
        )
