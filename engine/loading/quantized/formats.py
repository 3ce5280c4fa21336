"""The formats of quantized weights that are read, by the name that config.json has for them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, cast

from batchmill.engine.errors import UnsupportedModelError
from batchmill.engine.loading.config_check import read_object

from .auto_round import auto_round
from .awq import Awq
from .bitsandbytes import BitsAndBytes
from .compressed_tensors import CompressedTensors
from .fp8 import Fp8
from .gptq import Gptq
from .modelopt import ModelOpt
from .mxfp4 import Mxfp4
from .scheme import OTHER_WEIGHTS, Scheme, Settings

#: By `quant_method`.
FORMATS: Final[Mapping[str, Callable[[Settings], Scheme]]] = {
    "auto-round": auto_round,
    "awq": Awq,
    "bitsandbytes": BitsAndBytes,
    "compressed-tensors": CompressedTensors,
    "fbgemm_fp8": Fp8,
    "fp8": Fp8,
    "gptq": Gptq,
    "intel/auto-round": auto_round,
    "modelopt": ModelOpt,
    "modelopt_fp4": ModelOpt,
    "mxfp4": Mxfp4,
}
#: Files with settings that packages wrote before config.json had a place for them, and their
#: `quant_method`.
_FILES: Final = {
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
    "hf_quant_config.json": "modelopt",
}
#: Part of a model's identity: raised when unpacked weights change.
_UNPACKING_VERSION: Final = 1


def quantization_settings(folder: Path, config: Mapping[str, Any]) -> Settings | None:
    """Return the settings of a model's quantized weights; None if they are dense.

    Args:
        folder: The model's files.
        config: A complete Hugging Face configuration, `PreTrainedConfig.to_dict()`.

    Raises:
        ModelLoadError: a file with settings is broken.
    """
    stored = config.get("quantization_config") or config.get("compression_config")
    if stored:
        return cast("Settings", stored)
    for name, method in _FILES.items():
        path = folder / name
        if path.is_file():
            values = read_object(path, "it describes quantized weights")
            return {"quant_method": method, **(values.get("quantization") or values)}
    return None


def read_scheme(settings: Settings) -> Scheme:
    """Return the format that settings describe.

    Raises:
        UnsupportedModelError: the format, or one of its settings, is not read.
        ModelLoadError: the settings are broken.
    """
    method = settings.get("quant_method")
    make = FORMATS.get(str(method))
    if make is None:
        raise UnsupportedModelError(
            f"this model's weights are quantized, with quant_method {method!r}; only "
            f"{', '.join(sorted(FORMATS))} are read: {OTHER_WEIGHTS}"
        )
    return make(settings)


def scheme_identity(settings: Settings) -> str:
    """Return a text of all that decides the unpacked weights besides the files."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return f"unpacking {_UNPACKING_VERSION} {text}"
