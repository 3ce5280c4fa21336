"""Settings of a worker. Only this file reads the worker's `BATCHMILL_*` variables."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, get_type_hints

from pydantic import Field, ValidationInfo, create_model, field_validator, model_validator

from batchmill.engine import ConfigError, EngineConfig
from batchmill.producer.protocol import keys
from batchmill.producer.settings import ProducerSettings

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

    found: dict[str, Any] = {
        field.name: (types[field.name], field.default)
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


class WorkerSettings(EngineSettings):
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

    #: Seconds after which the jobs of a silent worker go to another worker. A step may take longer:
    #: leases are renewed until `engine_stall_s` is over.
    lease_s: float = Field(default=15.0, ge=0.5)
    #: Seconds that the engine's loop may stand still before the engine is killed and replaced.
    engine_stall_s: float = Field(default=60.0, gt=0)
    #: Unsaved tokens of one job that make a checkpoint of all running jobs due.
    checkpoint_tokens: int = Field(default=8, ge=1)
    #: Longest time in seconds that a token stays unsaved.
    checkpoint_interval_s: float = Field(default=0.25, gt=0)
    #: Unsaved tokens of all running jobs at which generation pauses while Redis is unreachable.
    max_backlog_tokens: int = Field(default=262_144, ge=1)
    #: Most bytes of a result; a job with a longer one fails as `result_too_large`. Keep it below
    #: what Redis takes in one piece (`proto-max-bulk-len`, 512 MiB unless changed).
    max_result_bytes: int = Field(default=134_217_728, ge=1024)
    #: Seconds that an orderly shutdown may take. Let the process supervisor wait a few more.
    drain_timeout_s: float = Field(default=20.0, gt=0)
    #: Seconds between two sweeps for expired leases and lost announcements.
    sweep_interval_s: float = Field(default=2.0, gt=0)
    #: Seconds after which a waiting job without an announcement is announced again.
    reannounce_grace_s: float = Field(default=30.0, ge=0)
    #: Seconds between two heartbeats.
    heartbeat_interval_s: float = Field(default=5.0, gt=0, lt=keys.WORKER_TTL_S)
    #: Threads that report the ends of jobs to Celery.
    finisher_threads: int = Field(default=2, ge=1)

    #: Celery node name, which must be unique on one Redis. None builds it from model, pid and host.
    worker_name: str | None = None
    #: Lowest level of log lines that are written.
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    #: Format of log lines; "auto" is text on a terminal and JSON elsewhere.
    log_format: Literal["auto", "json", "text"] = "auto"

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        try:
            keys.queue_names(self.served_name)
        except ValueError as error:
            raise ValueError(f"{error}; set BATCHMILL_SERVED_MODEL_NAME") from None
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
        return EngineConfig(
            model=self.model, **{name: getattr(self, name) for name in ENGINE_SETTINGS}
        )

    def engine_options(self) -> Mapping[str, Any]:
        """Return keyword arguments of the engine's configuration, without the model."""
        if self.engine == "stub":
            config = self.engine_config
            limits = {"max_num_seqs": config.max_num_seqs, "max_model_len": config.max_model_len}
            return limits | self.stub
        return {name: getattr(self, name) for name in ENGINE_SETTINGS}
