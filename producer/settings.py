"""Settings of the producer side, from `BATCHMILL_*` variables."""

from __future__ import annotations

from typing import Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from batchmill.producer.protocol import keys
from batchmill.producer.webhook.target_settings import TargetSettings

#: Far below Redis' own limit of a time to live (2**63 ms), so that a mistake is found at start.
MAX_RESULT_TTL_S = 10 * 365 * 24 * 3600


class ProducerSettings(TargetSettings):
    """Settings of a client. Each field is `BATCHMILL_<NAME>` in upper case."""

    model_config = SettingsConfigDict(
        env_prefix="BATCHMILL_", extra="forbid", frozen=True, hide_input_in_errors=True
    )

    #: `redis://`, `rediss://`, `unix://` or `redis+socket://`; None finds this user's embedded
    #: broker.
    broker_url: str | None = Field(default=None, repr=False)  # it may hold a password
    #: Model of a job that names none. Workers read the same variable, so that one environment
    #: serves both; if it is a path there, jobs use `served_model_name`.
    model: str = "demo"
    #: Name under which that model is served; None is the model's own name.
    served_model_name: str | None = None
    #: Seconds that a job's record, tokens and idempotency key are kept after its end; at most ten
    #: years. Five days outlast the last attempt to deliver its webhook (76 hours), and leave a day
    #: to fetch the result.
    result_ttl_s: int = Field(default=432_000, ge=1)
    #: Jobs that a queue may hold before it refuses more; None leaves only Redis' memory limit.
    max_queue_depth: int | None = Field(default=None, ge=1)
    #: Jobs that may wait in all queues together before more are refused; None means no limit.
    max_queued_jobs: int | None = Field(default=None, ge=1)
    #: Bytes of job documents that may wait in all queues together; None means no limit.
    max_queued_bytes: int | None = Field(default=None, ge=1)
    #: Tokens that may wait in all queues together, of prompts (estimated) and outputs (at most);
    #: None means no limit.
    max_queued_tokens: int | None = Field(default=None, ge=1)

    @field_validator("result_ttl_s")
    @classmethod
    def _check_result_ttl(cls, value: int) -> int:
        if value > MAX_RESULT_TTL_S:
            raise ValueError(
                f"result_ttl_s is {value}, more than ten years ({MAX_RESULT_TTL_S}); set "
                "BATCHMILL_RESULT_TTL_S to the seconds within which results are fetched"
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
        """Model name of a job that names none."""
        return self.served_model_name or self.model
