"""GGUF files, converted once to a Hugging Face folder in the user's cache."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedConfig,
)

from batchmill.engine.errors import ModelLoadError
from batchmill.engine.models.model_length import check_max_model_len, longest_length

from .fingerprint import sampled_hash

#: Part of the cached folder's name: raise it when the conversion changes.
_CONVERSION = "bf16-1"

_log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Where converted models are kept: `BATCHMILL_CACHE_DIR`, or the user's cache folder."""
    named = os.environ.get("BATCHMILL_CACHE_DIR")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "batchmill"


def converted_folder(gguf_path: Path, max_model_len: int | None = None) -> Path:
    """The Hugging Face folder of a GGUF file; made on first use, in bfloat16.

    Processes may race: each converts into a folder of its own, and the first one to finish gives
    it its name, which is atomic.

    Args:
        gguf_path: The file.
        max_model_len: Longest sequence that its model is to compute, tokens. A conversion reads all
            weights, so one that would be refused for its length is not begun.

    Raises:
        ConfigError: the model is made for less than `max_model_len`.
        ModelLoadError: the file cannot be converted, or the cache folder cannot be written.
    """
    try:
        root = cache_folder() / "models"
        final = root / f"{gguf_path.stem}-{_CONVERSION}-{sampled_hash(gguf_path)[:16]}"
        if final.is_dir():
            return final
        if max_model_len is not None:
            check_max_model_len(max_model_len, longest_length(_read_config(gguf_path)))
        root.mkdir(parents=True, exist_ok=True)
        own = Path(tempfile.mkdtemp(prefix=".converting-", dir=root))
    except OSError as error:
        raise ModelLoadError(
            f"the model cache {cache_folder()} cannot be used ({error}): set BATCHMILL_CACHE_DIR "
            "to a folder that can be written"
        ) from error
    _log.info("converting %s once to %s", gguf_path.name, final)
    try:
        _convert(gguf_path, own)
        _open_to_readers(own)
        _publish(own, final)
    finally:
        shutil.rmtree(own, ignore_errors=True)
    return final


def _open_to_readers(folder: Path) -> None:
    """Let other users of a shared cache read what temporary-file calls made private."""
    folder.chmod(0o755)
    for path in folder.iterdir():
        path.chmod(0o644)


def _publish(own: Path, final: Path) -> None:
    """Give a finished folder its name, unless another process was first."""
    try:
        own.rename(final)
    except OSError:
        if not final.is_dir():
            raise


def _read_config(gguf_path: Path) -> PreTrainedConfig:
    """The model's configuration, from the file's header."""
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            gguf_path.parent, gguf_file=gguf_path.name
        )
    except Exception as error:  # as in `_convert`
        raise _unreadable(gguf_path, error) from error
    return config


def _convert(gguf_path: Path, folder: Path) -> None:
    """Write the model and tokenizer of a GGUF file as safetensors and JSON."""
    try:
        # Without `dequantize` some architectures keep packed blocks, others become float32.
        model = AutoModelForCausalLM.from_pretrained(
            gguf_path.parent,
            gguf_file=gguf_path.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
        )
        tokenizer = AutoTokenizer.from_pretrained(gguf_path.parent, gguf_file=gguf_path.name)
    except Exception as error:  # of three libraries, over bytes that may be anything
        raise _unreadable(gguf_path, error) from error
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _unreadable(gguf_path: Path, error: Exception) -> ModelLoadError:
    return ModelLoadError(
        f"{gguf_path} cannot be read as GGUF ({error}): use the model's safetensors instead"
    )
