"""Reads a model's generation_config.json: its end tokens, and how its makers sample."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from batchmill.engine.errors import ModelLoadError, RequestError
from batchmill.engine.request.sampling_params import SamplingParams

from .config_check import read_object

_FILE: Final = "generation_config.json"
#: Controls whose defaults a model may set; the same as in vLLM, but for the length. `do_sample` is
#: not one of them: it is false in most files because their makers left it out.
_CONTROLS: Final = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def read_generation_config(folder: Path) -> dict[str, Any]:
    """Return the content of generation_config.json; empty if a model has none.

    Raises:
        ModelLoadError: the file is broken.
    """
    path = folder / _FILE
    if not path.is_file():
        return {}
    return read_object(path, "it names tokens that end an output")


def sampling_defaults(folder: Path) -> Mapping[str, Any]:
    """Return the sampling controls that a model's generation_config.json sets, and their values.

    Raises:
        ModelLoadError: a value is out of range.
    """
    content = read_generation_config(folder)
    found = {name: content[name] for name in _CONTROLS if content.get(name) is not None}
    try:
        SamplingParams(**found)
    except RequestError as error:
        raise ModelLoadError(
            f"{_FILE} of {folder} sets a default that cannot be used ({error.message}): correct it"
        ) from error
    return found
