"""Settings of a worker. Only this file reads the worker's `BATCHMILL_*` variables."""

from __future__ import annotations

import dataclasses
import os
import socket
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, get_type_hints

from pydantic import Field, ValidationInfo, create_model, field_validator, model_validator
from pydantic_settings import NoDecode

from batchmill.engine import ConfigError, EngineConfig
from batchmill.producer.broker_url import DEFAULT_TIMEOUT_S
from batchmill.producer.job.retry import RETRYABLE_CODES, check_codes
from batchmill.producer.protocol import keys
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.webhook.target_settings import NO_VALUE
from batchmill.worker.log_settings import LogSettings
from batchmill.worker.media_settings import MediaReadingSettings
from batchmill.worker.metrics.settings import MetricsSettings
from batchmill.worker.watermark_settings import WatermarkSettings

#: Fields of `EngineConfig` that are not settings: the queue orders the jobs, and each job has its
#: own seed.
_NOT_SETTINGS = frozenset({"priority_ageing_s", "seed"})


def engine_settings(config: type[EngineConfig]) -> type[ProducerSettings]:
    """Return settings with a field for each field of an engine's configuration that has a default.

    Types, defaults, checks and comments are the configuration's, so each field is written once.
    """
    types = get_type_hints(config)

    def check(cls: type[ProducerSettings], value: Any, info: ValidationInfo) -> Any:
        try:
            config.check_value(str(info.field_name), value)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return value

    def type_of(field: dataclasses.Field[Any]) -> Any:
        # A field whose default depends on the device is None until the configuration is made.
        return types[field.name] | None if field.default is None else types[field.name]

    found: dict[str, Any] = {
        field.name: (type_of(field), field.default)
        for field in fields(config)
        if field.default is not MISSING and field.name not in _NOT_SETTINGS
    }
    return create_model(
        "EngineSettings",
        __base__=ProducerSettings,
        __module__=__name__,
        __validators__={"check_engine_value": field_validator(*found)(check)},
        # `setting_docs` reads the comments of the fields there.
        described_by=(ClassVar[type], config),
        **found,
    )


if TYPE_CHECKING:
    EngineSettings = ProducerSettings
else:
    EngineSettings = engine_settings(EngineConfig)
#: Settings that are fields of `EngineConfig`.
ENGINE_SETTINGS = tuple(
    name for name in EngineSettings.model_fields if name not in ProducerSettings.model_fields
)


