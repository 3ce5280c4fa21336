"""The identity of a LoRA adapter: a digest of its configuration and its weights."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from batchmill.engine.errors import AdapterError
from batchmill.engine.loading.file_hash import file_hash

from .peft_config import SOURCE_FIELDS, load_config_file

WEIGHTS_FILE = "adapter_model.safetensors"
_PICKLE = "adapter_model.bin"
_DIGEST = re.compile(r"[0-9a-f]{32}")


def is_digest(text: str) -> bool:
    """Return whether a text is a digest by its form. Such a text cannot lead out of a folder."""
    return _DIGEST.fullmatch(text) is not None


def adapter_digest(folder: Path) -> str:
    """Hash what decides an adapter's contribution: not its name, its path or its base's name.

    Two folders with one digest are one adapter. A folder whose weights are trained further gets
    another one, so nothing that was computed with the old weights is taken for the new ones'.

    Returns:
        32 hex digits.

    Raises:
        AdapterError: the folder has no adapter that can be read.
    """
    config = {
        name: value
        for name, value in load_config_file(folder).items()
        if name not in SOURCE_FIELDS and value is not None
    }
    for name in ("target_modules", "exclude_modules"):
        if isinstance(config.get(name), list):
            config[name] = sorted(map(str, config[name]))  # PEFT writes a set, in any order
    parts = [json.dumps(config, sort_keys=True), file_hash(weights_file(folder))]
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()


def weights_file(folder: Path) -> Path:
    """Return the file with an adapter's weights.

    Raises:
        AdapterError: it does not exist; a pickled file is not read, because it can run code.
    """
    path = folder / WEIGHTS_FILE
    if path.is_file():
        return path
    if (folder / _PICKLE).is_file():
        raise AdapterError(
            f"it has {_PICKLE}, which is pickled and could run code: save it as safetensors "
            "(save_pretrained with safe_serialization=True)"
        )
    raise AdapterError(f"it has no {WEIGHTS_FILE}: give a folder that PEFT has saved")
