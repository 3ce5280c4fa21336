"""Settings of watermarks, which workers and the detector read."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from batchmill.engine.contract.watermark import problem_of_secret
from batchmill.producer.webhook.target_settings import TargetSettings


class WatermarkSettings(TargetSettings):
    """The keys that mark outputs."""

    model_config = SettingsConfigDict(
        env_prefix="BATCHMILL_", extra="forbid", frozen=True, hide_input_in_errors=True
    )

    #: Secrets that mark outputs as generated, by the names that jobs give (`watermark`): JSON such
    #: as `{"press": "…"}`. `batchmill watermark new-key` makes a secret. All workers of a model
    #: need the same ones.
    watermark_keys: Annotated[dict[str, SecretStr], NoDecode] = Field(default_factory=dict)

    @field_validator("watermark_keys", mode="before")
    @classmethod
    def _read_watermark_keys(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except ValueError:
            raise ValueError('BATCHMILL_WATERMARK_KEYS must be JSON such as {"a": "…"}') from None

    @field_validator("watermark_keys")
    @classmethod
    def _check_watermark_keys(cls, value: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for name, secret in value.items():
            if (problem := problem_of_secret(name, secret.get_secret_value())) is not None:
                raise ValueError(problem)
        return value

    @property
    def watermark_secrets(self) -> dict[str, str]:
        """The secrets by name."""
        return {name: secret.get_secret_value() for name, secret in self.watermark_keys.items()}
