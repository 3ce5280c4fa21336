"""What the code really offers: settings and commands. Tests of pages and images compare with it."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from batchmill.worker.cli import app

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("engine", "kernels", "producer", "worker")

#: Read from the environment by code that must not need a settings class (the light client).
PLAIN_VARIABLES = {"BATCHMILL_BROKER_URL", "BATCHMILL_RUNTIME_DIR"}


def setting_fields() -> dict[str, FieldInfo]:
    """Every environment variable that a settings class reads, with its field."""
    fields: dict[str, FieldInfo] = {}
    for path in sorted([*(ROOT / "producer").glob("*.py"), *(ROOT / "worker").glob("*.py")]):
        if "BaseSettings" not in path.read_text():
            continue
        module = importlib.import_module(f"batchmill.{path.parent.name}.{path.stem}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, BaseSettings):
                prefix = value.model_config.get("env_prefix", "")
                for name, field in value.model_fields.items():
                    known = fields.setdefault((prefix + name).upper(), field)
                    # One variable, read in two places, must mean the same in both.
                    assert known.default == field.default, f"{name} has two defaults"
    return fields


def variable_names() -> set[str]:
    """Every BATCHMILL_* environment variable that means something."""
    return PLAIN_VARIABLES | set(setting_fields())


def named_variables(text: str) -> set[str]:
    """Every BATCHMILL_* variable that a page or file names; a bare prefix (BATCHMILL_*) is none."""
    return set(re.findall(r"\bBATCHMILL_[A-Z0-9_]*[A-Z0-9]\b(?!_?\*)", text))


@dataclass(frozen=True, slots=True)
class Invocation:
    """One `batchmill …` call as written somewhere."""

    words: tuple[str, ...]

    def problem(self) -> str | None:
        """Why this call cannot work as written, or None: unknown command, group or option."""
        command: Any = typer.main.get_command(app)
        words = list(self.words)
        while hasattr(command, "commands") and words and not words[0].startswith("-"):
            word = words.pop(0)
            if word not in command.commands:
                return f"no command {word!r} in {sorted(command.commands)}"
            command = command.commands[word]
        known = {name for param in command.params for name in param.opts + param.secondary_opts}
        named = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        unknown = named - known - {"--help"}
        return f"{command.name} has no option {sorted(unknown)}" if unknown else None
