"""Settings of the producer side, from ``BATCHMILL_*`` variables."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from . import keys


def _served_name(name: str) -> str:
    keys.queue_name(name, "normal")
    return name


class ProducerSettings(BaseSettings):
    """What a client needs. Each field is ``BATCHMILL_<NAME>`` in upper case."""

    model_config = SettingsConfigDict(
        env_prefix="BATCHMILL_", extra="forbid", frozen=True, hide_input_in_errors=True
    )

    #: ``redis://``, ``rediss://``, ``unix://`` or ``redis+socket://``; None finds the embedded
    #: broker of this user. May hold a password, so it is left out of ``repr``.
    broker_url: str | None = Field(default=None, repr=False)
    #: Served name that a job takes which names none.
    model: Annotated[str, AfterValidator(_served_name)] = "demo"
    #: Seconds that a job's record, tokens and idempotency key are kept after its end. Five days:
    #: longer than the last attempt to deliver its webhook (76 hours) and a day to fetch the result.
    result_ttl_s: int = Field(default=432_000, ge=1)
    #: Jobs that a queue may hold before it refuses more; None leaves it to Redis' memory limit.
    max_queue_depth: int | None = Field(default=None, ge=1)
    #: Accept ``http://`` webhooks, for receivers on the same machine or network.
    webhook_allow_http: bool = False
