"""The settings and commands that the code really has, which pages and images are compared with."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from batchmill.producer.secrets_from_files import FILE_SUFFIX
from batchmill.producer.webhook.target_settings import holds_secret
from batchmill.worker.cli.setting_docs import format_items, setting_docs

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("engine", "kernels", "producer", "worker")


@dataclass(frozen=True, slots=True)
class Setting:
    """One environment variable that a settings class reads."""

    field: FieldInfo
    #: The comment above the field.
    meaning: str

    @property
    def written_default(self) -> str:
        """The default as a user types it into the environment, in Markdown; - if there is none."""
        value = self.field.get_default(call_default_factory=True)
        if value in (None, "", (), {}):
            return "-"
        if isinstance(value, bool):
            return f"`{str(value).lower()}`"
        if isinstance(value, tuple):
            return f"`{format_items(value)}`"
        return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"

    def row(self, variable: str) -> str:
        """Return the setting as a row of a table on the configuration page."""
        meaning = self.meaning.replace("<", r"\<").replace("|", r"\|")
        return f"| `{variable}` | {self.written_default} | {meaning} |"


def settings() -> dict[str, Setting]:
    """Return every setting by its variable; derived classes replace the fields they redefine."""
    found: dict[str, Setting] = {}
    for owner in settings_classes():
        docs = setting_docs(owner)
        for name, field in owner.model_fields.items():
            found["BATCHMILL_" + name.upper()] = Setting(field, docs[name])
    return found


def settings_classes() -> list[type[BaseSettings]]:
    """Return every settings class, bases before derived classes."""
    classes: set[type[BaseSettings]] = set()
    for path in [*(ROOT / "producer").rglob("*.py"), *(ROOT / "worker").rglob("*.py")]:
        if "_settings import " in path.read_text() or path.name == "settings.py":
            dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            module = importlib.import_module(f"batchmill.{dotted}")
            classes |= {
                value
                for value in vars(module).values()
                if isinstance(value, type)
                and issubclass(value, BaseSettings)
                and value.__module__ == module.__name__
            }
    return sorted(classes, key=lambda owner: (len(owner.__mro__), owner.__name__))


def plain_variables() -> set[str]:
    """Return the variables that are read without a settings class, by code that imports little."""
    sources = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    read = re.compile(r'environ\.get\("(BATCHMILL_\w+)"')
    return {name for path in sources for name in read.findall(path.read_text())} - set(settings())


@cache
def variable_names() -> frozenset[str]:
    """Return every BATCHMILL_* environment variable that the code reads."""
    secrets = {name for name, setting in settings().items() if holds_secret(setting.field)}
    files = {name + FILE_SUFFIX for name in secrets}
    build = set(re.findall(r'environ\.get\("(BATCHMILL_\w+)"', (ROOT / "setup.py").read_text()))
    return frozenset(plain_variables() | set(settings()) | files | build)


def named_variables(text: str) -> set[str]:
    """Return every BATCHMILL_* variable that a text names, without bare prefixes (BATCHMILL_*)."""
    return set(re.findall(r"\bBATCHMILL_[A-Z0-9_]*[A-Z0-9]\b(?!_?[*<])", text))


# argv contains the names of these commands because each builds the flags of its settings only if it
# is called, so that the other commands start fast.
_PRINT_COMMANDS = """
import json, sys
sys.argv += ["demo", "up", "worker", "deliver", "gateway", "metrics"]
import typer
from batchmill.worker.cli.main import app

def describe(command):
    options = [name for param in command.params for name in param.opts + param.secondary_opts]
    commands = getattr(command, "commands", {})
    return {"options": options, "commands": {name: describe(c) for name, c in commands.items()}}

print(json.dumps(describe(typer.main.get_command(app))))
"""


@cache
def commands() -> dict[str, Any]:
    """Return the command line: the options and subcommands of each command."""
    done = subprocess.run([sys.executable, "-c", _PRINT_COMMANDS], capture_output=True, check=True)
    tree: dict[str, Any] = json.loads(done.stdout)
    return tree


def problem_of_call(words: Sequence[str]) -> str | None:
    """Return why `batchmill WORDS…` fails (unknown command or option), or None if it works."""
    command, name, rest = commands(), "batchmill", list(words)
    while command["commands"] and rest and not rest[0].startswith("-"):
        name = rest.pop(0)
        if name not in command["commands"]:
            return f"unknown command {name!r}; there are {sorted(command['commands'])}"
        command = command["commands"][name]
    named = {word.split("=")[0] for word in rest if re.match(r"--?[a-z]", word)}
    unknown = named - set(command["options"]) - {"--help", "-h"}
    return f"{name} does not have the options {sorted(unknown)}" if unknown else None
