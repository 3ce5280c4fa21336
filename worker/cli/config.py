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
    from batchmill.producer.bulk.settings import PriceSettings
    from batchmill.worker.gateway.settings import GatewaySettings
    from batchmill.worker.metrics.settings import ExporterSettings
    from batchmill.worker.settings import WorkerSettings
    from batchmill.worker.unknown_settings import find_unknown_variables
    from batchmill.worker.webhooks.settings import WebhookSettings

    classes = (
        *(WorkerSettings, WebhookSettings, GatewaySettings, ExporterSettings),
        PriceSettings,
    )
    settings = [entry for cls in classes for entry in _entries(cls)]
    unique = list({entry["name"]: entry for entry in settings}.values())
    unknown = find_unknown_variables()
    if as_json:
        names = [variable.name for variable in unknown]
        print_json({"settings": unique, "unknown_variables": names})
        return
    rows = ((e["variable"], _cell(e["value"]), e["source"], e["meaning"]) for e in unique)
    columns = ("variable", "value", "source", "meaning")
    print_table("Settings", columns, rows, has_sentences=True)
    for variable in unknown:
        print(variable.describe())


def _entries(cls: type[BaseSettings]) -> list[dict[str, Any]]:
    """Return each field of a settings class, with the value in force."""
    from batchmill.worker.unknown_settings import PREFIX

    from .setting_docs import setting_docs
    from .setting_flags import is_secret

    values, docs = cls(), setting_docs(cls)
    entries = []
    for name, field in cls.model_fields.items():
        variable = PREFIX + name.upper()
        entries.append(
            {
                "name": name,
                "variable": variable,
                "value": _masked(name, getattr(values, name), secret=is_secret(field)),
                "source": _source(variable),
                "meaning": docs.get(name, ""),
            }
        )
    return entries


def _source(variable: str) -> str:
    from batchmill.producer.secrets_from_files import FILE_SUFFIX

    if os.environ.get(variable):
        return "environment"
    return "file" if os.environ.get(variable + FILE_SUFFIX) else "default"


def _masked(name: str, value: Any, *, secret: bool) -> Any:
    from batchmill.producer.broker_url import redact

    if value and secret:
        return "***"
    return redact(value) if name == "broker_url" and value else value


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, tuple):
        from .setting_docs import format_items

        return format_items(value)
    return str(value)
