"""Settings of webhook delivery, from BATCHMILL_WEBHOOK_* variables."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from batchmill.producer.protocol import keys
from batchmill.producer.webhook.signature import sign
from batchmill.producer.webhook.target_settings import TargetSettings

from .schedule import BUSY_WAIT_S

#: Seconds to wait before each attempt: at once, 5 s, 5 min, 30 min, 2 h, 5 h, 10 h, 14 h, 20 h,
#: 24 h; about three days in all. Source: Standard Webhooks 1.0.0, "Deliverability and
#: reliability".
DEFAULT_SCHEDULE_S = (0.0, 5.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0, 50400.0, 72000.0, 86400.0)


class WebhookSettings(TargetSettings):
    """How webhooks are signed, sent and retried. Each field is BATCHMILL_<NAME> in upper case."""

    model_config = SettingsConfigDict(
        env_prefix="BATCHMILL_", extra="forbid", frozen=True, hide_input_in_errors=True
    )

    #: Signing secret, `whsec_` and base64 of 24 to 64 bytes. Several, separated by commas, sign
    #: each delivery once each: put the new secret first, and drop the old one when every
    #: receiver knows the new.
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
    #: Deliveries in flight at once to one host, so that a slow receiver holds up only itself.
    webhook_concurrency_per_host: int = Field(default=8, ge=1)
    #: Seconds between checks of the outbox while nothing is due.
    webhook_poll_interval_s: float = Field(default=0.5, gt=0.0)

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
        _check_secrets("BATCHMILL_WEBHOOK_SECRET", self.secrets)
        for name in self.webhook_secrets:
            where = f"{name!r} in BATCHMILL_WEBHOOK_SECRETS"
            if not keys.is_secret_name(name):
                raise ValueError(f"{where}: a name must have 1 to 64 letters, digits, _ and -")
            secrets = self.secrets_named(name)
            if not secrets:
                raise ValueError(f"{where} is empty; batchmill webhook-secret makes a secret")
            _check_secrets(where, secrets)
        return self

    @property
    def secrets(self) -> tuple[str, ...]:
        """The secrets of jobs that name none, newest first; empty if none is set."""
        return () if self.webhook_secret is None else _split(self.webhook_secret)

    def secrets_named(self, name: str) -> tuple[str, ...]:
        """Return the secrets of a name, newest first; the empty name means the default ones."""
        if not name:
            return self.secrets
        secret = self.webhook_secrets.get(name)
        return () if secret is None else _split(secret)


def _split(secret: SecretStr) -> tuple[str, ...]:
    parts = (part.strip() for part in secret.get_secret_value().split(","))
    return tuple(part for part in parts if part)


def _check_secrets(where: str, secrets: tuple[str, ...]) -> None:
    for number, secret in enumerate(secrets, start=1):
        try:
            sign(secret, "evt", 0, b"")
        except ValueError as error:
            raise ValueError(
                f"secret {number} of {where}: {error}; batchmill webhook-secret makes one"
            ) from None
