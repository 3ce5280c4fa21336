"""Settings of the producer side, from `BATCHMILL_*` variables."""

from __future__ import annotations

from typing import Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from batchmill.producer.protocol import keys
from batchmill.producer.webhook.target_settings import TargetSettings

#: Far below where Redis refuses a time to live (2**63 ms), so that a mistake shows at the start.
MAX_RESULT_TTL_S = 10 * 365 * 24 * 3600


class ProducerSettings(TargetSettings):
    """What a client needs. Each field is `BATCHMILL_<NAME>` in upper case."""

    model_config = SettingsConfigDict(
        env_prefix="BATCHMILL_", extra="forbid", frozen=True, hide_input_in_errors=True
    )

    #: `redis://`, `rediss://`, `unix://` or `redis+socket://`; None finds the embedded
    #: broker of this user.
    broker_url: str | None = Field(default=None, repr=False)  # it may hold a password
    #: Model of a job that names none. The variable is the worker's too, so that one environment
    #: serves both; where it is a path there, the name to use is `served_model_name`.
    model: str = "demo"
    #: Name under which that model is served; None is the model's own.
    served_model_name: str | None = None
    #: Seconds that a job's record, tokens and idempotency key are kept after its end. Five days:
    #: longer than the last attempt to deliver its webhook (76 hours) and a day to fetch the result.
    #: At most ten years.
    result_ttl_s: int = Field(default=432_000, ge=1)
    #: Jobs that a queue may hold before it refuses more; None leaves it to Redis' memory limit.
    max_queue_depth: int | None = Field(default=None, ge=1)
    #: Jobs that may wait in all queues together before more are refused; None is no limit.
    max_queued_jobs: int | None = Field(default=None, ge=1)
    #: Bytes of job documents that may wait in all queues together; None is no limit.
    max_queued_bytes: int | None = Field(default=None, ge=1)
    #: Tokens, prompts (estimated) and most output together, that may wait; None is no limit.
    max_queued_tokens: int | None = Field(default=None, ge=1)

    @field_validator("result_ttl_s")
    @classmethod
    def _check_result_ttl(cls, value: int) -> int:
        if value > MAX_RESULT_TTL_S:
            raise ValueError(
                f"result_ttl_s is {value}, more than ten years ({MAX_RESULT_TTL_S}); set "
                "BATCHMILL_RESULT_TTL_S to the seconds that results are fetched in"
            )
        return value

    @model_validator(mode="after")
    def _check_served_name(self) -> Self:
        try:
            keys.queue_name(self.served_name, "normal")
        except ValueError as error:
            raise ValueError(f"{error}; set BATCHMILL_SERVED_MODEL_NAME") from None
        return self

    @property
    def served_name(self) -> str:
        """Name that a job asks for where it names no model."""
        return self.served_model_name or self.model
