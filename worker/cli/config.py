"""`batchmill config show`: the settings in force, and where each comes from."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import typer

from batchmill.worker.terminal import print_json, print_table

from .options import JsonOption

if TYPE_CHECKING:
    from pydantic_settings import BaseSettings

_group = typer.Typer(help="Settings: show those in force.", no_args_is_help=True)
_PREFIX = "BATCHMILL_"
#: Read directly from the environment, not by the settings classes.
_OTHER_VARIABLES = {"BATCHMILL_CACHE_DIR", "BATCHMILL_RUNTIME_DIR", "BATCHMILL_STATE_DIR"}


def add_config_commands(app: typer.Typer) -> None:
    """Add `config show`."""
    app.add_typer(_group, name="config")


@_group.command(
    "show",
    epilog="Examples:\n\n  batchmill config show\n\n"
    "  batchmill config show --json | jq '.settings[] | select(.source != \"default\")'",
)
def show_settings(as_json: JsonOption = False) -> None:
    """Show every setting with its value and source; secrets and passwords are masked.

    The exit code is 8 if a setting is invalid.
    """
    # Imported here: `batchmill --help` must not wait for pydantic.
    from batchmill.worker.settings import WorkerSettings
    from batchmill.worker.webhooks.settings import WebhookSettings

    settings = _entries(WorkerSettings) + _entries(WebhookSettings)
    unique = list({entry["name"]: entry for entry in settings}.values())
    unknown = _unknown_variables({entry["variable"] for entry in unique})
    if as_json:
        print_json({"settings": unique, "unknown_variables": unknown})
        return
    rows = ((e["variable"], _cell(e["value"]), e["source"], e["meaning"]) for e in unique)
    print_table("Settings", ("variable", "value", "source", "meaning"), rows)
    for name in unknown:
        print(
            f"{name} is set but is not a setting of this version: check the name for typing errors"
        )


def _entries(cls: type[BaseSettings]) -> list[dict[str, Any]]:
    """Return each field of a settings class, with the value in force."""
    from .setting_docs import setting_docs
    from .setting_flags import is_secret

    values, docs = cls(), setting_docs(cls)
    entries = []
    for name, field in cls.model_fields.items():
        variable = _PREFIX + name.upper()
        entries.append(
            {
                "name": name,
                "variable": variable,
                "value": _masked(name, getattr(values, name), secret=is_secret(field)),
                "source": "environment" if variable in os.environ else "default",
                "meaning": docs.get(name, ""),
            }
        )
    return entries


def _masked(name: str, value: Any, *, secret: bool) -> Any:
    from batchmill.producer.broker_url import redact

    if value and secret:
        return "***"
    return redact(value) if name == "broker_url" and value else value


def _unknown_variables(known: set[str]) -> list[str]:
    """Return variables with our prefix that are not settings: usually typing errors."""
    ours = {name for name in os.environ if name.startswith(_PREFIX)}
    return sorted(ours - known - _OTHER_VARIABLES)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return ",".join(f"{item:g}" for item in value)
    return str(value)
