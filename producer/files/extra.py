"""Libraries of the extra `files`, imported when a file needs them."""

from __future__ import annotations

import importlib
from typing import Any

from batchmill.producer.errors import BulkFileError
from batchmill.producer.install_hint import install_command


def import_library(name: str, purpose: str) -> Any:
    """Return a module of the extra `files`.

    Args:
        name: of the module.
        purpose: the thing that needs it, such as "a Parquet file".

    Raises:
        BulkFileError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise BulkFileError(
            f"{purpose} needs {error.name}, which is not installed: {install_command('files')}"
        ) from None
