"""Settings of the producer side, from `BATCHMILL_*` variables."""

from __future__ import annotations

from typing import Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from batchmill.producer.broker_url import (
    BOTH_ARE_SET,
    DEFAULT_REPLICA_TIMEOUT_S,
    DEFAULT_TIMEOUT_S,
)
from batchmill.producer.encryption.key_ring import KeyRing
from batchmill.producer.encryption.settings import read_key_ring
from batchmill.producer.errors import EncryptionUnavailable
from batchmill.producer.media_settings import MediaSettings
from batchmill.producer.payloads.settings import PayloadSettings
from batchmill.producer.protocol import keys
from batchmill.producer.tracing.settings import TraceSettings
from batchmill.producer.webhook.target_settings import TargetSettings

#: Far below Redis' own limit of a time to live (2**63 ms), so that a mistake is found at start.
MAX_RESULT_TTL_S = 10 * 365 * 24 * 3600
#: 30 days, the longest time to live of a job.
MAX_BACKOFF_S = 30 * 24 * 3600.0


class ProducerSettings(TargetSettings, TraceSettings, PayloadSettings, MediaSettings):
    """Settings of a client. Each field is `BATCHMILL_<NAME>` in upper case."""

    model_config = SettingsConfigDict(
        env_prefix="BATCHMILL_", extra="forbid", frozen=True, hide_input_in_errors=True
    )

    #: `redis://`, `rediss://`, `unix://`, `redis+socket://`, or `sentinel://` and `sentinels://`
    #: (docs/failover.md); None finds this user's embedded broker.
    broker_url: str | None = Field(default=None, repr=False)  # it may hold a password
    #: Several brokers instead of one, each with a name: `a=redis://… b=redis://…` (docs/shards.md).
    broker_urls: str | None = Field(default=None, repr=False)
    #: Seconds that a call to the broker may take in all, with connecting and repeats; a call of a
    #: worker may take half of it, and is repeated on the worker's own schedule.
    broker_timeout_s: float = Field(default=DEFAULT_TIMEOUT_S, gt=0, allow_inf_nan=False)
    #: Replicas that must have a job, a retry or a batch before a client is told that it is
    #: accepted, and an end before it is reported to Celery. 0 waits for none.
    broker_min_replicas: int = Field(default=0, ge=0)
    #: Seconds to wait for these replicas; at most half of `broker_timeout_s`, and for a worker a
    #: third of `lease_s`.
    broker_replica_timeout_s: float = Field(
        default=DEFAULT_REPLICA_TIMEOUT_S, gt=0, allow_inf_nan=False
    )
    #: Keys that seal the content of jobs in Redis, as name:base64, separated by commas: the first
    #: one seals, all open (docs/encryption.md). None stores content as it is.
    encryption_keys: SecretStr | None = None
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
    #: Bytes of waiting job documents, and of the longest outputs of unfinished jobs, in all queues
    #: together; None means no limit.
    max_queued_bytes: int | None = Field(default=None, ge=1)
    #: Tokens that may wait in all queues together, of prompts (estimated) and outputs (at most);
    #: None means no limit.
    max_queued_tokens: int | None = Field(default=None, ge=1)
    #: Percent of Redis' `maxmemory` beyond which jobs are refused: what is stored, what the outputs
    #: of unfinished jobs may take at most, and the new job. None leaves only `maxmemory` itself.
    max_memory_percent: int | None = Field(default=80, ge=1, le=100)
    #: Webhook events that may wait for delivery before jobs with a webhook are refused; None means
    #: no limit. An event takes about a kilobyte of Redis' memory, and up to 20 KiB once it was
    #: tried with the output in it.
    max_outbox_events: int | None = Field(default=1_000_000, ge=1)
    #: The same for the events of one endpoint, so that a receiver that is down does not use up the
    #: limit of all.
    max_endpoint_events: int | None = Field(default=500_000, ge=1)

    #: Most attempts that a job's own retry policy may ask for.
    retry_attempts_limit: int = Field(default=10, ge=1, le=1000)
    #: Longest wait in seconds that a job's own retry policy may ask for.
    retry_backoff_limit_s: float = Field(default=3600.0, gt=0, le=MAX_BACKOFF_S)

    @field_validator("result_ttl_s")
    @classmethod
    def _check_result_ttl(cls, value: int) -> int:
        if value > MAX_RESULT_TTL_S:
            raise ValueError(
                f"result_ttl_s is {value}, more than ten years ({MAX_RESULT_TTL_S}); set "
                "BATCHMILL_RESULT_TTL_S to the seconds within which results are fetched"
            )
        return value

    @field_validator("encryption_keys")
    @classmethod
    def _check_encryption_keys(cls, value: SecretStr | None) -> SecretStr | None:
        try:
            _key_ring(value)
        except EncryptionUnavailable as error:
            raise ValueError(str(error)) from None
        return value

    @model_validator(mode="after")
    def _check_replica_timeout(self) -> Self:
        if self.broker_min_replicas:
            check_replica_timeout(self.broker_replica_timeout_s, self.broker_timeout_s)
        return self

    @model_validator(mode="after")
    def _check_served_name(self) -> Self:
        try:
            keys.queue_name(self.served_name, "normal")
        except ValueError as error:
            raise ValueError(f"{error}; set BATCHMILL_SERVED_MODEL_NAME") from None
        return self

    @property
    def broker(self) -> str | None:
        """The broker's URL, or the list of shards; None finds the embedded broker.

        Raises:
            ValueError: both are set.
        """
        if self.broker_url and self.broker_urls:
            raise ValueError(BOTH_ARE_SET)
        return self.broker_url or self.broker_urls

    @property
    def key_ring(self) -> KeyRing:
        """The keys that seal and open content."""
        return _key_ring(self.encryption_keys)

    @property
    def served_name(self) -> str:
        """Model name of a job that names none."""
        return self.served_model_name or self.model


def check_replica_timeout(replica_timeout_s: float, call_timeout_s: float) -> None:
    """Check that the wait for replicas fits into the time of a call.

    Raises:
        ValueError: it does not.
    """
    if replica_timeout_s > call_timeout_s / 2:
        raise ValueError(
            f"broker_replica_timeout_s is {replica_timeout_s:g}, but may be at most half of the "
            f"{call_timeout_s:g} s that a call may take: lower it, or raise broker_timeout_s "
            "(timeout_s of a client)"
        )


def _key_ring(keys_text: SecretStr | None) -> KeyRing:
    return read_key_ring(None if keys_text is None else keys_text.get_secret_value())
