"""The secrets that a deliverer signs with, which change when their file does."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

import structlog
from pydantic import ValidationError

from batchmill.producer.secrets_from_files import FILE_SUFFIX

from .settings import WebhookSettings

_log = structlog.get_logger(__name__)
_VARIABLES = ("BATCHMILL_WEBHOOK_SECRET", "BATCHMILL_WEBHOOK_SECRETS")
_CHECK_INTERVAL_S = 1.0


class SigningSecrets:
    """Secrets of the settings; those in files are read again when a file has changed.

    A file that cannot be used, because it is being written or is wrong, changes nothing: the
    secrets that were read last stay.
    """

    def __init__(self, settings: WebhookSettings, environ: Mapping[str, str] = os.environ) -> None:
        """Bind to settings that were just read from this environment."""
        self._settings = settings
        files = (environ.get(name + FILE_SUFFIX) for name in _VARIABLES)
        self._files = [file for file in files if file]
        self._versions = self._read_versions()
        self._next_check_s = 0.0

    def named(self, name: str) -> tuple[str, ...]:
        """Return the secrets of a name that are valid now; the empty name means the default."""
        now_s = time.monotonic()
        if self._files and now_s >= self._next_check_s:
            self._next_check_s = now_s + _CHECK_INTERVAL_S
            self._read_again()
        return self._settings.secrets_named(name)

    def _read_again(self) -> None:
        versions = self._read_versions()
        if versions == self._versions:
            return
        self._versions = versions
        try:
            self._settings = WebhookSettings()
        except ValidationError as error:
            messages = [str(item["msg"]) for item in error.errors(include_input=False)]
            _log.error("webhook_secrets_not_usable", reason="; ".join(messages))
        else:
            _log.info("webhook_secrets_changed", num_secrets=len(self._settings.secrets))

    def _read_versions(self) -> list[tuple[int, int, int] | None]:
        return [_version(file) for file in self._files]


def _version(file: str) -> tuple[int, int, int] | None:
    """Return what differs if a file was written or replaced; None if it is missing."""
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
