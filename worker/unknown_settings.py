"""Variables with our prefix that are not settings: usually typing errors."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass

#: Prefix of every variable that batchmill reads.
PREFIX = "BATCHMILL_"
#: Read directly from the environment, not by the settings classes.
_PLAIN = frozenset(
    {
        "BATCHMILL_CACHE_DIR",
        "BATCHMILL_DEBUG",
        "BATCHMILL_RUNTIME_DIR",
        "BATCHMILL_STATE_DIR",
    }
)
#: Needs no import of the settings classes, which takes 0.2 s.
_COMMON = _PLAIN | {"BATCHMILL_BROKER_URL", "BATCHMILL_BROKER_URL_FILE", "BATCHMILL_MODEL"}
#: How alike two names must be for one to be suggested, from 0 to 1.
_ALIKE = 0.8


@dataclass(frozen=True, slots=True)
class UnknownVariable:
    """A variable that is set and that no version of this program reads."""

    name: str
    #: The setting that was probably meant; None if none is alike.
    suggestion: str | None

    def describe(self) -> str:
        """Return a sentence about it."""
        meant = f"; did you mean {self.suggestion}?" if self.suggestion else ""
        return f"{self.name} is set but is not a setting of this version, and is ignored{meant}"


def find_unknown_variables(environ: Mapping[str, str] = os.environ) -> list[UnknownVariable]:
    """Return the variables with our prefix that nothing reads, in the order of their names."""
    given = {name for name in environ if name.startswith(PREFIX)} - _COMMON
    # Click's own, while it completes a command line.
    given -= {name for name in given if name.endswith("_COMPLETE")}
    if not given:
        return []
    known = _known_variables()
    return [UnknownVariable(name, _suggestion(name, known)) for name in sorted(given - known)]


def log_unknown_variables() -> None:
    """Log a warning for each unknown variable of this process."""
    import structlog  # here, because the command line uses this file without it

    log = structlog.stdlib.get_logger("batchmill.settings")
    for variable in find_unknown_variables():
        log.warning("unknown_setting", variable=variable.name, did_you_mean=variable.suggestion)


def _known_variables() -> set[str]:
    from batchmill.producer.bulk.settings import PriceSettings
    from batchmill.producer.secrets_from_files import FILE_SUFFIX
    from batchmill.producer.webhook.target_settings import holds_secret
    from batchmill.worker.gateway.settings import GatewaySettings
    from batchmill.worker.metrics.settings import ExporterSettings
    from batchmill.worker.settings import WorkerSettings
    from batchmill.worker.webhooks.settings import WebhookSettings

    known = set(_COMMON)
    classes = (WorkerSettings, WebhookSettings, GatewaySettings, ExporterSettings)
    for settings in (*classes, PriceSettings):
        for name, field in settings.model_fields.items():
            variable = PREFIX + name.upper()
            known.add(variable)
            if holds_secret(field):
                known.add(variable + FILE_SUFFIX)
    return known


def _suggestion(name: str, known: set[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name, sorted(known), 1, _ALIKE)), None)
