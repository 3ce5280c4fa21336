"""Settings of the gateway, from `BATCHMILL_GATEWAY_*` variables and those of a producer."""

from __future__ import annotations

import ipaddress

from pydantic import Field, SecretStr

from batchmill.producer.settings import MAX_RESULT_TTL_S, ProducerSettings
from batchmill.worker.log_settings import LogSettings
from batchmill.worker.metrics.settings import MetricsSettings

_MIB = 1 << 20


class GatewaySettings(ProducerSettings, MetricsSettings, LogSettings):
    """How the gateway listens, and its limits. Each field is `BATCHMILL_<NAME>` in upper case."""

    #: Address to listen on. Any other than this machine's own needs an API key.
    gateway_host: str = "127.0.0.1"
    #: Port to listen on.
    gateway_port: int = Field(default=8000, ge=0, le=65535)
    #: API key that the gateway stores when it starts, with all rights and the default tenant:
    #: `sk-bm-` and random characters, 40 in all or more. `batchmill keys` makes and revokes others.
    gateway_api_key: SecretStr | None = None
    #: Most bytes of a request's JSON body.
    gateway_max_body_bytes: int = Field(default=32 * _MIB, ge=1024)
    #: Most bytes of a request's headers.
    gateway_max_header_bytes: int = Field(default=64 << 10, ge=1024, le=_MIB)
    #: Seconds that a client may take to send the headers of a request.
    gateway_header_timeout_s: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    #: Seconds that a client may let the gateway wait for the body of a request, and one more for
    #: each 16 KiB of it.
    gateway_body_timeout_s: float = Field(default=30.0, gt=0, allow_inf_nan=False)
    #: Seconds after which a client that does not read its response is cut off.
    gateway_write_timeout_s: float = Field(default=30.0, gt=0, allow_inf_nan=False)
    #: Seconds that an unused connection is kept for the next request.
    gateway_keep_alive_s: int = Field(default=75, ge=1)
    #: Most connections at a time; further requests get the status 503.
    gateway_max_connections: int = Field(default=2000, ge=1)
    #: Longest time in seconds that a request waits for its job. The job then continues.
    gateway_wait_timeout_s: float = Field(default=3600.0, gt=0, allow_inf_nan=False)
    #: Seconds between comments that keep a silent stream open.
    gateway_heartbeat_s: float = Field(default=15.0, gt=0, allow_inf_nan=False)

    #: Folder or fsspec URL (such as `s3://bucket/files`) of uploaded files, the same for all
    #: gateways; None is `files` in the state folder of this user.
    gateway_files_url: str | None = None
    #: Most bytes of an uploaded file.
    gateway_max_file_bytes: int = Field(default=200 * _MIB, ge=1)
    #: Most lines of a batch's file.
    gateway_max_file_lines: int = Field(default=50_000, ge=1)
    #: Seconds that a file is kept, unless its upload says for how long.
    gateway_file_ttl_s: int = Field(default=30 * 24 * 3600, ge=60, le=MAX_RESULT_TTL_S)

    #: Serve the console under `/console`.
    gateway_console: bool = True
    #: Seconds after which a sign-in to the console ends.
    gateway_console_session_s: int = Field(default=12 * 3600, ge=60, le=30 * 24 * 3600)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the gateway."""
        return is_loopback(self.gateway_host)


def is_loopback(host: str) -> bool:
    """Return whether a host name or address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
