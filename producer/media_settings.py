"""Limits of pictures and sounds, and the servers that workers may fetch them from."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from batchmill.engine.contract.limits import MAX_MEDIA, MAX_MEDIA_BYTES
from batchmill.producer.webhook.target import TargetPolicy
from batchmill.producer.webhook.target_settings import (
    check_networks,
    check_ports,
    make_policy,
    split_list,
)


class MediaSettings(BaseSettings):
    """The same for clients, gateways and workers. Fetching has settings of its own.

    A webhook sends what the operator's job has made; a picture is read, and its content comes back
    in the output. So a network that may receive webhooks may not be read from by that alone.
    """

    # As in `TargetSettings`: of several bases with a setting each, the last one counts.
    model_config = SettingsConfigDict(env_ignore_empty=True)

    #: Most bytes of a picture or a sound, as it is sent or fetched.
    max_media_bytes: int = Field(default=20 * 1024 * 1024, ge=1, le=MAX_MEDIA_BYTES)
    #: Most pictures and sounds of a job.
    max_media_per_job: int = Field(default=16, ge=0, le=MAX_MEDIA)
    #: Seconds that a stored picture or sound is kept after it was stored, and after the end of each
    #: job that names it.
    media_ttl_s: int = Field(default=3600, ge=1, le=10 * 365 * 24 * 3600)
    #: Fetch pictures and sounds from `http://` URLs too, from servers on your own network.
    media_allow_http: bool = False
    #: Ports besides 443 and 80 that they may be fetched from, as for webhooks.
    media_allow_ports: Annotated[tuple[str, ...], NoDecode] = ()
    #: Networks that they may be fetched from although they are not public, such as `10.1.0.0/16`.
    media_allow_networks: Annotated[tuple[str, ...], NoDecode] = ()

    _split_media = field_validator("media_allow_ports", "media_allow_networks", mode="before")(
        split_list
    )
    _check_media_ports = field_validator("media_allow_ports")(check_ports)
    _check_media_networks = field_validator("media_allow_networks")(check_networks)

    @property
    def media_policy(self) -> TargetPolicy:
        """The servers that media may be fetched from, as the checks need them."""
        return make_policy(
            allow_http=self.media_allow_http,
            ports=self.media_allow_ports,
            networks=self.media_allow_networks,
            settings="BATCHMILL_MEDIA",
        )
