"""Secrets from the environment, or from files that it names, as containers mount them.

For every secret setting `BATCHMILL_<NAME>` there is a variable `BATCHMILL_<NAME>_FILE`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

FILE_SUFFIX = "_FILE"


def find_secret(variable: str, environ: Mapping[str, str] = os.environ) -> str | None:
    """Return the value of a variable, or the content of the file that its `_FILE` variable names.

    White space around the content is dropped: editors and `echo` end a file with a line break.

    Raises:
        ValueError: both variables are set, or the file is empty or cannot be read.
    """
    value, path = environ.get(variable), environ.get(variable + FILE_SUFFIX)
    value = value or None  # an empty variable counts as not set
    if not path:
        return value
    if value:
        raise ValueError(f"{variable} and {variable}{FILE_SUFFIX} are both set: unset one of them")
    try:
        content = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ValueError(
            f"{variable}{FILE_SUFFIX} names {path}, which cannot be read: {reason}"
        ) from None
    if not content:
        raise ValueError(f"{variable}{FILE_SUFFIX} names {path}, which is empty")
    return content


def without_file(variables: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """Return an environment with variables set in it, instead of their `_FILE` variables."""
    replaced = {name + FILE_SUFFIX for name in variables}
    return {name: value for name, value in environ.items() if name not in replaced} | {**variables}
