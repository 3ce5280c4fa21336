"""The operator's object store: `BATCHMILL_PAYLOAD_URL`, from when on it is used, and its time."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from batchmill.producer.errors import PayloadsUnavailable

from .object_store import VARIABLE, ObjectStore


class PayloadSettings(BaseSettings):
    """Where large payloads go."""

    # As in `TargetSettings`: of several bases with a setting each, the last one counts.
    model_config = SettingsConfigDict(env_ignore_empty=True)

    #: fsspec URL or folder, the same for all programs, that holds prompts and results which are too
    #: large for Redis (docs/payloads.md). None keeps all in Redis.
    payload_url: str | None = Field(default=None, repr=False)  # it may hold a password
    #: A job's document or result with more bytes than this goes there.
    payload_threshold_bytes: int = Field(default=65_536, ge=256)
    #: Seconds that one object may take to be written or read; for a worker at most a third of
    #: `lease_s`.
    payload_timeout_s: float = Field(default=5.0, gt=0, allow_inf_nan=False)

    @property
    def object_store(self) -> ObjectStore | None:
        """The store; None if it is not set.

        Raises:
            PayloadsUnavailable: the URL cannot be used.
        """
        if self.payload_url is None:
            return None
        return _store(self.payload_url, self.payload_threshold_bytes, self.payload_timeout_s)


class _OwnSettings(PayloadSettings):
    model_config = SettingsConfigDict(env_prefix="BATCHMILL_", hide_input_in_errors=True)


def find_object_store(environ: Mapping[str, str] = os.environ) -> ObjectStore | None:
    """Return the store of the environment; None if it is not set.

    Raises:
        PayloadsUnavailable: a setting is malformed, or the URL cannot be used.
    """
    if not environ.get(VARIABLE):
        return None
    names = {name: f"BATCHMILL_{name.upper()}" for name in PayloadSettings.model_fields}
    given = {name: environ[variable] for name, variable in names.items() if environ.get(variable)}
    try:
        return _OwnSettings.model_validate(given).object_store
    except ValidationError as error:
        raise PayloadsUnavailable(f"the settings of {VARIABLE} are invalid: {error}") from None


@lru_cache(maxsize=8)
def _store(url: str, threshold_bytes: int, timeout_s: float) -> ObjectStore:
    return ObjectStore(url, threshold_bytes=threshold_bytes, timeout_s=timeout_s)
