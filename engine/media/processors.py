"""Reads what transformers keeps beside a model: how pictures or sounds become a tower's input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from batchmill.engine.errors import ModelLoadError


def load_processor(auto_class: Any, folder: Path, what: str, needs: str, **options: Any) -> Any:
    """Read the settings of a model's processor. No code of the model's is run.

    Args:
        auto_class: One of transformers' `Auto…` classes.
        folder: The model's files.
        what: What is read, for the message: `an image processor`.
        needs: What the folder, and this install, must have.
        options: More arguments of `from_pretrained`.

    Raises:
        ModelLoadError: they are missing or broken.
    """
    try:
        return auto_class.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **options
        )
    except Exception as error:  # each class raises what it likes
        raise ModelLoadError(
            f"transformers cannot read {what} from {folder} "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]}): it must hold {needs}"
        ) from error