class WorkerSettings(
    EngineSettings, WatermarkSettings, MediaReadingSettings, MetricsSettings, LogSettings
):
    """How a worker runs. Each field is `BATCHMILL_<NAME>` in upper case."""

    #: Model to serve: a folder, a Hugging Face hub id, a GGUF file, or "demo".
    model: str = "demo"
    #: Name by which jobs ask for the model; None is the model's own. A path cannot be such a name.
    served_model_name: str | None = None
    #: "real", or "stub": deterministic tokens without a model, for tests and measurements.
    engine: Literal["real", "stub"] = "real"
    #: Fields of `StubConfig`, JSON; only with `engine="stub"`.
    stub: dict[str, Any] = Field(default_factory=dict)

    #: Share prefix blocks between tenants as well. The time that a result takes then shows a tenant
    #: whether another one has sent the same beginning of a prompt.
    prefix_cache_shared_across_tenants: bool = False

    #: Seconds that a call to the broker may take in all, with connecting and repeats; a call of a
    #: worker may take half of it, and is repeated on the worker's own schedule.
    broker_timeout_s: float = Field(default=DEFAULT_TIMEOUT_S, gt=0, allow_inf_nan=False)

    #: Seconds after which the jobs of a silent worker go to another worker. A step may take longer:
    #: leases are renewed until `engine_stall_s` is over.
    lease_s: float = Field(default=15.0, ge=0.5)
    #: Seconds that the engine's loop may stand still before the engine is killed and replaced.
    engine_stall_s: float = Field(default=60.0, gt=0)
    #: Unsaved tokens of one job that make a checkpoint of all running jobs due. The engine computes
    #: one step more, and then waits for the checkpoint, unless Redis does not reply.
    checkpoint_tokens: int = Field(default=8, ge=1)
    #: Longest time in seconds that a token stays unsaved.
    checkpoint_interval_s: float = Field(default=0.25, gt=0)
    #: Unsaved tokens of all running jobs at which generation pauses while Redis is unreachable.
    max_backlog_tokens: int = Field(default=262_144, ge=1)
    #: Most bytes of a result; a job with a longer one fails as `result_too_large`. Keep it below
    #: what Redis takes in one piece (`proto-max-bulk-len`, 512 MiB unless changed).
    max_result_bytes: int = Field(default=134_217_728, ge=1024)
    #: Attempts of a job that may fail with a retryable error before the job fails, unless the job
    #: has its own retry policy; 1 retries nothing.
    retry_max_attempts: int = Field(default=3, ge=1)
    #: Seconds before the first retry of a job. Each further wait is twice as long, and each is
    #: shortened by up to a quarter at random.
    retry_backoff_s: float = Field(default=2.0, ge=0)
    #: Longest wait before a retry, seconds.
    retry_max_backoff_s: float = Field(default=60.0, ge=0)
    #: Error codes that are retried, with commas between them; "none" retries nothing.
    retry_codes: Annotated[tuple[str, ...], NoDecode] = RETRYABLE_CODES
    #: Dead letters that are kept. Of more, the oldest are dropped, counted (`dead_letters_dropped`
    #: in the totals) and logged.
    max_dead_letters: int = Field(default=10_000, ge=1)
    #: Days (UTC, today included) for which used tokens are kept for `batchmill usage`.
    #: If workers differ, the smallest number counts.
    usage_days: int = Field(default=400, ge=1, le=800)
    #: Seconds after which a waiting job without a deadline expires as `not_served`, if no worker
    #: has served its queue for as long; None lets it wait forever.
    unserved_ttl_s: int | None = Field(default=604_800, ge=1)
    #: Seconds that an orderly shutdown may take. Let the process supervisor wait a few more.
    drain_timeout_s: float = Field(default=20.0, gt=0)
    #: Seconds between two sweeps for expired leases and lost announcements.
    sweep_interval_s: float = Field(default=2.0, gt=0)
    #: Seconds after which a waiting job without an announcement is announced again.
    reannounce_grace_s: float = Field(default=30.0, ge=0)
    #: Seconds between two heartbeats.
    heartbeat_interval_s: float = Field(default=1.0, gt=0, lt=keys.WORKER_TTL_S)
    #: Seconds without a heartbeat after which a worker counts as lost if Redis has no connection of
    #: it either; its jobs then go to others before their leases end. Raising it spares a worker
    #: whose network is cut for longer.
    session_timeout_s: float = Field(default=3.0, gt=0)
    #: Jobs of the class `high` that a full worker takes beyond `max_num_seqs`; the engine preempts
    #: jobs of lower classes for them. 0 lets them wait for a place.
    high_places: int = Field(default=2, ge=0)
    #: Ask for jobs that busier workers hold while this worker has room and nothing waits in its
    #: queues, and give some to workers that ask. Each goes on from its last token.
    takeover: bool = True
    #: Tokens after which a job of a full worker gives way to waiting jobs of its class or a higher
    #: one that need less than half of what it has left. It goes on later, from its last token. Each
    #: further slice of a job is twice as long. 0 lets every job run to its end.
    time_slice_tokens: int = Field(default=0, ge=0)
    #: Take a job whose prompt begins as one that this worker has computed before another one of the
    #: same tenant and class; each job is passed over four times at most. No worker waits for it.
    prefix_claims: bool = True
    #: Which jobs take draft tokens from the outputs of finished jobs of the same tenant, model and
    #: template, and give their own: "named" are those that name a template (`draft_corpus`), "auto"
    #: also those whose prompts begin with the same 512 characters, "off" none. It changes no token
    #: but for rounding.
    draft_corpus: Literal["off", "named", "auto"] = "named"
    #: Finished jobs of a template whose outputs are used, the newest. Raising it finds more, and
    #: takes more memory and time.
    draft_corpus_jobs: int = Field(default=256, ge=1, le=4096)
    #: Near the end of a queue, hold no more of its jobs than this worker's share by the measured
    #: speeds of all workers of the model, so that a slow one does not hold up the end.
    claim_share: bool = False
    #: Threads that report the ends of jobs to Celery.
    finisher_threads: int = Field(default=2, ge=1)

    #: The shard that the worker serves, if `broker_urls` is a list of them.
    shard: str | None = None

    #: Celery node name, which must be unique on one Redis. None builds it from model, pid and host.
    worker_name: str | None = None

    @field_validator("retry_codes", mode="before")
    @classmethod
    def _split_codes(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        codes = tuple(code.strip() for code in value.split(",") if code.strip())
        return () if codes == (NO_VALUE,) else codes

    @field_validator("retry_codes")
    @classmethod
    def _check_codes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(check_codes(list(value)))

    @model_validator(mode="after")
    def _check_retries(self) -> Self:
        for name, limit_name in (
            ("retry_max_attempts", "retry_attempts_limit"),
            ("retry_backoff_s", "retry_max_backoff_s"),
            ("retry_max_backoff_s", "retry_backoff_limit_s"),
        ):
            value, limit = getattr(self, name), getattr(self, limit_name)
            if value > limit:
                raise ValueError(
                    f"{name} is {value:g}, more than {limit_name} ({limit:g}); lower it, or raise "
                    f"BATCHMILL_{limit_name.upper()}"
                )
        return self

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        try:
            keys.queue_names(self.served_name)
        except ValueError as error:
            raise ValueError(f"{error}; set BATCHMILL_SERVED_MODEL_NAME") from None
        if self.session_timeout_s < 2 * self.heartbeat_interval_s:
            raise ValueError(
                f"session_timeout_s is {self.session_timeout_s:g}, but must be at least twice "
                f"heartbeat_interval_s ({self.heartbeat_interval_s:g}): raise the first, or lower "
                "the second"
            )
        if self.broker_min_replicas and self.broker_replica_timeout_s > self.lease_s / 3:
            raise ValueError(
                f"broker_replica_timeout_s is {self.broker_replica_timeout_s:g}, but may be at "
                f"most a third of lease_s ({self.lease_s:g}), so that leases are renewed in time: "
                "lower the first, or raise the second"
            )
        if self.payload_url is not None and self.payload_timeout_s > self.lease_s / 3:
            raise ValueError(
                f"payload_timeout_s is {self.payload_timeout_s:g}, but may be at most a third of "
                f"lease_s ({self.lease_s:g}), so that a job is not lost while its document is "
                "read: lower the first, or raise the second"
            )
        if self.stub and self.engine != "stub":
            raise ValueError(
                "stub is set, but engine is real: set BATCHMILL_ENGINE=stub, or unset "
                "BATCHMILL_STUB"
            )
        try:
            _ = self.engine_config
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return self

    @property
    def served_name(self) -> str:
        """Name by which jobs ask for the model."""
        return self.served_model_name or self.model

    @property
    def queues(self) -> tuple[str, ...]:
        """Queues that the worker consumes, highest priority first."""
        return keys.queue_names(self.served_name)

    @property
    def node_name(self) -> str:
        """Celery node name."""
        if self.worker_name is not None:
            return self.worker_name
        model = self.served_name.replace("/", "-").replace("@", "-")
        return f"{model}-{os.getpid()}@{socket.gethostname()}"

    @property
    def engine_config(self) -> EngineConfig:
        """Configuration of the engine.

        Raises:
            ConfigError: its values do not agree.
        """
        given = {name: getattr(self, name) for name in ENGINE_SETTINGS}
        given["watermark_keys"] = self.watermark_secrets
        return EngineConfig(model=self.model, **given)

    def engine_options(self) -> Mapping[str, Any]:
        """Return keyword arguments of the engine's configuration, without the model."""
        if self.engine == "stub":
            config = self.engine_config
            limits = {"max_num_seqs": config.max_num_seqs, "max_model_len": config.max_model_len}
            return limits | self.stub
        # The engine must have the numbers that this process counts with.
        config = self.engine_config
        options = {name: getattr(config, name) for name in ENGINE_SETTINGS}
        return options | {"watermark_keys": self.watermark_secrets}
