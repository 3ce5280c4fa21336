"""Makes command line flags from the fields of settings classes."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from typing import Annotated, Any, get_args

import typer
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from batchmill.producer.secrets_from_files import FILE_SUFFIX
from batchmill.worker.unknown_settings import PREFIX

from .setting_docs import format_items, setting_docs


def add_setting_flags(
    command: Callable[..., int | None],
    *classes: type[BaseModel],
    hidden: frozenset[str] = frozenset(),
) -> Callable[..., int | None]:
    """Give a command a flag for each field of the classes.

    A flag takes the same values as the variable and overrides it: it is put into this process'
    environment before the command runs, so that the command and its children read settings in one
    way. Secrets get no flag, because every user of the machine can read a command line.

    Args:
        command: the command; its own parameter replaces the flag of the same name.
        classes: settings classes.
        hidden: fields that this command does not take.
    """
    own = inspect.signature(command, eval_str=True)
    flags = {
        name: _flag(name, field, docs.get(name, ""))
        for settings in classes
        for docs in (setting_docs(settings),)
        for name, field in settings.model_fields.items()
        if name not in own.parameters and name not in hidden and not is_secret(field)
    }

    @functools.wraps(command)
    def run(**given: Any) -> int | None:
        for name in flags:
            value = given.pop(name)
            if value is not None:
                os.environ[PREFIX + name.upper()] = value
                os.environ.pop(PREFIX + name.upper() + FILE_SUFFIX, None)
        return command(**given)

    parameters = [*own.parameters.values(), *flags.values()]
    run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {item.name: item.annotation for item in parameters}
    return run


def is_secret(field: FieldInfo) -> bool:
    """Return whether the value of a field must not be shown."""
    return SecretStr in (field.annotation, *get_args(field.annotation))


def _flag(name: str, field: FieldInfo, help_text: str) -> inspect.Parameter:
    default = field.get_default(call_default_factory=True)
    shown = "" if default in (None, {}, ()) else f" [{_shown(default)}]"
    option = typer.Option(
        f"--{name.replace('_', '-')}",
        metavar="VALUE",
        help=f"{help_text}{shown}".replace("[", r"\["),
        rich_help_panel=f"Settings (also {PREFIX}<NAME>)",
        show_default=False,
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[str | None, option],
    )


def _shown(default: Any) -> str:
    if isinstance(default, tuple):
        return format_items(default)
    return str(default).lower() if isinstance(default, bool) else str(default)
