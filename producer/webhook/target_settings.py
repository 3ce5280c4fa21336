"""Settings of the allowed webhook targets, the same for producers and deliverers."""

from __future__ import annotations

import re
from ipaddress import ip_network
from typing import Annotated, Any

from pydantic import field_validator
from pydantic_settings import BaseSettings, NoDecode

from .target import TargetPolicy

_PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")


class TargetSettings(BaseSettings):
    """Targets that the operator allows besides https to public addresses."""

    #: Accept `http://` webhooks, for receivers on the same machine or network.
    webhook_allow_http: bool = False
    #: Ports besides 443 and 80, and ranges of ports, such as `8443,9000-9100`.
    webhook_allow_ports: Annotated[tuple[str, ...], NoDecode] = ()
    #: Networks that webhooks may go to although they are not public, such as `10.1.0.0/16`.
    webhook_allow_networks: Annotated[tuple[str, ...], NoDecode] = ()

    @field_validator("webhook_allow_ports", "webhook_allow_networks", mode="before")
    @classmethod
    def _split_list(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return tuple(part.strip() for part in value.split(",") if part.strip())

    @field_validator("webhook_allow_ports")
    @classmethod
    def _check_ports(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for part in value:
            first, last = _port_range(part)
            if not 1 <= first <= last <= 65535:
                raise ValueError(f"{part!r} must be a port or a range of ports from 1 to 65535")
        return value

    @field_validator("webhook_allow_networks")
    @classmethod
    def _check_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for part in value:
            try:
                ip_network(part)
            except ValueError as error:
                raise ValueError(f"{error}; write it as 10.1.0.0/16") from None
        return value

    @property
    def target_policy(self) -> TargetPolicy:
        """The three settings as the checks need them."""
        return TargetPolicy(
            allow_http=self.webhook_allow_http,
            ports=tuple(_port_range(part) for part in self.webhook_allow_ports),
            networks=tuple(ip_network(part) for part in self.webhook_allow_networks),
        )


def _port_range(text: str) -> tuple[int, int]:
    match = _PORTS.fullmatch(text)
    if match is None:
        return 0, 0
    return int(match[1]), int(match[2] or match[1])
