"""The groups in which `batchmill --help` lists the commands."""

from __future__ import annotations

import typer

#: Heading to names of commands, both in the order of the help.
_PANELS = {
    "Start here": ("demo", "up", "doctor"),
    "Jobs": (
        *("submit", "decide", "embed", "rerank", "result", "explain", "stream"),
        *("status", "progress", "list", "cancel", "retry", "forget"),
    ),
    "Files and batches of jobs": ("bulk", "batch"),
    "Webhooks": ("webhooks", "webhook-secret"),
    "Run services": ("worker", "deliver", "gateway", "flower", "metrics", "healthcheck", "config"),
    "Operate": (
        *("top", "pause", "resume", "tenants", "keys", "encryption", "usage"),
        *("watermark", "lora", "steering", "dead-letters", "payloads", "shards"),
    ),
    "Measure and test": ("bench",),
}


def arrange_in_panels(app: typer.Typer) -> None:
    """Give every command of an app its heading, and put the commands in the order of the help."""
    headings = {name: heading for heading, names in _PANELS.items() for name in names}
    place = {name: at for at, name in enumerate(headings)}
    for command in app.registered_commands:
        command.rich_help_panel = headings.get(str(command.name), command.rich_help_panel)
    for group in app.registered_groups:
        group.rich_help_panel = headings.get(str(group.name), group.rich_help_panel)
    app.registered_commands.sort(key=lambda command: place.get(str(command.name), len(place)))
    app.registered_groups.sort(key=lambda group: place.get(str(group.name), len(place)))
