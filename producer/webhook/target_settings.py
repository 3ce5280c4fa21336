"""Settings of the allowed webhook targets, the same for producers and deliverers."""

from __future__ import annotations

import os
import re
from ipaddress import ip_network
from typing import Annotated, Any, get_args

from pydantic import SecretStr, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from batchmill.producer.secrets_from_files import find_secret

from .target import TargetPolicy

#: The word for a setting without a value; an empty variable counts as not set.
NO_VALUE = "none"
_PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")


def holds_secret(field: FieldInfo) -> bool:
    """Return whether the value of a setting is a secret, or may hold one."""
    return not field.repr or SecretStr in (field.annotation, *get_args(field.annotation))


def split_list(value: Any) -> Any:
    """Return the parts of a text with commas between them; another value unchanged."""
    if not isinstance(value, str):
        return value
    return tuple(part.strip() for part in value.split(",") if part.strip())


def check_ports(value: tuple[str, ...]) -> tuple[str, ...]:
    """Return ports and ranges of ports.

    Raises:
        ValueError: one of them is neither.
    """
    for part in value:
        first, last = _port_range(part)
        if not 1 <= first <= last <= 65535:
            raise ValueError(f"{part!r} must be a port or a range of ports from 1 to 65535")
    return value


def check_networks(value: tuple[str, ...]) -> tuple[str, ...]:
    """Return networks.

    Raises:
        ValueError: one of them is not a network.
    """
    for part in value:
        try:
            ip_network(part)
        except ValueError as error:
            raise ValueError(f"{error}; write it as 10.1.0.0/16") from None
    return value


def make_policy(
    *, allow_http: bool, ports: tuple[str, ...], networks: tuple[str, ...], settings: str
) -> TargetPolicy:
    """Return the policy of three checked settings, whose names begin with `settings`."""
    return TargetPolicy(
        allow_http=allow_http,
        ports=tuple(_port_range(part) for part in ports),
        networks=tuple(ip_network(part) for part in networks),
        settings=settings,
    )


class TargetSettings(BaseSettings):
    """Targets that the operator allows besides https to public addresses."""

    # Compose files and `.env` files pass a variable that nobody set as an empty one.
    model_config = SettingsConfigDict(env_ignore_empty=True)

    @model_validator(mode="before")
    @classmethod
    def _read_no_value(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Read the word `none` as None in settings that may be None."""
        return {
            name: None if _is_no_value(value) and _is_optional(cls, name) else value
            for name, value in values.items()
        }

    @model_validator(mode="before")
    @classmethod
    def _read_secret_files(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Take each secret that is not given from the file that its `_FILE` variable names."""
        for name, field in cls.model_fields.items():
            variable = f"{cls.model_config.get('env_prefix', '')}{name}".upper()
            if not holds_secret(field) or (name in values and not os.environ.get(variable)):
                continue
            if (secret := find_secret(variable)) is not None:
                values = {name: secret, **values}
        return values

    #: Accept `http://` webhooks, for receivers on the same machine or network.
    webhook_allow_http: bool = False
    #: Ports besides 443 and 80, and ranges of ports, such as `8443,9000-9100`.
    webhook_allow_ports: Annotated[tuple[str, ...], NoDecode] = ()
    #: Networks that webhooks may go to although they are not public, such as `10.1.0.0/16`.
    webhook_allow_networks: Annotated[tuple[str, ...], NoDecode] = ()

    _split = field_validator("webhook_allow_ports", "webhook_allow_networks", mode="before")(
        split_list
    )
    _check_ports = field_validator("webhook_allow_ports")(check_ports)
    _check_networks = field_validator("webhook_allow_networks")(check_networks)

    @property
    def target_policy(self) -> TargetPolicy:
        """The three settings as the checks need them."""
        return make_policy(
            allow_http=self.webhook_allow_http,
            ports=self.webhook_allow_ports,
            networks=self.webhook_allow_networks,
            settings="BATCHMILL_WEBHOOK",
        )


def _is_no_value(value: object) -> bool:
    return isinstance(value, str) and value.strip().lower() == NO_VALUE


def _is_optional(settings: type[BaseSettings], name: str) -> bool:
    field = settings.model_fields.get(name)
    return field is not None and type(None) in get_args(field.annotation)


def _port_range(text: str) -> tuple[int, int]:
    match = _PORTS.fullmatch(text)
    if match is None:
        return 0, 0
    return int(match[1]), int(match[2] or match[1])
