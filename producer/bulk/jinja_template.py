"""`JinjaTemplate`: a template with conditions and loops, filled in Jinja's sandbox."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from batchmill.producer.errors import BulkFileError
from batchmill.producer.files.extra import import_library


class JinjaTemplate:
    """Fills a Jinja template from a row. Columns are variables; `row` holds all of them.

    An unknown variable is an error, not an empty text. The sandbox has no way to the machine.
    """

    def __init__(self, text: str) -> None:
        """Parse a template.

        Raises:
            BulkFileError: Jinja is not installed, or the template is not valid.
        """
        purpose = "a template with {% … %} or --jinja"
        jinja = import_library("jinja2", purpose)
        sandbox = import_library("jinja2.sandbox", purpose).ImmutableSandboxedEnvironment
        self._error: type[Exception] = jinja.TemplateError
        environment = sandbox(undefined=jinja.StrictUndefined, finalize=_shown)
        try:
            tree = environment.parse(text)
            self._template = environment.from_string(text)
        except jinja.TemplateSyntaxError as error:
            raise BulkFileError(
                f"the template is invalid: line {error.lineno}: {error.message}"
            ) from None
        names = import_library("jinja2.meta", purpose).find_undeclared_variables(tree)
        self._columns = sorted(names - {"row"} - environment.globals.keys())

    @property
    def columns(self) -> list[str]:
        """The columns that it uses by name, each once."""
        return self._columns

    def fill(self, row: Mapping[str, Any]) -> str:
        """Return the prompt for a row.

        Raises:
            ValueError: the row lacks a column, or the template fails on a value.
        """
        try:
            text: str = self._template.render({**row, "row": row})
        except self._error as error:
            raise ValueError(f"the template cannot be filled: {error}") from None
        except Exception as error:  # whatever a filter raises; its text may hold a value
            raise ValueError(f"the template cannot be filled: {type(error).__name__}") from None
        return text


def _shown(value: Any) -> Any:
    """Return a value as the template shows it: JSON's words for what is neither text nor number."""
    if value is None or isinstance(value, bool | list | dict):
        return json.dumps(value, ensure_ascii=False)
    return value
